"""What a fork means here: a child writes nothing that its parent opened. Its locks are in `thread_locks.py`."""

from __future__ import annotations

import os

from qcow2c.errors import StoreError


def require_opener(process: int | None, name: str) -> None:
    """Raise StoreError unless this is the process that opened something; None is what every process may change."""
    if process is not None and process != (here := os.getpid()):
        message = f"{name!r} was opened by process {process}, and this is its child {here}"
        raise StoreError(f"{message}: open it again here to write to it")
