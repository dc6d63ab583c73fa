"""`OpenFile`: a regular file, by its descriptor and positional system calls. Names are `local_file.py`'s business.

Every call that changes the file is one of os.pwrite, os.pwritev, os.ftruncate, os.posix_fallocate, os.fdatasync, and
fallocate(2) for zeros and holes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial

from qcow2c.errors import Span
from qcow2c.light import TYPE_CHECKING, TypeVar
from qcow2c.storage import locks
from qcow2c.storage.locks import Use
from qcow2c.storage.processes import require_opener
from qcow2c.storage.store import Buffer, Store, no_space

if TYPE_CHECKING:
    from typing import Any


_T = TypeVar("_T")

_MAX_INTERRUPTS = 100
"""Interrupts of one call before it counts as failed."""

_MAX_PARTS = 1024
"""Buffers that one call takes (IOV_MAX of Linux)."""

_WRITEBACK_FROM = 1 << 18
"""Bytes of one write from which on the system is asked to write it out at once."""

_MAX_OFFSET = (1 << 63) - 1
"""Largest of the system's signed offsets."""

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
"""Modes of fallocate(2)."""

_CLONE_RANGE = 1 << 30 | 32 << 16 | 0x94 << 8 | 13
"""FICLONERANGE: write, four words, 0x94, 13."""

_NO_COPY_ON_WRITE = 1 << 23
"""FS_NOCOW_FL of Linux."""

_ATTRIBUTES_BYTES = 28
"""Size of struct fsxattr of Linux, which begins with flags and the extent size hint, of four bytes each."""

_HAS_EXTENT_SIZE = 0x800
"""FS_XFLAG_EXTSIZE of Linux."""


