"""Bytes of a known size, read at offsets, as a file that has a position."""

from __future__ import annotations

import io
import os
from operator import index

from qcow2c.errors import UsageError
from qcow2c.light import TYPE_CHECKING, Protocol
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from typing import Any, SupportsIndex


class PositionedFile(io.RawIOBase):
    """A binary file on `size` and `readinto_at`: io.RawIOBase makes read, readall and the context manager of it."""

    def __init__(self) -> None:
        super().__init__()
        self._position = 0
        self._closed_because = ""

    def size(self) -> int:
        """Return the length in bytes."""
        raise NotImplementedError

    def readinto_at(self, buffer: Any, offset: int) -> int:
        """Fill a writable buffer from `offset`; return the bytes read, fewer than its length only at the end."""
        raise NotImplementedError

    def image_file(self) -> Store | None:
        """Return the file of the image that this is a disk of, with all that was written; None for another thing."""
        return None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a writable buffer from the position, and move it."""
        count = self.readinto_at(buffer, self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        offset = index(offset)
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size()}
        if whence not in bases:
            raise UsageError(f"cannot seek from {whence}: it is none of SEEK_SET, SEEK_CUR, SEEK_END")
        if bases[whence] + offset < 0:
            raise UsageError(f"cannot seek to {bases[whence] + offset}: negative")
        self._position = bases[whence] + offset
        return self._position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def __reduce_ex__(self, _protocol: SupportsIndex) -> tuple[Any, ...]:
        """Refuse `copy` and `pickle`: two objects would close one file."""
        raise TypeError(f"cannot copy or pickle {self!r}: open it again")

    def _check_open(self) -> None:
        if self.closed:
            reason = self._closed_because and f": {self._closed_because}"
            raise UsageError(f"I/O operation on closed image{reason}")


class DiskOfFile(Protocol):
    """What a `SharedFile` is a file of: an open `Image`."""

    name: str

    @property
    def closed(self) -> bool: ...

    def size(self) -> int: ...

    def readinto_at(self, buffer: Any, offset: int) -> int: ...

    def pwrite(self, buffer: Any, offset: int) -> int: ...

    def writable(self) -> bool: ...

    def flush(self) -> None: ...

    def image_file(self) -> Store | None: ...


class SharedFile(PositionedFile):
    """A disk that is open already, as a file with a position of its own; closing it closes nothing else.

    Threads may each have one. It cannot be copied or pickled: what it is a file of is asked for another one.
    """

    def __init__(self, disk: DiskOfFile) -> None:
        super().__init__()
        self._disk = disk
        self.name = disk.name

    def __repr__(self) -> str:
        state = "closed" if self.closed or self._disk.closed else "r+" if self.writable() else "r"
        return f"<file of {self.name!r} {state}>"

    def size(self) -> int:
        self._check_open()
        return self._disk.size()

    def readinto_at(self, buffer: Any, offset: int) -> int:
        self._check_open()
        return self._disk.readinto_at(buffer, offset)

    def image_file(self) -> Store | None:
        self._check_open()
        return self._disk.image_file()

    def writable(self) -> bool:
        return self._disk.writable()

    def write(self, buffer: Any) -> int:
        """Write all bytes of a buffer at the position, and move it. Raises as `Image.pwrite`."""
        self._check_open()
        count = self._disk.pwrite(buffer, self._position)
        self._position += count
        return count

    def flush(self) -> None:
        """Make durable what was written to the disk, if that is still open. Raises as `Image.flush`."""
        self._check_open()
        if not self._disk.closed:
            self._disk.flush()

    def close(self) -> None:
        """Close this file alone, after a flush. Raises as `flush`."""
        if not self.closed:
            super().close()
            self._closed_because = "this file of it was closed"
