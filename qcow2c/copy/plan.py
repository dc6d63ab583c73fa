"""What there is to copy of disks: slabs, planned from their maps, read in big pieces, and searched for zeros.

A slab is a range of the disk to be made, small enough for a buffer. Reading and searching are positional and release
the interpreter's lock, so that threads may share a plan.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from qcow2c.constants import SECTOR_SIZE
from qcow2c.copy.buffers import SLAB_BYTES
from qcow2c.disk.disk import Disk
from qcow2c.disk.map import DATA, OFFSET, PRESENT, ZERO
from qcow2c.errors import ImageLocked, Span, StoreError
from qcow2c.format.geometry import ByteRange
from qcow2c.layers.chain import files_of, layers_of
from qcow2c.layers.compressed import read_compressed
from qcow2c.light import NamedTuple
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.open_file import identity_of
from qcow2c.storage.store import Store
from qcow2c.storage.zeros import fill_zeros


class Piece(NamedTuple):
    """Bytes of a slab that hold data: where they go, and where they come from.

    `offset` is the place in the layer's data store, or -1 where only the disk knows how to read them. Without a
    `source` they were read already.
    """

    start: int
    length: int
    source: PlannedDisk | None
    depth: int
    offset: int


class Slab(NamedTuple):
    """A range of the target; without pieces it has any size. What is in neither `pieces` nor `zeros` is left alone."""

    start: int
    end: int
    pieces: Sequence[Piece]
    zeros: Sequence[ByteRange]
    """What must read as zeros."""

    @property
    def needs_codec(self) -> bool:
        """Whether reading it may be more than copying bytes."""
        return any(piece.offset < 0 and piece.source is not None for piece in self.pieces)


class Scope(NamedTuple):
    """What of the disks is copied, besides data."""

    with_zeros: bool = False
    """Ranges that are zeros, too: the target holds something else."""
    top_only: bool = False
    """Not what the top layers do not decide: the target lies on what does."""
    below: bool = False
    """Between the pieces of a slab what the disk has there, not zeros: the target takes whole clusters."""


class PlannedDisk:
    """A disk at its place in the target, or `length` bytes of it from byte `first` on, which go to the same place.

    A part may begin and end anywhere; zeros fill its last sector. With `salvage`, sectors that cannot be read are
    zeros.
    """

    def __init__(
        self, disk: Disk, at: int, *, first: int = 0, length: int | None = None, salvage: bool = False
    ) -> None:
        self.disk = disk
        self.salvage = salvage
        self._lost: list[tuple[int, Exception]] = []
        self.first = first
        self.length = disk.size if length is None else length
        self.start = at - first
        """Where byte 0 of the disk would lie, which may be before the target."""
        self.end = at + -(-self.length // SECTOR_SIZE) * SECTOR_SIZE
        self._layers = list(layers_of(disk.layer))
        self.stores: list[Store] = [layer.data_store for layer in self._layers]
        """The data store of each layer, by depth."""

    def require_other(self, target: object) -> None:
        """Raise ImageLocked where a target is one of the files that are read: not all sources are locked.

        What is no path is left to the caller.
        """
        if not isinstance(target, str | os.PathLike):
            return
        try:
            status = os.stat(plain_path(target))
        except OSError:
            return
        if any(identity_of(status) in files_of(layer) for layer in self._layers):
            name = os.fsdecode(target)
            raise ImageLocked(f'Failed to get "write" lock of {name!r}: this very copy reads it', filename=name)

    def read(self, piece: Piece, buffer: memoryview) -> None:
        """Fill a buffer with a piece. Raises CorruptMetadata, CorruptData, MissingKey, StoreError."""
        try:
            if piece.offset >= 0:
                done = self.stores[piece.depth].readinto_at(buffer, piece.offset)
            else:
                done = self._read_unplaced(piece, buffer)
            if done < len(buffer):  # Past the end of a file, which the layer judges.
                self.disk.read_into(buffer[done:], piece.start + done - self.start)
        except StoreError as exc:
            if not self.salvage:
                raise
            self._read_by_parts(buffer, piece.start - self.start, exc)

    def _read_unplaced(self, piece: Piece, buffer: memoryview) -> int:
        """Read compressed clusters in bulk; return how many bytes were read."""
        layer = self._layers[piece.depth]
        inside = max(0, min(len(buffer), layer.disk_size - (piece.start - self.start)))
        read_compressed(layer, buffer[:inside], piece.start - self.start)
        return inside

    def _read_by_parts(self, buffer: memoryview, offset: int, error: StoreError) -> None:
        """Read what can be read of bytes that cannot be read together, down to sectors."""
        if len(buffer) <= SECTOR_SIZE:
            fill_zeros(buffer)
            self._lost.append((offset, error))
            return
        middle = len(buffer) // 2 // SECTOR_SIZE * SECTOR_SIZE or SECTOR_SIZE
        for part, at in ((buffer[:middle], offset), (buffer[middle:], offset + middle)):
            try:
                self.disk.read_into(part, at)
            except StoreError as exc:
                self._read_by_parts(part, at, exc)

    def salvaged(self) -> list[tuple[int, Exception]]:
        """Return the offsets at which something could not be read, and why."""
        image = self.disk.image
        ranges = image.salvaged if image is not None else ()
        return sorted([*self._lost, *((lost.guest.offset, lost.error) for lost in ranges)], key=lambda lost: lost[0])

    def lost_ranges(self) -> list[tuple[Span, Exception]]:
        """Return the ranges of the target that are zeros because they could not be read, in order, merged, and why."""
        image = self.disk.image
        ranges = image.salvaged if image is not None else ()
        parts = [(Span(offset, SECTOR_SIZE), error) for offset, error in self._lost]
        parts += [(lost.guest, lost.error) for lost in ranges]
        found: list[tuple[Span, Exception]] = []
        for span, error in sorted(parts, key=lambda part: part[0]):
            at = Span(self.start + span.offset, span.length)
            if found and found[-1][0].end >= at.offset and str(found[-1][1]) == str(error):
                first = found[-1][0]
                found[-1] = Span(first.offset, max(first.end, at.end) - first.offset), found[-1][1]
            else:
                found.append((at, error))
        return found


def plan(
    disks: Sequence[PlannedDisk],
    slab_bytes: int = SLAB_BYTES,
    *,
    with_zeros: bool = False,
    top_only: bool = False,
    blind: bool = False,
) -> Iterator[Slab]:
    """Yield what must be copied, in order, in slabs that begin and end at multiples of `slab_bytes`.

    `with_zeros` names the ranges that are zeros, too; `top_only` leaves out what the top layers do not decide;
    `blind` does without maps, which may be damaged, and takes all for data. Raises as `DiskMap.columns`.
    """
    pieces: list[Piece] = []
    empty: list[ByteRange] = []
    current = -1
    size = disks[-1].end if disks else 0

    def slab() -> Slab:
        start = current * slab_bytes
        return Slab(start, min(size, start + slab_bytes), pieces, empty)

    for start, end, source, depth, flags, offset in _extents(disks, blind=blind):
        is_data = flags & (DATA | ZERO) == DATA
        if (top_only and (depth or (is_data and not flags & PRESENT))) or not (is_data or with_zeros):
            continue
        at = start
        while at < end:
            number = at // slab_bytes
            if number != current:
                if pieces or empty:
                    yield slab()
                    pieces, empty = [], []
                current = number
            whole = end // slab_bytes * slab_bytes
            if not is_data and at == number * slab_bytes < whole:
                yield Slab(at, whole, (), [ByteRange(at, whole)])  # However many slabs: zeros need no buffer.
                at = whole
                continue
            stop = min(end, (number + 1) * slab_bytes)
            if is_data:
                where = offset + at - start if flags & OFFSET else -1
                pieces.append(Piece(at, stop - at, source, depth, where))
            else:
                empty.append(ByteRange(at, stop))
            at = stop
    if pieces or empty:
        yield slab()


def _extents(disks: Sequence[PlannedDisk], *, blind: bool) -> Iterator[tuple[int, int, PlannedDisk, int, int, int]]:
    """Yield start, end, disk, depth, flags and offset of the extents of adjacent disks."""
    for planned in disks:
        if blind:
            at = planned.start + planned.first
            yield at, at + planned.length, planned, 0, DATA | PRESENT, 0
            continue
        for columns in planned.disk.map.columns(planned.first, planned.length):
            for start, length, depth, flags, offset in zip(*columns, strict=True):
                at = planned.start + start
                yield at, at + length, planned, depth, flags, offset


def read(slab: Slab, buffer: memoryview, *, below: bool = False) -> None:
    """Fill a buffer with a slab that has pieces; what is in none of them is zeros, or, with `below`, what the disk has.

    Raises as `PlannedDisk.read`.
    """
    if below:
        source = slab.pieces[0].source
        assert source is not None, "only disks have anything below"
        source.disk.read_into(buffer[: slab.end - slab.start], slab.start - source.start)
        return
    done = slab.start
    for piece in slab.pieces:
        if piece.start > done:
            fill_zeros(buffer[done - slab.start : piece.start - slab.start])
        done = piece.start + piece.length
        if piece.source is not None:
            piece.source.read(piece, buffer[piece.start - slab.start : done - slab.start])
    fill_zeros(buffer[done - slab.start : slab.end - slab.start])
