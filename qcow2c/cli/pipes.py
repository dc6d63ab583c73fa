"""Pipes that have a name: /dev/stdin, /dev/stdout, and what a shell makes of <(command) and >(command).

Only descriptors that are open already are understood so: to open any other FIFO could block.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager

from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.descriptors import DescriptorFile
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from typing import Any


STREAM = "-"
"""Standard input or output."""

_DESCRIPTOR = r"/dev/std(in|out)|/dev/fd/\d+|/proc/self/fd/\d+"
_PIECE_BYTES = 1 << 20
_NUMBERS = {"0": "in", "1": "out"}


def is_pipe(word: str) -> bool:
    """Return whether a name means an open descriptor that is a pipe."""
    if not word.startswith(("/dev/", "/proc/")) or not re.fullmatch(_DESCRIPTOR, word):
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


@contextmanager
def kept(word: str) -> Iterator[Store]:
    """Read a pipe to its end into a temporary file, and give that out under the pipe's name. Raises OSError."""
    from tempfile import TemporaryFile

    with opened(word, "rb") as pipe, TemporaryFile(buffering=0) as file:
        while piece := pipe.read(_PIECE_BYTES):
            if piece.count(0) == len(piece):
                file.seek(len(piece), os.SEEK_CUR)  # A hole.
            else:
                _write_all(file, piece)
        file.truncate(file.tell())
        with closing(DescriptorFile(file.fileno(), name=word)) as store:
            yield store


def _write_all(file: Any, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[file.write(rest) :]
