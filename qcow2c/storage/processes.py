"""What a fork means here: a child writes nothing that its parent opened, and waits for no thread of its parent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from qcow2c.errors import StoreError


class _Lock(Protocol):
    def acquire(self) -> bool: ...

    def release(self) -> None: ...


class ForkSafeLock:
    """A lock of threads. A child process finds it free: the thread that held it at the fork does not live there."""

    def __init__(self, make: Callable[[], _Lock]) -> None:
        """`make` returns a lock: `threading.Lock` or `threading.RLock`."""
        self._make = make
        self._locks = {os.getpid(): make()}

    def __enter__(self) -> None:
        process = os.getpid()
        lock = self._locks.get(process)
        if lock is None:
            lock = self._locks.setdefault(process, self._make())  # One of two threads that come at once wins.
        lock.acquire()

    def __exit__(self, *_raised: object) -> None:
        lock = self._locks.get(os.getpid())
        try:
            if lock is not None:
                lock.release()
        except RuntimeError:  # Taken before a fork within the block: the child has nothing to release.
            if len(self._locks) == 1:
                raise


def require_opener(process: int | None, name: str) -> None:
    """Raise StoreError unless this is the process that opened something; None is what every process may change."""
    if process is not None and process != (here := os.getpid()):
        message = f"{name!r} was opened by process {process}, and this is its child {here}"
        raise StoreError(f"{message}: open it again here to write to it")