class OpenFile(Store):
    """A regular file that is open: read-only is enforced by the descriptor, and closing this closes it."""

    def __init__(self, fd: int, name: str, *, writable: bool) -> None:
        """Take over a descriptor of a regular file, -1 for none yet; errors call the file `name`."""
        self.name = name
        self.writable = writable
        self._fd = fd
        self._process = os.getpid()
        self._starts_writeback = True
        self._locked: set[int] = set()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            try:
                if self._process == os.getpid():
                    warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:  # A warning may be an error.
                self.close()

    def size(self) -> int:
        return self._status().st_size

    def allocated_size(self) -> int | None:
        return self._status().st_blocks * 512

    def identity(self) -> object:
        return identity_of(self._status())

    def _status(self) -> os.stat_result:
        try:
            return os.fstat(self._fd)
        except OSError as exc:
            raise self.failure(exc, "look at") from exc

    def lock(self, use: Use) -> None:
        require_opener(self._process, self.name)  # A child's locks would be those of its parent.
        locks.lock(self._fd, use, self.name, self._locked)

    # --- reading ---

    def pread(self, length: int, offset: int) -> bytes:
        parts: list[bytes] = []
        done = 0
        try:
            while True:
                part = uninterrupted(os.pread, self._fd, length - done, offset + done)
                done += len(part)
                if done == length and not parts:
                    return part
                parts.append(part)
                if done == length or not part:
                    return b"".join(parts)
        except OSError as exc:
            raise self.failure(exc, "read", Span(offset, length)) from exc
        except OverflowError:
            return b"".join(parts)  # No file is that long.

    def direct_pread(self) -> Callable[[int, int], bytes]:
        return partial(os.pread, self._fd)

    def descriptor(self) -> int | None:
        return self._fd

    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        done = 0
        try:
            while done < len(buffer):
                count = uninterrupted(os.preadv, self._fd, [buffer[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as exc:
            raise self.failure(exc, "read", Span(offset, len(buffer))) from exc
        except OverflowError:
            return done
        return done

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

    # --- writing ---

    def pwrite(self, data: Buffer, offset: int) -> None:
        where = Span(offset, len(data))
        self.require_writable(where)
        try:
            done = uninterrupted(os.pwrite, self._fd, data, offset)
            if done < len(data):
                self._write_rest([data], done, offset)
            self._start_writeback(offset, len(data))
        except (OSError, OverflowError) as exc:
            raise self.failure(exc, "write", where) from exc

    def pwritev(self, parts: Sequence[Buffer], offset: int) -> None:
        where = Span(offset, sum(map(len, parts)))
        self.require_writable(where)
        try:
            for first in range(0, len(parts), _MAX_PARTS):
                some = parts[first : first + _MAX_PARTS]
                length = sum(map(len, some))
                done = uninterrupted(os.pwritev, self._fd, some, offset)
                if done < length:
                    self._write_rest(some, done, offset)
                self._start_writeback(offset, length)
                offset += length
        except (OSError, OverflowError) as exc:
            raise self.failure(exc, "write", where) from exc

    def _start_writeback(self, offset: int, length: int) -> None:
        """Let the system begin to write a large range out, so that there is less to wait for in the next flush."""
        if self._starts_writeback and length >= _WRITEBACK_FROM:
            with suppress(OSError):
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)

    def _write_rest(self, parts: Sequence[Buffer], done: int, offset: int) -> None:
        """Write what a short write has left of buffers, of which it wrote `done` bytes. Raises OSError."""
        if not done:
            raise no_space()
        for part in parts:
            view = memoryview(part).cast("B")
            rest, at = view[min(done, len(view)) :], offset + min(done, len(view))
            done -= min(done, len(view))
            offset += len(view)
            while rest:
                count = uninterrupted(os.pwrite, self._fd, rest, at)
                if not count:
                    raise no_space()
                rest, at = rest[count:], at + count

    def flush(self) -> None:
        self.require_writable(Span(0, 0))
        try:
            uninterrupted(os.fdatasync, self._fd)
        except OSError as exc:
            raise self.flush_failure(exc) from exc

    def truncate(self, size: int) -> None:
        self.require_writable(Span(size, 0))
        try:
            uninterrupted(os.ftruncate, self._fd, size)
        except (OSError, OverflowError) as exc:
            raise self.failure(exc, "resize") from exc

    def allocate(self, offset: int, length: int) -> None:
        where = Span(offset, length)
        self.require_writable(where)
        try:
            if length:
                uninterrupted(os.posix_fallocate, self._fd, offset, length)
        except (OSError, OverflowError) as exc:
            raise self.failure(exc, "allocate space in", where) from exc

    def expect_no_flush(self) -> None:
        self._starts_writeback = False

    def clone(self, source: Store, source_offset: int, offset: int, length: int) -> bool:
        if not isinstance(source, OpenFile):
            return False
        self.require_writable(Span(offset, length))
        try:
            place = array("Q", [source._fd, source_offset, length, offset])  # noqa: SLF001 - of the same class
            fcntl.ioctl(self._fd, _CLONE_RANGE, place)
        except (OSError, OverflowError):
            return False  # Another file system, or none that can: a copy will do.
        return True

    def write_zeroes(self, offset: int, length: int) -> None:
        where = Span(offset, length)
        self.require_writable(where)
        doing = "zero a range of"
        if length and not self._fallocated(_ZERO_RANGE, where, doing) and not self._emptied(where, doing):
            super().write_zeroes(offset, length)

    def _emptied(self, where: Span, doing: str) -> bool:
        """Make a hole of a range, up to which the file then reaches; return False where the file system cannot."""
        if not self._fallocated(_PUNCH_HOLE | _KEEP_SIZE, where, doing):
            return False
        if self.size() < where.end:
            self.pwrite(b"\0", where.end - 1)
        return True

    def punch(self, offset: int, length: int) -> None:
        where = Span(offset, length)
        self.require_writable(where)
        if length:
            self._fallocated(_PUNCH_HOLE | _KEEP_SIZE, where, "give back space of")

    def _fallocated(self, mode: int, where: Span, doing: str) -> bool:
        """Call fallocate(2) for a range; return False where the file system cannot do it. Raises StoreError."""
        try:
            return _fallocate(self._fd, mode, where.offset, where.length)
        except (OSError, OverflowError) as exc:
            raise self.failure(exc, doing, where) from exc

    def extent_size_hint(self) -> int | None:
        attributes = bytearray(_ATTRIBUTES_BYTES)
        try:
            fcntl.ioctl(self._fd, _attributes_request(2, 31), attributes)
        except OSError:
            return None
        return array("I", bytes(attributes[4:8]))[0] or None

    def set_extent_size_hint(self, size_bytes: int) -> None:
        """Ask the file system to give the file its space in pieces of a size; where it cannot, nothing happens."""
        attributes = bytearray(_ATTRIBUTES_BYTES)
        with suppress(OSError):
            fcntl.ioctl(self._fd, _attributes_request(2, 31), attributes)
            flags = array("I", bytes(attributes[:4]))[0] | _HAS_EXTENT_SIZE
            attributes[:8] = array("I", [flags, size_bytes]).tobytes()
            fcntl.ioctl(self._fd, _attributes_request(1, 32), attributes)

    def set_no_copy_on_write(self) -> None:
        """Ask the file system to write the file in place; where it cannot, nothing happens."""
        with suppress(OSError):
            flags = array("l", [0])
            fcntl.ioctl(self._fd, _flags_request(2, 1), flags)
            flags[0] |= _NO_COPY_ON_WRITE
            fcntl.ioctl(self._fd, _flags_request(1, 2), flags)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if (
                self._locked and self._process == os.getpid()
            ):  # Children may hold the descriptor, and with it the locks.
                locks.release(fd)
            self._locked.clear()
            try:
                os.close(fd)
            except OSError as exc:
                raise self.failure(exc, "close") from exc


def identity_of(status: os.stat_result) -> object:
    """Return what two names share exactly when they mean the same file, or the same device."""
    return ("device", status.st_rdev) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)


def uninterrupted(call: Callable[..., _T], *arguments: Any) -> _T:
    """Call until no signal interrupts; Python does so by itself, but for a bound, and for handlers that raise."""
    for _ in range(_MAX_INTERRUPTS):
        try:
            return call(*arguments)
        except InterruptedError:
            continue
    return call(*arguments)


def _flags_request(direction: int, number: int) -> int:
    """Return FS_IOC_GETFLAGS of Linux for 2 (read), 1; FS_IOC_SETFLAGS for 1 (write), 2."""
    return direction << 30 | array("l").itemsize << 16 | ord("f") << 8 | number


def _attributes_request(direction: int, number: int) -> int:
    """Return FS_IOC_FSGETXATTR of Linux for 2 (read), 31; FS_IOC_FSSETXATTR for 1 (write), 32."""
    return direction << 30 | _ATTRIBUTES_BYTES << 16 | ord("X") << 8 | number


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Call fallocate(2); return False where the file system cannot do it. Raises OSError, OverflowError."""
    if offset + length > _MAX_OFFSET:
        raise OverflowError("no file is that long")  # The library would take the lower bits.
    function = _fallocate_function()
    if function is None:
        return False

    def call() -> bool:
        code = function(fd, mode, offset, length)
        if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        if code:
            raise OSError(code, os.strerror(code))
        return True

    return uninterrupted(call)


@cache
def _fallocate_function() -> Callable[[int, int, int, int], int] | None:
    """Return fallocate(2) as a function of descriptor, mode, offset and length that returns an error number or 0."""
    import ctypes  # Late: it is slow to import, and reading does without.

    library = ctypes.CDLL(None, use_errno=True)
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return lambda *arguments: ctypes.get_errno() if function(*arguments) else 0
