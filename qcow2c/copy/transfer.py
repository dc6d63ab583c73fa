"""The copy itself: slabs of disks, or of a stream, to a target; threads share the work."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from select import select

from qcow2c.constants import SECTOR_SIZE
from qcow2c.copy import plan as slabs
from qcow2c.copy.buffers import SLAB_BYTES, Buffers
from qcow2c.copy.plan import Piece, PlannedDisk, Scope, Slab
from qcow2c.copy.targets import Target
from qcow2c.disk.disk import Disk
from qcow2c.errors import StoreError
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.store import Progress, reason
from qcow2c.storage.zeros import fill_zeros

if TYPE_CHECKING:
    from typing import Any, BinaryIO


_PATIENCE_SECONDS = 0.5
"""How long an interrupt waits for what a thread is doing."""

_TELL_SECONDS = 0.1
"""How often it is told how far a copy is."""

_ALONE_SLABS = 32
"""Slabs that are copied before it is worth to start threads."""

_PLAIN_THREADS = 2
"""One reads while the other writes: a file takes one write at a time."""

_DATA = Scope()


class Copying(ABC):
    """Something that can be copied: `size` is that of the disk in bytes, once it is known."""

    size = 0

    def __init__(self, *, threads: int | None = None, progress: Progress | None = None) -> None:
        self._workers = threads or min(16, os.cpu_count() or 1)
        self._progress = progress

    def require_other(self, target: object) -> None:  # noqa: B027 - a stream is no file
        """Raise ImageLocked where a path means one of the files that are read."""

    def try_first(self) -> None:  # noqa: B027 - a stream can be read but once
        """Read the first slab before a target is touched: a source that cannot be read then costs none."""

    @abstractmethod
    def slabs(self, scope: Scope, buffers: Buffers, /) -> Iterator[tuple[Slab, memoryview | None]]:
        """Yield the slabs in order, each within a part of the disk that begins at a multiple of the buffers' length.

        One that was read already comes with its buffer.
        """

    @abstractmethod
    def read(self, slab: Slab, scope: Scope, buffer: memoryview, /) -> None:
        """Fill a buffer with a slab, in any thread."""

    def run(self, target: Target, scope: Scope = _DATA) -> None:
        """Copy everything that is in the scope. Raises as reading and the target.

        Each thread reads a slab and writes it through one buffer, which stays in the processor's cache. A small disk is
        copied in this thread; two overlap the reading and the writing of a large one; from the first slab on that
        needs a codec, there is a thread a processor.
        """
        line = _Line(self, target, scope, Buffers(self._workers + 1, target.slab_bytes))
        if not line.work_alone(self._tell, alone=self._workers == 1):
            line.work_in_threads(self._tell, self._workers)
        target.finish(self.size)
        self._tell(self.size)

    def _tell(self, done: int) -> None:
        if self._progress is not None and self.size:
            self._progress(done, self.size)


_Numbered = tuple[int, tuple[Slab, memoryview | None]]
"""A slab, with its buffer if it was read already, behind its number."""


class _Line:
    """The slabs on their way: a thread takes the next one, reads and prepares it, and hands it over in its turn."""

    def __init__(self, copy: Copying, target: Target, scope: Scope, buffers: Buffers) -> None:
        self._copy = copy
        self._target = target
        self._scope = scope
        self._buffers = buffers
        self._slabs: Iterator[_Numbered] = enumerate(copy.slabs(scope, buffers))
        self._plan_lock = threading.Lock()
        self._turn = threading.Condition()
        self._next = 0
        """Number of the slab whose turn it is."""
        self._done = 0
        """Bytes of the disk that the target has taken."""
        self._failure: BaseException | None = None
        self._met_codec = False

    def work_alone(self, tell: Callable[[int], None], *, alone: bool) -> bool:
        """Copy in this thread, all if it is to be alone, else what is little; return whether all is done."""
        told = time.monotonic()
        for number, (slab, buffer) in self._slabs:
            if not alone and (number >= _ALONE_SLABS or self._target.uses_codec or slab.needs_codec):
                self._slabs = chain([(number, (slab, buffer))], self._slabs)
                return False
            self._hand_over(slab, *self._prepared(slab, buffer))
            if time.monotonic() - told >= _TELL_SECONDS:
                tell(self._done)
                told = time.monotonic()
        return True

    def work_in_threads(self, tell: Callable[[int], None], count: int) -> None:
        """Copy the rest in up to `count` threads, and tell how far it is from time to time. Raises what one raised."""
        started: list[threading.Thread] = []

        def start(most: int) -> None:
            while len(started) < most:
                worker = threading.Thread(target=self._work, daemon=True)
                worker.start()
                started.append(worker)

        try:
            start(count if self._target.uses_codec else min(count, _PLAIN_THREADS))
            for worker in started:
                while worker.is_alive():
                    worker.join(_TELL_SECONDS)
                    tell(self._done)
                    if self._met_codec:
                        start(count)
        except BaseException as exc:
            self._fail(exc)
            # An interrupt does not wait for a pipe without a writer or a reader: such a thread stays behind.
            patience = None if isinstance(exc, Exception) else _PATIENCE_SECONDS
            for worker in started:
                worker.join(patience)
            raise
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while self._one():
                pass
        except BaseException as exc:  # It would be lost here: the thread that waits for this one raises it.
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        with self._turn:
            self._failure = self._failure or exc
            self._turn.notify_all()
        self._buffers.close()

    def _stopped(self) -> bool:
        return self._failure is not None

    def _one(self) -> bool:
        """Copy a slab; return False if there is none, or no reason to go on."""
        with self._plan_lock:
            if self._stopped():
                return False
            number, (slab, buffer) = next(self._slabs, _NOTHING)
        if slab is None:
            return False
        self._met_codec = self._met_codec or slab.needs_codec
        buffer, prepared = self._prepared(slab, buffer)
        with self._turn:
            self._turn.wait_for(lambda: self._next == number or self._stopped())
        if self._stopped():
            return False
        self._hand_over(slab, buffer, prepared)  # Its turn lasts until the next number is set: no other thread is here.
        with self._turn:
            self._turn.notify_all()
        return True

    def _prepared(self, slab: Slab, buffer: memoryview | None) -> tuple[memoryview | None, Any]:
        """Read a slab, unless it was, and prepare it; without a buffer there is nothing left to be taken but zeros."""
        if not slab.pieces or (buffer is None and self._target.clone(slab)):
            return None, None
        if buffer is None:
            buffer = self._buffers.take()
            self._copy.read(slab, self._scope, buffer)
        return buffer, self._target.prepare(slab, buffer)

    def _hand_over(self, slab: Slab, buffer: memoryview | None, prepared: Any) -> None:
        """Give the target what was prepared, and the buffer back. The next slab's turn comes."""
        if buffer is None:
            for start, end in slab.zeros:
                self._target.zero(start, end)
        else:
            self._target.take(slab, buffer, prepared)
            self._buffers.give(buffer)
        self._done = slab.end
        self._next += 1


