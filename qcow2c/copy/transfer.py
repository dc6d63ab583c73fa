"""The copy itself: slabs of disks, or of a stream, through threads to a target."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from select import select
from typing import BinaryIO

from qcow2c.copy import plan as slabs
from qcow2c.copy.affinity import keep_to, shares
from qcow2c.copy.buffers import SLAB_BYTES, Buffers
from qcow2c.copy.plan import Piece, PlannedDisk, Scope, Slab
from qcow2c.copy.targets import Target
from qcow2c.disk.disk import Disk
from qcow2c.errors import StoreError
from qcow2c.storage.store import Progress, reason
from qcow2c.storage.zeros import fill_zeros
from qcow2c.structs import SECTOR_SIZE

_IN_USE = 4
"""Buffers that a target keeps for a while, beside those that threads work on."""

_PATIENCE_SECONDS = 0.5
"""How long an interrupt waits for what a thread is doing."""

_TELL_SECONDS = 0.1
"""How often it is told how far a copy is."""

_DATA = Scope()


class Copying(ABC):
    """Something that can be copied: `size` is that of the disk in bytes, once it is known."""

    size = 0

    def __init__(self, *, threads: int | None = None, progress: Progress | None = None) -> None:
        self._workers = threads or min(16, os.cpu_count() or 1)
        self._progress = progress

    def try_first(self) -> None:  # noqa: B027 - a stream can be read but once
        """Read the first slab before a target is touched: a source that cannot be read then costs none."""

    @abstractmethod
    def slabs(self, scope: Scope, buffers: Buffers, /) -> Iterator[tuple[Slab, memoryview | None]]:
        """Yield the slabs in order; one that was read already comes with its buffer."""

    @abstractmethod
    def read(self, slab: Slab, scope: Scope, buffer: memoryview, /) -> None:
        """Fill a buffer with a slab, in a thread."""

    def run(self, target: Target, scope: Scope = _DATA) -> None:
        """Copy everything that is in the scope. Raises as reading and the target."""
        _Workers(self, target, scope, self._workers).go(self._tell)
        target.finish(self.size)
        self._tell(self.size)

    def _tell(self, done: int) -> None:
        if self._progress is not None and self.size:
            self._progress(done, self.size)


class _Workers:
    """Threads that each take the next slab, read it, prepare it, and hand it to the target when it is its turn."""

    def __init__(self, copy: Copying, target: Target, scope: Scope, workers: int) -> None:
        self._copy = copy
        self._target = target
        self._scope = scope
        self._buffers = Buffers(workers + _IN_USE)
        self._slabs = enumerate(copy.slabs(scope, self._buffers))
        self._plan_lock = threading.Lock()
        self._turn = threading.Condition()
        self._next = 0
        """Number of the slab whose turn it is."""
        self._done = 0
        """Bytes of the disk that the target has taken."""
        self._failure: BaseException | None = None
        self._workers = [threading.Thread(target=self._work, args=(cpus,), daemon=True) for cpus in shares(workers)]

    def go(self, tell: Callable[[int], None]) -> None:
        """Do it all, and tell how far it is from time to time. Raises what a thread raised."""
        started: list[threading.Thread] = []
        try:
            for worker in self._workers:
                worker.start()
                started.append(worker)
            for worker in started:
                while worker.is_alive():
                    worker.join(_TELL_SECONDS)
                    tell(self._done)
        except BaseException as exc:
            self._fail(exc)
            # An interrupt does not wait for a pipe without a writer or a reader: such a thread stays behind.
            patience = None if isinstance(exc, Exception) else _PATIENCE_SECONDS
            for worker in started:
                worker.join(patience)
            raise
        if self._failure is not None:
            raise self._failure

    def _work(self, cpus: set[int]) -> None:
        try:
            keep_to(cpus)
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
        prepared = None
        if slab.pieces and (buffer is not None or not self._target.clone(slab)):
            if buffer is None:
                buffer = self._buffers.take()
                self._copy.read(slab, self._scope, buffer)
            prepared = self._target.prepare(slab, buffer)
        with self._turn:
            self._turn.wait_for(lambda: self._next == number or self._stopped())
        if self._stopped():
            return False
        # Its turn lasts until the next number is set: no other thread is here.
        if buffer is None:
            for start, end in slab.zeros:
                self._target.zero(start, end)
        else:
            self._target.take(slab, buffer, prepared, partial(self._buffers.give, buffer))
        self._done = slab.end
        with self._turn:
            self._next += 1
            self._turn.notify_all()
        return True


_NOTHING: tuple[int, tuple[Slab | None, memoryview | None]] = (-1, (None, None))


class DiskCopy(Copying):
    """Copies disks consecutively."""

    def __init__(
        self, disks: Sequence[PlannedDisk], *, threads: int | None = None, progress: Progress | None = None
    ) -> None:
        super().__init__(threads=threads, progress=progress)
        self._disks = disks
        self.size = disks[-1].end if disks else 0
        self._blind = any(_salvages(planned.disk) for planned in disks)

    def slabs(self, scope: Scope, _buffers: Buffers) -> Iterator[tuple[Slab, memoryview | None]]:
        plan = slabs.plan(self._disks, with_zeros=scope.with_zeros, top_only=scope.top_only, blind=self._blind)
        return ((slab, None) for slab in plan)

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
            done, head, self._head = len(self._head), self._head, b""
            buffer[:done] = head
            while done < SLAB_BYTES:
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
            if whole < SLAB_BYTES:
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
