"""Byte stores of every sort that a caller may hand in: a path, a seekable binary file object, bytes in memory.

A store knows bytes and nothing of the format. It never follows a name out of an image, and is read-only unless the
caller asks for more.
"""

from __future__ import annotations

import io
import os
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext

from qcow2c.errors import Span, StoreError, UnsupportedFeature, UsageError
from qcow2c.light import TYPE_CHECKING, Protocol
from qcow2c.storage.descriptors import DescriptorFile, is_regular
from qcow2c.storage.file_names import is_url, plain_path
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.locks import Use
from qcow2c.storage.named_file import file_at
from qcow2c.storage.positioned import PositionedFile
from qcow2c.storage.processes import require_opener
from qcow2c.storage.store import Buffer, Store, no_space

if TYPE_CHECKING:
    from typing import Any, Literal


__all__ = ["FileObject", "LocalFile", "Memory", "Source", "Store", "WritableMemory", "open_store", "opened"]


class BinaryFile(Protocol):
    """What is asked of a file object: bytes at a position that can be set. For writing `write`, `truncate`, `flush`."""

    def read(self, size: int, /) -> Buffer: ...

    def seek(self, offset: int, whence: Literal[0, 1, 2], /) -> object: ...

    def tell(self) -> int: ...


Source = str | os.PathLike[str] | bytes | bytearray | memoryview | int | BinaryFile
"""A path of a file or block device, a URL that fsspec knows (read-only), bytes, a descriptor of a regular file, or a
file object."""


