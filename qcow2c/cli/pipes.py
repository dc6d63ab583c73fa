"""Pipes that have a name: /dev/stdin, /dev/stdout, and what a shell makes of <(command) and >(command).

Only descriptors that are open already are understood so: to open any other FIFO could block.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any

STREAM = "-"
"""Standard input or output."""

_DESCRIPTOR = re.compile(r"/dev/std(in|out)|/dev/fd/\d+|/proc/self/fd/\d+")
_NUMBERS = {"0": "in", "1": "out"}


def is_pipe(word: str) -> bool:
    """Return whether a name means an open descriptor that is a pipe."""
    if not _DESCRIPTOR.fullmatch(word):
        return False
    try:
        return stat.S_ISFIFO(os.stat(word).st_mode)
    except OSError:
        return False


def as_stream(word: str, which: str) -> str:
    """Return "-" for a name of the pipe that standard input ("in") or output ("out") is, any other word as it is."""
    name = word.removeprefix("/dev/std") if word.startswith("/dev/std") else _NUMBERS.get(os.path.basename(word))
    return STREAM if name == which and is_pipe(word) else word


def opened(word: str, mode: str) -> Any:
    """Open a pipe by its name, without a buffer; it is closed when nothing refers to it any more. Raises OSError."""
    return open(word, mode, buffering=0)
