"""Signals that ask a command to end: it then ends as after Ctrl-C, and leaves nothing half-made behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The command was asked to end. `status` is what a shell shows for the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextmanager
def handled() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as an interrupt does. Only in the main thread; elsewhere nothing changes."""
    try:
        before = {number: signal.signal(number, _raise) for number in (signal.SIGTERM, signal.SIGHUP)}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Terminated(number)
