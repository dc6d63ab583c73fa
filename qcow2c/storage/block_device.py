"""`BlockDevice`: a block device that the caller names: its size cannot change, what is behind the content is there.

Its system calls are those of `open_file.py`, and ioctl(2) for its size, for zeros and for space that is given back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from qcow2c.errors import Span
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.open_file import uninterrupted
from qcow2c.storage.store import Buffer, Store
from qcow2c.storage.thread_locks import fork_safe

_GET_SIZE = 2 << 30 | array("L").itemsize << 16 | 0x12 << 8 | 114
"""BLKGETSIZE64 of Linux: read, size_t, 0x12, 114."""

_GET_SECTOR_SIZE, _DISCARD, _ZERO_OUT = (0x12 << 8 | number for number in (104, 119, 127))
"""BLKSSZGET, BLKDISCARD, BLKZEROOUT."""

_HEAD_BYTES = 4096
"""What is zeroed before anything new is written: an old header must not look complete."""


class BlockDevice(LocalFile):
    """A block device, which is as a file of its size; while it is open for writing nothing else has it so (O_EXCL).

    It can be cut off and grow again for as long as it is open, up to its own size: behind the end there are zeros, as
    in a file. What is behind the end when it is closed is what was there.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False, name: str | None = None) -> None:
        """Errors call it `name`. Raises StoreError, also where it is mounted, or another has it for itself."""
        self._lock = fork_safe(threading.Lock())
        self._end = 0
        self._was_emptied = False
        super().__init__(path, writable=writable, name=name)
        try:
            self._capacity = self._asked(_GET_SIZE, "Q")
            self._sector = self._asked(_GET_SECTOR_SIZE, "i")
        except OSError as exc:
            self.close()
            raise self.failure(exc, "open") from exc
        self._end = self._capacity

    def _open(self, *, create: bool) -> None:  # noqa: ARG002 - a device is there
        access = os.O_RDWR | os.O_EXCL if self.writable else os.O_RDONLY
        self._require_device(os.stat(self.path))
        self._fd = os.open(self.path, access | os.O_CLOEXEC | os.O_NONBLOCK)
        self._require_device(os.fstat(self._fd))

    def _require_device(self, status: os.stat_result) -> None:
        if not stat.S_ISBLK(status.st_mode):
            raise OSError("it is no block device any more")

    def _asked(self, request: int, code: str) -> int:
        answer = array(code, [0])
        fcntl.ioctl(self._fd, request, answer)
        return answer[0]

    def size(self) -> int:
        return self._end

    def capacity(self) -> int | None:
        return self._capacity

    def pread(self, length: int, offset: int) -> bytes:
        return super().pread(max(0, min(length, self._end - offset)), offset)

    def direct_pread(self) -> Callable[[int, int], bytes]:
        return self.pread

    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        return super().readinto_at(buffer[: max(0, self._end - offset)], offset)

    def extents(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        return Store.extents(self, start, min(end, self._end))  # No device says where it holds data.

    # --- writing ---

    def pwrite(self, data: Buffer, offset: int) -> None:
        self._reach(Span(offset, len(data)))
        super().pwrite(data, offset)

    def pwritev(self, parts: Sequence[Buffer], offset: int) -> None:
        self._reach(Span(offset, sum(map(len, parts))))
        super().pwritev(parts, offset)

    def _reach(self, where: Span) -> None:
        """Let the content reach the end of a range that is to be written, with zeros before it. Raises StoreError."""
        self.require_writable(where)
        if not where.length:
            return
        if where.end > self._capacity:
            problem = OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: it has {self._capacity} bytes")
            raise self.failure(problem, "write", where)
        with self._lock:
            self._forget_head()
            if where.offset > self._end:
                self._zero(self._end, where.offset)
            self._end = max(self._end, where.end)

    def _forget_head(self) -> None:
        """Zero the old content's beginning, durably, when the first of the new one comes."""
        if self._was_emptied:
            self._was_emptied = False
            self._zero(0, min(_HEAD_BYTES, self._capacity))
            self.flush()

    def truncate(self, size: int) -> None:
        self.require_writable(Span(size, 0))
        if size > self._capacity:
            message = f"Cannot grow device files (to {size} bytes, it has {self._capacity})"
            raise self.failure(OSError(errno.ENOSPC, message), "resize")
        with self._lock:
            if size > self._end:
                self._forget_head()
                self._zero(self._end, size)
            self._was_emptied = size == 0 and self._capacity > 0
            self._end = size

    def allocate(self, offset: int, length: int) -> None:
        """All of it has its place."""
        where = Span(offset, length)
        self.require_writable(where)
        if where.end > self._end:
            self.truncate(where.end)

    def write_zeroes(self, offset: int, length: int) -> None:
        where = Span(offset, length)
        self._reach(where)
        self._zero(where.offset, where.end)

    def punch(self, offset: int, length: int) -> None:
        where = Span(offset, length)
        self.require_writable(where)
        start = -(-offset // self._sector) * self._sector
        end = min(where.end, self._end) // self._sector * self._sector
        if start < end:
            with suppress(OSError, OverflowError):  # Not every device can.
                self._control(_DISCARD, start, end)

    def _zero(self, start: int, end: int) -> None:
        """Write zeros, whole sectors of them by the device itself. Raises StoreError."""
        first = min(end, -(-start // self._sector) * self._sector)
        last = max(first, end // self._sector * self._sector)
        for at, stop in ((start, first), (last, end)):
            if at < stop:
                super().pwrite(bytes(stop - at), at)
        if first < last:
            try:
                self._control(_ZERO_OUT, first, last)
            except (OSError, OverflowError) as exc:
                raise self.failure(exc, "zero a range of", Span(first, last - first)) from exc

    def _control(self, request: int, start: int, end: int) -> None:
        """Let the device do something with a range of whole sectors. Raises OSError, OverflowError."""
        uninterrupted(fcntl.ioctl, self._fd, request, array("Q", [start, end - start]))

    # --- its name ---

    def flush_name(self) -> None:
        """Its name is the system's."""

    def remove(self) -> None:
        """It stays where it is."""
