"""`DescriptorFile`: a regular file that the caller has open, by its descriptor or as a file object of Python's `open`.

It is opened again, where the system lets it: then locks and position are its own, in each process, and end with it.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
from contextlib import suppress

from qcow2c.errors import Span, StoreError
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.open_file import OpenFile

if TYPE_CHECKING:
    from typing import Any


def is_regular(fd: int) -> bool:
    """Return whether a descriptor is one of a regular file. Raises StoreError."""
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, OverflowError) as exc:
        raise _unusable(fd, exc) from exc


class DescriptorFile(OpenFile):
    """A regular file that is open already, and stays open when this is closed."""

    def __init__(self, fd: int, *, writable: bool = False, file: Any = None, name: str | None = None) -> None:
        """`file` is the file object over it, which may have bytes in its buffer; errors call it `name`.

        Raises StoreError.
        """
        name = name or str(getattr(file, "name", None) or f"<descriptor {fd}>")
        super().__init__(-1, name, writable=writable)
        self._file = file
        try:
            if not is_regular(fd):
                raise StoreError(f"{self.name!r} is no regular file")
            mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
            if mode == os.O_WRONLY:
                raise StoreError(f"{self.name!r} is open for writing only")
            if writable and mode != os.O_RDWR:
                raise self.refusal(Span(0, 0))
            if writable and file is not None:
                file.flush()
            self._fd = _opened_again(fd, mode)
        except (OSError, ValueError) as exc:
            if isinstance(exc, StoreError):
                raise
            raise self.failure(exc, "open") from exc

    def flush(self) -> None:
        super().flush()
        self._forget_read()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._forget_read()
            self._file = None

    def _forget_read(self) -> None:
        """Let a buffered file object of the caller read anew what may have been written here.

        Not in a child process, whose file object shares the position of its parent's.
        """
        if self._file is not None and self.writable and self._process == os.getpid():
            with suppress(OSError, ValueError):
                self._file.seek(0, io.SEEK_END)


def _opened_again(fd: int, mode: int) -> int:
    """Return another descriptor of an open file. Raises OSError."""
    try:
        return os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # Without /proc, or the rights that the file was opened with: then its locks are shared, too.
        return os.dup(fd)


def _unusable(fd: int, exc: Exception) -> StoreError:
    return StoreError(f"descriptor {fd} cannot be used: {exc}", errno=getattr(exc, "errno", None))
