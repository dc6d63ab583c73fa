"""Where a copy goes: raw files, new images, images that are there, pipes. Each takes the slabs of a plan.

`prepare` runs in threads, on any slab at any time; `take` in the order of the disk. Guest offsets and sizes are bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from select import select

from qcow2c.builder.image_builder import ImageBuilder
from qcow2c.constants import SECTOR_SIZE
from qcow2c.copy.buffers import SLAB_BYTES
from qcow2c.copy.plan import Slab
from qcow2c.copy.zero_detection import data_ranges
from qcow2c.errors import StoreError
from qcow2c.format.codecs import Compressor
from qcow2c.format.geometry import ByteRange
from qcow2c.format.tables import SUBCLUSTERS_ALLOCATED
from qcow2c.image import Image
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.store import Store, reason
from qcow2c.storage.zeros import zeros

if TYPE_CHECKING:
    from typing import Any, BinaryIO


Write = Callable[[memoryview], object]
"""Takes all of some bytes, or raises."""


class Target(ABC):
    """Takes a copy. `unit` is the granularity in bytes in which zeros are looked for, 0: not at all."""

    uses_codec = False
    """Whether `prepare` has so much to do that threads should share it."""

    def __init__(self, unit: int, cluster_size: int = 0) -> None:
        self.unit = unit
        self.slab_bytes = max(SLAB_BYTES, cluster_size)
        """Slabs begin at a multiple of it."""

    def ranges(self, slab: Slab, buffer: memoryview) -> list[ByteRange]:
        """Return the ranges within a slab's buffer that hold data, in whole units."""
        length = slab.end - slab.start
        return data_ranges(buffer[:length], self.unit) if self.unit else [ByteRange(0, length)]

    def clone(self, slab: Slab, /) -> bool:  # noqa: ARG002 - most targets cannot
        """Take a slab without its bytes, where the file system can share them, in a thread; return whether it did."""
        return False

    def prepare(self, slab: Slab, buffer: memoryview, /) -> Any:
        """Do what can be done with a slab that was read, in a thread; what it returns goes to `take`."""
        return self.ranges(slab, buffer)

    @abstractmethod
    def take(self, slab: Slab, buffer: memoryview, prepared: Any, /) -> None:
        """Take a slab; its buffer is used again then. Raises StoreError."""

    def zero(self, start: int, end: int) -> None:  # noqa: B027 - a pipe is never asked for it
        """Let a range read as zeros. Raises StoreError."""

    @abstractmethod
    def finish(self, size: int, /) -> None:
        """Complete a copy of a disk of so many bytes. Raises StoreError."""


class RawTarget(Target):
    """A raw file, written by whichever thread has read; with `wipe` it has contents, which zeros must replace."""

    def __init__(self, store: Store, *, unit: int, wipe: bool = False, durable: bool = True) -> None:
        super().__init__(unit)
        self._store = store
        self._wipe = wipe
        self._durable = durable
        self._clones = bool(unit) and not wipe

    def clone(self, slab: Slab) -> bool:
        for piece in slab.pieces if self._clones else ():
            if piece.source is None or piece.offset < 0:
                return False
            store = piece.source.stores[piece.depth]
            if not self._store.clone(store, piece.offset, piece.start, piece.length):
                self._clones = False  # The first one tells.
                return False
        return self._clones

    def prepare(self, slab: Slab, buffer: memoryview) -> None:
        ranges = self.ranges(slab, buffer)
        if self._wipe:
            self._replace(slab, buffer, ranges)
            return
        for start, end in ranges:
            self._store.pwrite(buffer[start:end], slab.start + start)

    def _replace(self, slab: Slab, buffer: memoryview, ranges: list[ByteRange]) -> None:
        """Write data and zeros over what is there; what lies between the pieces stays."""
        asked = _asked(slab)
        for start, end in _in_both(asked, ranges):
            self._store.pwrite(buffer[start:end], slab.start + start)
        for start, end in _in_both(asked, _between(ranges, slab.end - slab.start)):
            self.zero(slab.start + start, slab.start + end)
        for start, end in slab.zeros:
            self.zero(start, end)

    def take(self, _slab: Slab, _buffer: memoryview, _prepared: Any) -> None:
        """It is written."""

    def zero(self, start: int, end: int) -> None:
        if self.unit:
            self._store.write_zeroes(start, end - start)
        else:
            self._store.allocate(start, end - start)
            if self._wipe:
                self._store.write_zeroes(start, end - start)

    def finish(self, size: int) -> None:
        if self._store.size() < size:
            self._store.truncate(size)
        if self._durable:
            self._store.flush()


