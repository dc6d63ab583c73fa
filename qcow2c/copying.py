"""The copy itself: slabs of disks, or of a stream, through threads to a target."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

from qcow2c import slabs
from qcow2c.layer import fill_zeros
from qcow2c.reader import Reader
from qcow2c.slabs import SLAB_BYTES, Buffers, Piece, PlannedDisk, Slab
from qcow2c.structs import SECTOR_SIZE
from qcow2c.targets import Target

_AHEAD = 4
"""Slabs that wait for their turn, beside those that threads work on."""

_IN_USE = 5
"""Buffers that are in none of the slabs that wait: the one that is taken, and those that a target keeps for a while."""

Progress = Callable[[int, int], object]
"""Told how many bytes of how many are done."""


class Copying(ABC):
    """Something that can be copied: `size` is that of the disk in bytes, once it is known."""

    size = 0
    with_zeros = top_only = below = False
    """What of the disks is to be copied: see `DiskCopy`."""

    def __init__(self, *, threads: int | None = None, progress: Progress | None = None) -> None:
        self._workers = threads or max(2, min(16, os.cpu_count() or 2))
        self._progress = progress

    @abstractmethod
    def slabs(self, buffers: Buffers) -> Iterator[tuple[Slab, memoryview | None]]:
        """Yield the slabs in order; one that was read already comes with its buffer."""

    @abstractmethod
    def read(self, slab: Slab, buffer: memoryview) -> None:
        """Fill a buffer with a slab, in a thread."""

    def run(self, target: Target) -> None:
        """Copy everything. Raises as reading and the target."""
        ahead = self._workers + _AHEAD
        buffers = Buffers(ahead + _IN_USE)

        def work(item: tuple[Slab, memoryview | None]) -> tuple[Slab, memoryview | None, Any]:
            slab, buffer = item
            if not slab.pieces:
                return slab, None, None
            if buffer is None:
                buffer = buffers.take()
                self.read(slab, buffer)
            return slab, buffer, target.prepare(slab, buffer)

        for slab, buffer, prepared in slabs.in_order(self.slabs(buffers), work, workers=self._workers, ahead=ahead):
            if buffer is None:
                for start, end in slab.zeros:
                    target.zero(start, end)
            else:
                target.take(slab, buffer, prepared, partial(buffers.give, buffer))
            if self._progress is not None and self.size:
                self._progress(slab.end, self.size)
        target.finish(self.size)
        if self._progress is not None:
            self._progress(self.size, self.size)


class DiskCopy(Copying):
    """Copies disks, one behind the other.

    `with_zeros`, `top_only` and `blind` are as in `slabs.plan`; with `below`, what lies between pieces is read, too.
    """

    def __init__(self, disks: Sequence[PlannedDisk], **how: Any) -> None:
        super().__init__(**how)
        self._disks = disks
        self.size = disks[-1].end if disks else 0
        self._blind = any(_salvages(planned) for planned in disks)

    def slabs(self, buffers: Buffers) -> Iterator[tuple[Slab, memoryview | None]]:
        plan = slabs.plan(self._disks, with_zeros=self.with_zeros, top_only=self.top_only, blind=self._blind)
        return ((slab, None) for slab in plan)

    def read(self, slab: Slab, buffer: memoryview) -> None:
        slabs.read(slab, buffer, below=self.below)


def _salvages(planned: PlannedDisk) -> bool:
    return isinstance(planned.disk.layer, Reader) and planned.disk.layer.salvage is not None


class StreamCopy(Copying):
    """Copies raw bytes that can be read but once; their end tells the size."""

    def __init__(self, file: BinaryIO, **how: Any) -> None:
        super().__init__(**how)
        self._file = file

    def slabs(self, buffers: Buffers) -> Iterator[tuple[Slab, memoryview | None]]:
        while True:
            buffer = buffers.take()
            done = 0
            while done < SLAB_BYTES:
                count = self._file.readinto(buffer[done:])  # type: ignore[attr-defined]
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

    def read(self, slab: Slab, buffer: memoryview) -> None:
        raise AssertionError("each slab comes with its buffer")
