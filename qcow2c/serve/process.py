"""The process of a server: in the background, ended with its parent, or as long as a command runs. POSIX."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from qcow2c.errors import StoreError
from qcow2c.storage.store import reason

_SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux."""


class Background:
    """The parent's half of a fork is over: `ready` tells it that all is well, and `failed` why not."""

    def __init__(self, pipe: int | None) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """Let the parent end with success, and cut the last ties to its terminal."""
        if self._pipe is not None:
            pipe, self._pipe = self._pipe, None
            with open(os.devnull, "r+b", buffering=0) as nothing:
                for descriptor in (0, 1, 2):
                    os.dup2(nothing.fileno(), descriptor)
            os.write(pipe, b"\0")
            os.close(pipe)


def to_background() -> Background | None:
    """Fork; return None in the parent, where the child has said that it is ready. Raises SystemExit where it failed.

    Nothing may be open or locked yet: it would be the parent's.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.setsid()
        return Background(writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        ready = pipe.read(1)
    if ready:
        return None
    _, status = os.waitpid(child, 0)
    raise SystemExit(os.waitstatus_to_exitcode(status) or 1)


def end_with_parent() -> None:
    """Let the system send SIGTERM when the parent ends; where it cannot, nothing happens."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """Write the number of this process into a file, which is removed in the end. Raises StoreError."""
    if path is None:
        yield
        return
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as exc:
        raise StoreError(f"cannot write {path!r}: {reason(exc)}", errno=exc.errno) from exc
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call a function at SIGTERM, SIGINT and SIGHUP, instead of what they do; only in the main thread."""
    before = {
        number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
