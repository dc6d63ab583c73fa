"""Byte stores: a local file, a seekable binary file object, and memory. All are read-only and positional.

A store knows bytes and nothing of the format. It never follows a name out of an image; a local file is opened with a
read-only descriptor, and only a regular file is opened at all. Reads past the end are short, never an error.
"""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, BinaryIO

from qcow2c.errors import Span, StoreError, UsageError

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


class Store(ABC):
    """Bytes at offsets. `name` is for messages; `path` is set where the bytes are a local file."""

    name: str
    path: str | None = None

    @abstractmethod
    def size(self) -> int:
        """Return the length in bytes."""

    @abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """Return `length` bytes at `offset`, fewer only at the end of the store. Raises StoreError."""

    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; return the bytes read, fewer only at the end of the store."""
        data = self.pread(len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    def allocated_size(self) -> int | None:
        """Return the bytes that the store occupies on its medium, or None where nobody knows."""
        return None

    def extents(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        """Yield adjacent spans that cover `start` to `end` (within the size), each with whether it holds data.

        A span without data is a hole and reads as zeros. Without knowledge all is data.
        """
        if end > start:
            yield Span(start, end - start), True

    def identity(self) -> object:
        """Return a value that two stores share exactly when they are the same file."""
        return id(self)

    def close(self) -> None:  # noqa: B027 - most stores hold nothing to release
        """Release what this store opened itself; closing twice does nothing."""


class LocalFile(Store):
    """A regular file, opened read-only. A directory, FIFO, socket or device is refused before it is opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fsdecode(path)
        self.path = self.name
        self._fd = -1
        try:
            # Looked at before it is opened: opening a FIFO or a device can block or act.
            _require_regular(os.stat(self.path), self.name)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            _require_regular(os.fstat(self._fd), self.name)
        except (OSError, ValueError) as exc:
            self.close()
            raise StoreError(f"Could not open {self.name!r}: {_reason(exc)}") from exc
        except StoreError:
            self.close()
            raise

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def pread(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as exc:
            raise StoreError(f"Could not read {self.name!r}: {_reason(exc)}", where=Span(offset, length)) from exc
        except OverflowError:
            return b""  # No file is that long.
        if len(data) == length or not data:
            return data
        return data + self.pread(length - len(data), offset + len(data))

    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as exc:
            where = Span(offset, len(buffer))
            raise StoreError(f"Could not read {self.name!r}: {_reason(exc)}", where=where) from exc
        except OverflowError:
            return done
        return done

    def allocated_size(self) -> int | None:
        return os.fstat(self._fd).st_blocks * 512

    def extents(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        end = min(end, self.size())
        while start < end:
            data = self._seek(start, os.SEEK_DATA, end)
            if data > start:
                yield Span(start, data - start), False
            if data < end:
                start = self._seek(data, os.SEEK_HOLE, end)
                if start <= data:  # The file changed under us: call the rest data.
                    start = end
                yield Span(data, start - data), True
            else:
                return

    def _seek(self, offset: int, whence: int, end: int) -> int:
        try:
            return min(os.lseek(self._fd, offset, whence), end)
        except OSError:
            # ENXIO: nothing but a hole up to the end. Anything else: the file system cannot tell, so all is data.
            try:
                os.lseek(self._fd, 0, os.SEEK_DATA)
            except OSError:
                return offset if whence == os.SEEK_DATA and self.allocated_size() else end
            return end

    def identity(self) -> object:
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class FileObject(Store):
    """Any seekable binary file object; the caller keeps it open and closes it."""

    def __init__(self, file: Any) -> None:
        import threading  # Late: local files, which most are, do without it.

        self._file = file
        self._lock = threading.Lock()
        self.name = str(getattr(file, "name", None) or f"<{type(file).__name__}>")
        try:
            if not file.seekable():
                raise StoreError(f"{self.name!r} cannot seek")
            self._pread_checked(0, 0)
        except (AttributeError, OSError, ValueError) as exc:
            raise StoreError(f"{self.name!r} is no readable, seekable binary file: {exc}") from exc

    def size(self) -> int:
        with self._lock:
            return int(self._file.seek(0, io.SEEK_END))

    def pread(self, length: int, offset: int) -> bytes:
        try:
            return self._pread_checked(length, offset)
        except OverflowError:
            return b""
        except (OSError, ValueError) as exc:
            raise StoreError(f"Could not read {self.name!r}: {_reason(exc)}", where=Span(offset, length)) from exc

    def _pread_checked(self, length: int, offset: int) -> bytes:
        with self._lock:
            try:
                self._file.seek(offset)
            except (OSError, ValueError, OverflowError):  # Some files refuse positions far beyond their end.
                if offset < self._file.seek(0, io.SEEK_END):
                    raise
                return b""
            parts = []
            while True:
                part = self._file.read(length)
                if not isinstance(part, bytes):
                    raise StoreError(f"{self.name!r} reads {type(part).__name__}, not bytes")
                parts.append(part)
                length -= len(part)
                if not part or length <= 0:
                    return parts[0] if len(parts) == 1 else b"".join(parts)

    def identity(self) -> object:
        return id(self._file)


class Memory(Store):
    """Bytes in memory; not copied."""

    def __init__(self, data: bytes | bytearray | memoryview, name: str = "<bytes>") -> None:
        self._data = memoryview(data).cast("B").toreadonly()
        self.name = name

    def size(self) -> int:
        return len(self._data)

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self._data[offset : offset + length])


def open_store(source: Source | Store) -> Store:
    """Return a store over a path, bytes, or a seekable binary file object. Raises StoreError, UsageError."""
    if isinstance(source, Store):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return Memory(source)
    if isinstance(source, str | os.PathLike):
        return LocalFile(source)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return FileObject(source)
    raise UsageError(f"cannot read an image from {type(source).__name__}: give a path, bytes, or a binary file")


def _require_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {
            stat.S_IFDIR: "a directory",
            stat.S_IFIFO: "a FIFO",
            stat.S_IFSOCK: "a socket",
            stat.S_IFBLK: "a block device",
            stat.S_IFCHR: "a character device",
        }
        kind = kinds.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise StoreError(f"Could not open {name!r}: it is {kind}, not a regular file")


def _reason(exc: Exception) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)
