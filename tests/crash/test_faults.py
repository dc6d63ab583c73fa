"""Any I/O that fails gives an error of the tree, loses nothing that was acknowledged, and leaves a sound image."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import Qcow2Error, StoreError

from .model import DiskModel
from .scenarios import IMAGE, Scenario, prepare

CALLS = ("pread", "preadv", "pwrite", "pwritev", "fdatasync", "ftruncate")

SCENARIO = Scenario(
    "faults",
    "cluster_size=4k",
    64 << 10,
    (("io", "write -P 1 0 20k", "write -c -P 2 20k 8k"), ("snapshot", "one")),
    backing_size=40 << 10,
)
KINDS = (errno.EIO, errno.ENOSPC, errno.EINTR, 0)
"""Errors, and 0: the call does less than it was asked for."""


@dataclass
class Faults:
    """Counts the system calls, and lets the n-th fail, and all that come after it if `lasting`."""

    kind: int
    at: int
    lasting: bool
    calls: int = 0
    flush_failed: bool = False
    fired: list[str] = field(default_factory=list)
    armed: bool = True

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(fd: int, *arguments: Any) -> Any:
            self.calls += 1
            due = self.calls >= self.at if self.lasting else self.calls == self.at
            if not (self.armed and due):
                return call(fd, *arguments)
            self.fired.append(name)
            if self.kind:
                self.flush_failed |= name == "fdatasync" and self.kind != errno.EINTR
                raise OSError(self.kind, os.strerror(self.kind))
            return _short(name, call, fd, *arguments)

        return wrapped


def _short(name: str, call: Callable[..., Any], fd: int, *arguments: Any) -> Any:
    """Do about half of what was asked for."""
    if name == "pwrite":
        data, offset = arguments
        return call(fd, memoryview(data)[: (len(data) + 1) // 2], offset)
    if name == "pwritev":
        parts, offset = arguments
        return call(fd, [parts[0]], offset)
    if name == "pread":
        length, offset = arguments
        return call(fd, (length + 1) // 2, offset)
    if name == "preadv":
        buffers, offset = arguments
        return call(fd, [buffers[0][: (len(buffers[0]) + 1) // 2]], offset)
    return call(fd, *arguments)


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[[Faults], None]:
    originals = {name: getattr(os, name) for name in CALLS}

    def install(faults: Faults) -> None:
        for name, call in originals.items():
            monkeypatch.setattr(os, name, faults.wrap(name, call))

    return install


class History:
    """A fixed history of changes, and what is known of the disk while some of them fail."""

    def __init__(self, image: qcow2c.Image) -> None:
        self.image = image
        self.model = DiskModel(image.pread(image.size(), 0))
        self.failures: list[Qcow2Error] = []
        self.uncertain: set[int] = set()
        self.time = 1

    def run(self) -> None:
        chooser = random.Random(7)
        size, cluster = self.image.size(), self.image.geometry.cluster_size
        for step in range(14):
            start = chooser.randrange(size // 512) * 512
            length = min(size - start, chooser.choice((512, cluster, 3 * cluster)))
            if step % 5 == 4:
                self._try(self.image.flush)
            elif step % 7 == 3:
                self._change(start, bytes(length), lambda at, data: self.image.write_zeroes(at, len(data), unmap=True))
            elif step % 7 == 5:
                start -= start % cluster
                data = bytes(chooser.choices(b"xyz", k=min(size - start, 2 * cluster)))
                self._change(start, data, lambda at, data: self.image.write_compressed(data, at))
            else:
                self._change(start, chooser.randbytes(length), lambda at, data: self.image.pwrite(data, at))

    def _change(self, start: int, data: bytes, change: Callable[[int, bytes], object]) -> None:
        sectors = range(start, start + len(data), 512)
        self.model.write(self.time, start, data)
        if self._try(lambda: change(start, data)):
            self.uncertain.difference_update(sectors)
        else:
            self.uncertain.update(sectors)

    def _try(self, act: Callable[[], object]) -> bool:
        self.time += 1
        try:
            act()
        except Qcow2Error as error:
            self.failures.append(error)
            return False
        if act == self.image.flush:
            self.model.flushed(self.time)
        return True

    def verify(self, found: bytes) -> None:
        """What was acknowledged is there; what failed is old or new."""
        for at in range(0, len(found), 512):
            if at not in self.uncertain:
                assert found[at : at + 512] == self.model.now[at : at + 512], f"{at:#x}"


def cases() -> Iterator[tuple[int, bool]]:
    for kind in KINDS:
        yield kind, False
        yield kind, True


@pytest.mark.parametrize(("kind", "lasting"), list(cases()))
def test_every_failing_call_is_an_error_and_no_loss(
    kind: int, *, lasting: bool, tmp_path: Path, inject: Callable[[Faults], None]
) -> None:
    prepared = prepare(SCENARIO, tmp_path)
    path = tmp_path / IMAGE

    def play(faults: Faults, *, to_the_end: bool = False) -> None:
        """Run the history; `to_the_end`: the image is closed while calls may still fail."""
        path.write_bytes(prepared.image)
        image = qcow2c.open(path, "r+")
        history = History(image)
        inject(faults)
        history.run()
        if faults.flush_failed:
            with pytest.raises(StoreError):
                image.pwrite(b"x" * 512, 0)
            with pytest.raises(StoreError, match="flush"):
                image.flush()
        elif not lasting and not to_the_end:
            faults.armed = False
            history.verify(image.pread(image.size(), 0))
        closed = False
        with suppress(Qcow2Error):
            image.close()
            closed = True
        faults.armed = False
        assert image.closed
        is_tried_again = kind == errno.EINTR or (kind == errno.ENOSPC and not lasting)
        if faults.fired and kind and not is_tried_again:
            assert history.failures or not closed
        if kind == 0 and not lasting:
            assert not history.failures and closed
        assert qcow2c.check(path).exit_code in ((0,) if closed and not faults.flush_failed else (0, 3))
        with qcow2c.open(path) as again:
            found = again.pread(again.size(), 0)
        assert history.model.problem(history.time, found, history.uncertain) is None
        if closed:
            history.verify(found)
        with qcow2c.open(path, "r+") as again:
            again.pwrite(b"still writable".ljust(512), 4096)
        assert qcow2c.check(path).exit_code in (0, 3)

    counted = Faults(kind, at=1 << 30, lasting=False)
    play(counted, to_the_end=True)
    assert counted.calls > 40
    for at in range(1, counted.calls + 1):
        play(Faults(kind, at, lasting), to_the_end=True)