class NewImageTarget(Target):
    """A new image that is built in one pass: data only, compressed where there is a compressor."""

    def __init__(
        self,
        builder: ImageBuilder,
        *,
        find_zeros: bool = True,
        compress: Compressor | None = None,
        before_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`before_end` is called when all of the disk is there, and the image is not complete yet."""
        self._cluster_size = builder.geometry.cluster_size
        unit = builder.geometry.subcluster_size if compress is None else self._cluster_size
        super().__init__(max(unit, SECTOR_SIZE) if find_zeros else 0, self._cluster_size)
        self.uses_codec = compress is not None
        self._builder = builder
        self._compress = compress
        self._before_end = before_end

    def prepare(self, slab: Slab, buffer: memoryview) -> Any:
        ranges = self.ranges(slab, buffer)
        if self._compress is None:
            return ranges
        size = self._cluster_size
        packed: list[tuple[int, bytes | None]] = []
        for start, end in ranges:
            for at in range(start, end, size):
                cluster = bytes(buffer[at : min(at + size, end)]).ljust(size, b"\0")
                data = self._compress(cluster)
                packed.append((at, data if len(data) < size else None))
        return packed

    def take(self, slab: Slab, buffer: memoryview, prepared: Any) -> None:
        if self._compress is not None:
            self._take_packed(slab, buffer, prepared)
            return
        for start, end in self._whole_clusters(prepared, slab.end - slab.start):
            bitmaps = self._bitmaps(prepared, start, end) if self._builder.geometry.extended_l2 else None
            self._builder.add_data(slab.start + start, buffer[start:end], bitmaps)
        self._builder.write_data()

    def _take_packed(self, slab: Slab, buffer: memoryview, packed: list[tuple[int, bytes | None]]) -> None:
        for at, data in packed:
            if data is None:
                cluster = bytes(buffer[at : min(at + self._cluster_size, slab.end - slab.start)])
                self._builder.add_data(slab.start + at, memoryview(cluster))
            else:
                self._builder.add_compressed(slab.start + at, data)

    def _whole_clusters(self, ranges: list[ByteRange], length: int) -> list[ByteRange]:
        """Return the ranges of whole clusters that have data."""
        size = self._cluster_size
        if self.unit == size:
            return ranges
        found: list[ByteRange] = []
        for first, last in ranges:
            start, end = first // size * size, min(length, -(-last // size) * size)
            if found and start <= found[-1].end:
                found[-1] = ByteRange(found[-1].start, max(end, found[-1].end))
            else:
                found.append(ByteRange(start, end))
        return found

    def _bitmaps(self, ranges: list[ByteRange], start: int, end: int) -> list[int]:
        """Return of each cluster the bitmap of its subclusters: with data, or not allocated."""
        geometry = self._builder.geometry
        size, unit = geometry.cluster_size, geometry.subcluster_size
        if not self.unit:
            return [SUBCLUSTERS_ALLOCATED] * geometry.clusters(end - start)
        bitmaps = [0] * geometry.clusters(end - start)
        for first, last in ranges:
            for at in range(max(first, start), min(last, end), unit):
                bitmaps[(at - start) // size] |= 1 << at % size // unit
        return bitmaps

    def zero(self, start: int, end: int) -> None:
        self._builder.add_zeros(start, end - start)

    def finish(self, size: int) -> None:
        self._before_end()
        self._builder.finish(size)


class ImageTarget(Target):
    """An image that is open for writing: over a backing file, preallocated, with a data file, or with contents."""

    def __init__(
        self,
        image: Image,
        *,
        unit: int,
        wipe: bool,
        compressed: bool = False,
        level: int | None = None,
        durable: bool = True,
    ) -> None:
        super().__init__(image.geometry.cluster_size if compressed else unit, image.geometry.cluster_size)
        self._image = image
        self._unmap = unit > 0
        self._wipe = wipe
        self._compressed = compressed
        self._level = level
        self._durable = durable

    def take(self, slab: Slab, buffer: memoryview, prepared: list[ByteRange]) -> None:
        asked = _asked(slab, self.unit if self._compressed else 1)
        for start, end in _in_both(asked, prepared):
            self._write(buffer[start:end], slab.start + start)
        if self._wipe:
            for start, end in _in_both(asked, _between(prepared, slab.end - slab.start)):
                self.zero(slab.start + start, slab.start + end)
        for start, end in slab.zeros:
            self.zero(start, end)

    def _write(self, data: memoryview, offset: int) -> None:
        if self._compressed:
            self._image.write_compressed(data, offset, level=self._level)
        else:
            self._image.pwrite(data, offset)

    def zero(self, start: int, end: int) -> None:
        self._image.write_zeroes(start, end - start, unmap=self._unmap)

    def finish(self, _size: int) -> None:
        if self._durable:
            self._image.flush()


class Pipe:
    """A target that cannot seek: a binary file object whose `write` may take a part."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self.name = name

    def write(self, data: memoryview) -> None:
        """Write all bytes. Raises StoreError, BrokenPipeError where the reader has gone."""
        try:
            while data:
                count: int | None = self._file.write(data)
                if count is None:  # The pipe was made one that does not wait.
                    select([], [self._file], [])
                else:
                    data = data[count:]
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise StoreError(f"Could not write to {self.name!r}: {reason(exc)}", errno=exc.errno) from exc


class RawPipe(Target):
    """Raw bytes, one after the other, to their reader."""

    def __init__(self, write: Write) -> None:
        super().__init__(0)
        self._send = write
        self._position = 0

    def take(self, slab: Slab, buffer: memoryview, _prepared: Any) -> None:
        self._fill(slab.start)
        self._send(buffer[: slab.end - slab.start])
        self._position = slab.end

    def _fill(self, end: int) -> None:
        while self._position < end:
            part = zeros(min(end - self._position, 1 << 20))
            self._send(part)
            self._position += len(part)

    def finish(self, size: int) -> None:
        self._fill(size)


def _asked(slab: Slab, unit: int = 1) -> list[ByteRange]:
    """Return the ranges of the pieces of a slab, in whole units: nothing else may change."""
    found: list[ByteRange] = []
    for piece in slab.pieces:
        start = (piece.start - slab.start) // unit * unit
        end = min(slab.end - slab.start, -(-(piece.start + piece.length - slab.start) // unit) * unit)
        if found and start <= found[-1].end:
            found[-1] = ByteRange(found[-1].start, max(end, found[-1].end))
        else:
            found.append(ByteRange(start, end))
    return found


def _in_both(one: list[ByteRange], other: list[ByteRange]) -> list[ByteRange]:
    """Return the ranges that lie in ranges of both, all in order."""
    found: list[ByteRange] = []
    first = second = 0
    while first < len(one) and second < len(other):
        both = ByteRange(max(one[first].start, other[second].start), min(one[first].end, other[second].end))
        if both.start < both.end:
            found.append(both)
        if one[first].end < other[second].end:
            first += 1
        else:
            second += 1
    return found


def _between(ranges: list[ByteRange], length: int) -> list[ByteRange]:
    """Return what the ranges leave of a length."""
    found: list[ByteRange] = []
    done = 0
    for start, end in ranges:
        if start > done:
            found.append(ByteRange(done, start))
        done = max(done, end)
    if done < length:
        found.append(ByteRange(done, length))
    return found
