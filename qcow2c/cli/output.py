"""Standard output, which may be closed or full, and the other standard streams. Knows no command.

What is lost there is never taken for the failure of the work: a `result` that nobody gets ends the command, while a
report of work that was done is given up, and named in the end.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from qcow2c.errors import UsageError
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


BROKEN_PIPE = 141
"""Exit status where the reader of our output has gone: what a shell shows for the signal."""


class OutputLost(Exception):
    """Standard output takes nothing more; `reason` is the system's."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


class _Lost:
    """The first failure of standard output in this command."""

    reason: OSError | None = None


def occupy_closed() -> None:
    """Keep the numbers of closed standard streams, so that no image that is opened gets what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number == 0 else os.O_RDONLY)


def begin() -> None:
    """Forget what an earlier command in this process has lost."""
    _Lost.reason = None


def put(data: bytes, *, now: bool = False) -> None:
    """Write to standard output, without a buffer if `now`. Raises OutputLost."""
    if _Lost.reason is not None:
        raise OutputLost(_Lost.reason)
    if sys.stdout is None:
        raise _lost(OSError(9, "it is closed"))
    try:
        sys.stdout.buffer.write(data)
        if now:
            sys.stdout.flush()
    except OSError as exc:
        raise _lost(exc) from None


def flush() -> None:
    """Write out what is in the buffer. Raises OutputLost."""
    if sys.stdout is not None and _Lost.reason is None:
        try:
            sys.stdout.flush()
        except OSError as exc:
            raise _lost(exc) from None


def lost() -> OSError | None:
    """Return why standard output takes nothing more, None while it does."""
    return _Lost.reason


def is_terminal() -> bool:
    """Return whether a person watches standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def unbuffered(stream: Any, name: str) -> Any:
    """Return a standard stream as a binary file without any buffer. Raises UsageError where it is closed."""
    if stream is None:
        raise UsageError(f"standard {name} is closed")
    return open(stream.fileno(), "rb" if name == "input" else "wb", buffering=0, closefd=False)


def _lost(reason: OSError) -> OutputLost:
    """Remember a failure; what is still in the buffer goes nowhere, so that it does not fail again at the exit."""
    _Lost.reason = reason
    if sys.stdout is not None:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
    return OutputLost(reason)
