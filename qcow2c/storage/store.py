"""`Store`: bytes at offsets, as everything above sees a file. It knows nothing of the format.

Reads past the end are short, never an error; writes are whole, or an error. Only `flush` makes anything durable.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from qcow2c.errors import Span, StoreError
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.locks import Use
from qcow2c.storage.processes import require_opener

if TYPE_CHECKING:
    from typing import NoReturn, SupportsIndex


Buffer = bytes | bytearray | memoryview
"""What is written; a memoryview is one of single bytes."""

Progress = Callable[[int, int], object]
"""Is told the bytes that are done, and all that are to be done."""

_ZEROS = bytes(512 << 10)


def stage(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Return what to tell in one of several stages of a work, which count the same."""
    if progress is None:
        return None
    return lambda done, size: progress(number * max(1, size) + done, count * max(1, size))


class Store(ABC):
    """Bytes at offsets. `name` is for messages; `path` is set where the bytes are a local file.

    What writes raises StoreError on a store that is not `writable`, and, but for reading, so does everything once a
    flush has failed: the system may have dropped what it could not write, so that a later flush would succeed and
    mean nothing.
    """

    name: str
    url: str | None = None
    """Where the bytes are, if that is a URL."""
    path: str | None = None
    start: int = 0
    """Where the first byte is in the file, which is another thing than the store where it is only a part of it."""
    writable: bool = False
    _flush_failure: StoreError | None = None
    _process: int | None = None
    """The one process that may write, where other processes would see it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        """Refuse `copy` and `pickle`: two objects would close one file."""
        raise TypeError(f"cannot copy or pickle {self!r}: open it again")

    @property
    def file_name(self) -> str:
        """The name of the file in which the bytes are."""
        return self.name

    @abstractmethod
    def size(self) -> int:
        """Return the length in bytes."""

    def direct_pread(self) -> Callable[[int, int], bytes]:
        """Return the quickest form of `pread`: it may return fewer bytes, raise OSError, and outlive `close` unseen."""
        return self.pread

    def descriptor(self) -> int | None:
        """Return the descriptor of a file that has these bytes at the same offsets, for reading; None without one.

        It is that of the store, and lives no longer.
        """
        return None

    @abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """Return `length` bytes at `offset`, fewer only at the end of the store. Raises StoreError."""

    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; return the bytes read, fewer only at the end of the store."""
        data = self.pread(len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    def allocated_size(self) -> int | None:
        """Return the bytes that the store occupies on its medium, or None where that is unknown."""
        return None

    def capacity(self) -> int | None:
        """Return the most bytes that the store can ever hold, None where only its medium bounds it."""
        return None

    def require_capacity(self, size: int) -> None:
        """Raise StoreError where the store can never hold so many bytes."""
        most = self.capacity()
        if most is not None and most < size:
            message = f"Cannot grow device files: {self.name!r} has {most} bytes, and {size} are needed"
            raise StoreError(message, errno=errno.ENOSPC, filename=self.name)

    def extent_size_hint(self) -> int | None:
        """Return in what pieces the file system is asked to give the file its space, None where it has no such hint."""
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

    def lock(self, use: Use) -> None:  # noqa: B027 - only files can be locked
        """Exclude other programs, as far as a use demands it. Raises ImageLocked."""

    # --- writing ---

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write all bytes at `offset`; the store grows where they end behind its end. Raises StoreError."""
        raise self.refusal(Span(offset, len(data)))

    def pwritev(self, parts: Sequence[Buffer], offset: int) -> None:
        """Write buffers consecutively, as `pwrite`."""
        for part in parts:
            self.pwrite(part, offset)
            offset += len(part)

    def flush(self) -> None:
        """Make everything written durable. Raises StoreError: then it is unknown what of it is."""
        raise self.refusal(Span(0, 0))

    def truncate(self, size: int) -> None:
        """Cut the store off, or let it grow by zeros. Raises StoreError."""
        raise self.refusal(Span(size, 0))

    def allocate(self, offset: int, length: int) -> None:
        """Reserve space, so that later writes there cannot fail for the lack of it; contents stay, the store grows.

        Raises StoreError.
        """
        self.require_writable(Span(offset, length))
        for start in range(max(self.size(), offset), offset + length, len(_ZEROS)):
            self.pwrite(_ZEROS[: min(len(_ZEROS), offset + length - start)], start)

    def expect_no_flush(self) -> None:  # noqa: B027 - a hint, which few stores can take
        """Nothing will be flushed in the end: the system need not begin early to write out what is written."""

    def clone(self, source: Store, source_offset: int, offset: int, length: int) -> bool:  # noqa: ARG002 - few stores can
        """Share the space of bytes of another store, which is a copy of them; return whether that was done.

        Where it was not, some of the bytes may be there all the same.
        """
        return False

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make bytes read as zeros; the store grows where they end behind its end. Raises StoreError."""
        self.require_writable(Span(offset, length))
        for start in range(offset, offset + length, len(_ZEROS)):
            self.pwrite(_ZEROS[: min(len(_ZEROS), offset + length - start)], start)

    def punch(self, offset: int, length: int) -> None:
        """Give back the space of bytes that are not needed: what they read as from now on is undefined.

        Where a store cannot, nothing happens. The store never grows. Raises StoreError.
        """
        self.require_writable(Span(offset, length))

    def close(self) -> None:  # noqa: B027 - most stores hold nothing to release
        """Release what this store opened itself; closing twice does nothing."""

    # --- errors ---

    def failure(self, exc: Exception, doing: str, where: Span | None = None) -> StoreError:
        """Return the error of the tree for one of the system."""
        message = f"Could not {doing} {self.name!r}: {reason(exc)}"
        number = exc.errno if isinstance(exc, OSError) else None
        return StoreError(message, where=where, errno=number, filename=None if self.path is None else self.name)

    def flush_failure(self, exc: Exception) -> StoreError:
        """Return the error for a flush that failed; from now on nothing is written."""
        self._flush_failure = self.failure(exc, "flush")
        return self.failure(exc, "flush")  # Another one: once raised, it leads to everything that is in use then.

    def require_writable(self, where: Span) -> None:
        """Raise StoreError for a store that is read-only, whose flush has failed, or that a parent process opened."""
        if not self.writable:
            raise self.refusal(where)
        require_opener(self._process, self.name)
        if self._flush_failure is not None:
            failed = self._flush_failure
            message = f"an earlier flush failed, so that nothing more is written: {failed.message}"
            place = where if where.length else None
            raise StoreError(message, where=place, errno=failed.errno, filename=failed.filename)

    def refusal(self, where: Span) -> StoreError:
        """Return the error for writing to a store that is read-only."""
        return StoreError(f"{self.name!r} is open for reading only", where=where if where.length else None)


def reason(exc: Exception) -> str:
    """Return why, in the words of the system, without its numbers."""
    if isinstance(exc, MemoryError):
        return "not enough memory"
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)


def no_space() -> OSError:
    """Return the error for a write that wrote nothing."""
    return OSError(errno.ENOSPC, "nothing could be written")


def lacks_room(error: StoreError) -> bool:
    """Return whether there was no room for what should have been written."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
