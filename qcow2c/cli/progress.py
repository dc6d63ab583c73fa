"""Progress as qemu-img draws it: `    (12.34/100%)`, rewritten; a bar, where tqdm is there and a person watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from qcow2c.cli import output, text
from qcow2c.storage.store import Progress

_STEP = 1.0
"""Percent that have to be added before they are shown."""


@contextmanager
def shown(*, wanted: bool) -> Iterator[Progress | None]:
    """Give out a function that takes the bytes done and all bytes, or None where nothing is to be shown."""
    if not wanted:
        yield None
        return
    bar = _bar() if output.is_terminal() else None
    with bar or _plain() as report:
        yield report


@contextmanager
def _plain() -> Iterator[Progress]:
    last = 0.0
    text.report("    (0.00/100%)\r")

    def report(done: int, size: int) -> None:
        nonlocal last
        percent = 100 * done / size if size else 100.0
        if percent > last + _STEP or (percent >= 100 and last < 100):
            last = percent
            text.report(f"    ({percent:.2f}/100%)\r")

    try:
        yield report
        report(1, 1)
    finally:
        text.report("\n")


def _bar() -> AbstractContextManager[Progress] | None:
    """Return a context manager that gives out a report to a bar, None without tqdm (the extra `progress`)."""
    try:
        import tqdm
    except ImportError:
        return None

    @contextmanager
    def drawn() -> Iterator[Progress]:
        with tqdm.tqdm(unit="B", unit_scale=True, unit_divisor=1024) as bar:

            def report(done: int, size: int) -> None:
                bar.total = size
                bar.update(done - bar.n)

            yield report

    return drawn()
