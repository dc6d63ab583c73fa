"""Locks of threads in a child process: it waits for no thread of its parent."""

from __future__ import annotations

import os
from weakref import WeakSet

from qcow2c.light import TypeVar

LockT = TypeVar("LockT")

_locks: WeakSet[object] = WeakSet()
"""Every lock that a child process must not wait for."""


def fork_safe(lock: LockT) -> LockT:
    """Return a lock of threads that a child process finds free: a thread that held it at the fork does not live there.

    It is the lock itself: only in C nothing, no interrupt either, comes between taking it and the block that it guards.
    """
    _locks.add(lock)
    return lock


def _free_in_child() -> None:
    """Free the locks of other threads; one that the forking thread holds is released at the end of its block."""
    for lock in list(_locks):
        is_owned = getattr(lock, "_is_owned", None)  # RLock has it.
        if is_owned is None or not is_owned():
            lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading` and `logging` do it


os.register_at_fork(after_in_child=_free_in_child)