_NOTHING: tuple[int, tuple[None, None]] = (-1, (None, None))


class DiskCopy(Copying):
    """Copies disks consecutively."""

    def __init__(
        self, disks: Sequence[PlannedDisk], *, threads: int | None = None, progress: Progress | None = None
    ) -> None:
        super().__init__(threads=threads, progress=progress)
        self._disks = disks
        self.size = disks[-1].end if disks else 0
        self._blind = any(_salvages(planned.disk) for planned in disks)

    def slabs(self, scope: Scope, buffers: Buffers) -> Iterator[tuple[Slab, memoryview | None]]:
        found = slabs.plan(
            self._disks,
            buffers.length,
            with_zeros=scope.with_zeros,
            top_only=scope.top_only,
            blind=self._blind,
        )
        return ((slab, None) for slab in found)

    def require_other(self, target: object) -> None:
        for planned in self._disks:
            planned.require_other(target)

    def try_first(self) -> None:
        if self._blind:
            return  # What cannot be read is zeros.
        first = next((slab for slab, _ in self.slabs(_DATA, Buffers(0)) if slab.pieces), None)
        if first is not None:
            slabs.read(first, memoryview(bytearray(SLAB_BYTES)), below=False)

    def read(self, slab: Slab, scope: Scope, buffer: memoryview) -> None:
        slabs.read(slab, buffer, below=scope.below)


def _salvages(disk: Disk) -> bool:
    return disk.image is not None and disk.image.layer.salvage is not None


class StreamCopy(Copying):
    """Copies raw bytes that can be read but once; their end tells the size."""

    def __init__(self, file: BinaryIO, *, threads: int | None = None) -> None:
        super().__init__(threads=threads)
        self._file = file
        self._head = b""

    def begin(self, length: int) -> bytes:
        """Return the first bytes, fewer where there are no more; they are copied all the same. Raises StoreError."""
        head = memoryview(bytearray(length))
        done = 0
        while done < length and (count := self._read(head[done:])):
            done += count
        self._head = bytes(head[:done])
        return self._head

    def keep(self, place: BinaryIO) -> None:
        """Write all bytes to another file, instead of copying them. Raises StoreError, OSError."""
        place.write(self._head)
        buffer = memoryview(bytearray(SLAB_BYTES))
        while count := self._read(buffer):
            place.write(buffer[:count])

    def slabs(self, _scope: Scope, buffers: Buffers) -> Iterator[tuple[Slab, memoryview | None]]:
        while True:
            buffer = buffers.take()
            head, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
            done = len(head)
            buffer[:done] = head
            while done < len(buffer):
                count = self._read(buffer[done:])
                if not count:
                    break
                done += count
            whole = -(-done // SECTOR_SIZE) * SECTOR_SIZE
            fill_zeros(buffer[done:whole])
            if not whole:
                return
            start, self.size = self.size, self.size + whole
            piece = Piece(start, whole, None, 0, -1)
            yield Slab(start, self.size, [piece], ()), buffer
            if whole < len(buffer):
                return

    def _read(self, buffer: memoryview) -> int:
        """Read some bytes, none only at the end; wait for them. Raises StoreError."""
        try:
            while (count := self._file.readinto(buffer)) is None:  # type: ignore[attr-defined]
                select([self._file], [], [])  # The pipe was made one that does not wait.
        except OSError as exc:
            raise StoreError(f"Could not read the source: {reason(exc)}", errno=exc.errno) from exc
        return int(count)

    def read(self, _slab: Slab, _scope: Scope, _buffer: memoryview) -> None:
        raise AssertionError("each slab comes with its buffer")