class FileObject(Store):
    """A seekable binary file object that is no file of the system; the caller keeps it open and closes it.

    What `read` returns may be any bytes, and `seek` may return None: `mmap`, compressed files and members of archives
    will do. Where the object can also go on in a child process with a position of its own is known of few; of others
    the child reads nothing.
    """

    def __init__(self, file: Any, *, writable: bool = False) -> None:
        import threading  # Late: local files, which most are, do without it.

        from qcow2c.storage.thread_locks import fork_safe

        self._file = file
        self._lock = fork_safe(threading.Lock())
        self._process = os.getpid()
        self._parts_in_fork = isinstance(file, (io.BytesIO, PositionedFile)) or type(file).__name__ == "mmap"
        self.name = str(getattr(file, "name", None) or f"<{type(file).__name__}>")
        self.writable = writable
        try:
            self._require_usable()
        except StoreError:
            raise
        except (AttributeError, OSError, ValueError) as exc:
            message = f"{self.name!r} is no readable, seekable binary file: {exc}"
            raise StoreError(message, errno=getattr(exc, "errno", None)) from exc

    def _require_usable(self) -> None:
        """Raise StoreError, AttributeError, OSError, ValueError for what cannot be read or written as asked."""
        file = self._file
        if hasattr(file, "seekable") and not file.seekable():
            raise StoreError(f"{self.name!r} cannot seek")
        self._pread_checked(0, 0)
        if self.writable and not (file.writable() if hasattr(file, "writable") else hasattr(file, "write")):
            raise self.refusal(Span(0, 0))
        if self.writable and "a" in str(getattr(file, "mode", "")):
            raise StoreError(f"{self.name!r} is open for appending: nothing can be written elsewhere")

    def _seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position and return it. Raises what the file object raises."""
        found = self._file.seek(offset, whence)
        return int(self._file.tell() if found is None else found)

    def _end(self) -> int:
        return self._seek(0, io.SEEK_END)

    def size(self) -> int:
        with self._lock:
            self._require_own_position()
            return self._end()

    def _require_own_position(self) -> None:
        """Raise StoreError in a child process whose reads would move the position of its parent, or be moved by it."""
        if not self._parts_in_fork:
            require_opener(self._process, self.name)

    def pread(self, length: int, offset: int) -> bytes:
        try:
            return self._pread_checked(length, offset)
        except OverflowError:
            return b""
        except StoreError:  # Here and below: an open image is a file object, too, and says itself what fails.
            raise
        except (OSError, ValueError, EOFError) as exc:  # EOFError: a compressed file that ends early.
            raise self.failure(exc, "read", Span(offset, length)) from exc

    def _pread_checked(self, length: int, offset: int) -> bytes:
        with self._lock:
            self._require_own_position()
            try:
                if self._seek(offset) != offset:  # Some files stop at their end, others refuse.
                    return b""
            except (OSError, ValueError, OverflowError):
                if offset < self._end():
                    raise
                return b""
            parts = []
            while True:
                part = self._file.read(length)
                if not isinstance(part, bytes | bytearray | memoryview):
                    raise StoreError(f"{self.name!r} reads {type(part).__name__}, not bytes")
                parts.append(bytes(part))
                length -= len(part)
                if not part or length <= 0:
                    return parts[0] if len(parts) == 1 else b"".join(parts)

    def identity(self) -> object:
        return id(self._file)

    def pwrite(self, data: Buffer, offset: int) -> None:
        where = Span(offset, len(data))
        self.require_writable(where)
        view = memoryview(data).cast("B")
        try:
            with self._lock:
                self._seek(offset)
                while view:
                    count = self._file.write(view)
                    if not count:
                        raise no_space()
                    view = view[count:]
        except StoreError:
            raise
        except (OSError, ValueError, OverflowError, MemoryError) as exc:
            raise self.failure(exc, "write", where) from exc

    def flush(self) -> None:
        """Flush the file object, and the file under it where there is one."""
        self.require_writable(Span(0, 0))
        try:
            with self._lock:
                self._file.flush()
                fd = _descriptor(self._file)
                if fd is not None:
                    os.fdatasync(fd)
        except StoreError:
            raise
        except (OSError, ValueError) as exc:
            raise self.flush_failure(exc) from exc

    def truncate(self, size: int) -> None:
        self.require_writable(Span(size, 0))
        try:
            with self._lock:
                if size > self._end():
                    self._seek(size - 1)
                    self._file.write(b"\0")
                else:
                    self._file.truncate(size)
        except StoreError:
            raise
        except (AttributeError, OSError, ValueError, OverflowError, MemoryError) as exc:
            raise self.failure(exc, "resize") from exc


class Memory(Store):
    """Bytes in memory; not copied."""

    def __init__(self, data: bytes | bytearray | memoryview, name: str = "<bytes>") -> None:
        self._data = memoryview(data).cast("B").toreadonly()
        self._holds_bytearray = isinstance(self._data.obj, bytearray)
        self.name = name

    def size(self) -> int:
        return len(self._data)

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def close(self) -> None:
        """Release a bytearray, which can grow again; bytes can be read on."""
        if self._holds_bytearray:
            self._data.release()


class WritableMemory(Store):
    """A bytearray of the caller's, which grows. Threads may share it."""

    writable = True

    def __init__(self, data: bytearray, name: str = "<bytearray>") -> None:
        import threading

        from qcow2c.storage.thread_locks import fork_safe

        self._lock = fork_safe(threading.Lock())
        self._data = data
        self.name = name

    def size(self) -> int:
        return len(self._data)

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def identity(self) -> object:
        return id(self._data)

    def pwrite(self, data: Buffer, offset: int) -> None:
        if not data:
            return  # As in a file: a write of nothing does not reach anywhere.
        self._grow(offset + len(data))
        self._data[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Memory is as durable as it gets."""

    def truncate(self, size: int) -> None:
        try:
            del self._data[size:]
        except BufferError as exc:
            raise self.failure(exc, "resize") from exc
        self._grow(size)

    def _grow(self, size: int) -> None:
        with self._lock:
            if size > len(self._data):
                try:
                    self._data.extend(bytes(size - len(self._data)))
                except (MemoryError, OverflowError, BufferError) as exc:
                    raise self.failure(exc, "resize") from exc


def open_store(source: Source | Store, *, writable: bool = False) -> Store:
    """Return a store over a path, bytes, a descriptor, or a seekable binary file object.

    Raises StoreError, UsageError, UnsupportedFeature.

    Text may begin with `file:`; the protocols that only QEMU speaks are refused. No lock is taken: see `Store.lock`.
    """
    if isinstance(source, Store):
        if writable and not source.writable:
            raise source.refusal(Span(0, 0))
        return source
    if isinstance(source, bytearray) and writable:
        return WritableMemory(source)
    if isinstance(source, bytes | bytearray | memoryview):
        if writable:
            raise UsageError(f"cannot write to an image in {type(source).__name__}: give a bytearray")
        return Memory(source)
    if is_url(source):
        return _store_at_url(str(source), writable=writable)
    if isinstance(source, str | os.PathLike):
        return file_at(plain_path(source), writable=writable)
    if isinstance(source, int) and not isinstance(source, bool):
        return DescriptorFile(source, writable=writable)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _store_of_file(source, writable=writable)
    raise UsageError(f"cannot read an image from {type(source).__name__}: give a path, bytes, or a binary file")


def _store_at_url(url: str, *, writable: bool) -> Store:
    """Return a store over what is at a URL. Raises UnsupportedFeature, StoreError."""
    if writable:
        raise UnsupportedFeature(f"{url!r} is a URL: what is there is only read")
    from qcow2c.storage.remote_file import RemoteFile  # Late: few need it.

    return RemoteFile(url)


def _store_of_file(file: Any, *, writable: bool) -> Store:
    """Return a store over a file object: over its descriptor where that has the same bytes. Raises StoreError."""
    plain = _plain_file(file)
    if plain is None or not is_regular(plain.fileno()) or not plain.readable() or "a" in str(plain.mode):
        return FileObject(file, writable=writable)
    if writable and not plain.writable():
        raise StoreError(f"{file.name!r} is open for reading only")
    return DescriptorFile(plain.fileno(), writable=writable, file=file)


def _plain_file(file: Any) -> io.FileIO | None:
    """Return the system's file under a file object of Python's `open` or `tempfile`, None for another kind.

    Exact types, for others may change what they read: a compressed file has the descriptor of the packed bytes.
    """
    if type(file).__module__ == "tempfile" and type(file).__name__ == "_TemporaryFileWrapper":
        file = file.file
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) and not file.closed else file
    return raw if type(raw) is io.FileIO and not raw.closed else None


def _descriptor(file: Any) -> int | None:
    try:
        return int(file.fileno())
    except (AttributeError, OSError, ValueError):  # io.UnsupportedOperation is both of the latter.
        return None


def opened(source: Source | Store, use: Use | None = None, *, writable: bool = False) -> AbstractContextManager[Store]:
    """Open a source for `use` and lock it for that; the context manager gives out the store, and closes it in the end.

    A store of the caller's stays open. Without a use nothing is locked, and `writable` says how to open: the lock comes
    later where the format decides about it. An open image is its file, and that is what is locked already; nothing but
    the image may write to it. Raises StoreError, UsageError, ImageLocked.
    """
    if isinstance(source, PositionedFile) and (file := source.image_file()) is not None:
        if writable or (use is not None and use.writes):
            raise UsageError(f"{source!r} is open: change it by its own methods, or close it first")
        return nullcontext(file)
    store = open_store(source, writable=writable if use is None else use.writes)
    held: AbstractContextManager[Store] = nullcontext(store) if store is source else closing(store)
    with ExitStack() as unlocked:
        unlocked.push(held)
        if use is not None:
            store.lock(use)
        unlocked.pop_all()
    return held
