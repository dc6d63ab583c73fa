"""Dirty bitmaps of an image that is being written: every change is recorded in those that are enabled (`auto`).

Durable order: the enabled bitmaps are marked in use before the first change of guest data; while the image is written,
their bits are in memory; at the end come their data and refcounts, their tables, and last of all the mark goes. A crash
leaves them in use, which tells everybody that they are stale.
Spec: "Bitmaps extension", "Bitmap directory", "Bitmap table".
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from qcow2c.bitmaps.stored import load_bitmaps, united
from qcow2c.constants import ENTRY_BYTES
from qcow2c.errors import CorruptMetadata
from qcow2c.format import layout
from qcow2c.format.derived import BITMAP_DIRECTORY_HEADER, BITMAP_FLAGS
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapRecord
from qcow2c.format.tables import BITMAP_ALL_ONES, BITMAP_OFFSET
from qcow2c.writer.allocation import Allocator
from qcow2c.writer.cache import MetadataCache

_IN_USE = BITMAP_FLAGS["in_use"].mask
_FLAGS = BITMAP_DIRECTORY_HEADER["flags"]


class BitmapTracker:
    """The bitmaps of one image while it is written."""

    def __init__(self, cache: MetadataCache, allocator: Allocator, header: Header) -> None:
        self._cache = cache
        self._allocator = allocator
        self._tracked: list[_Tracked] = []
        self._in_use = False
        self.problem: CorruptMetadata | None = None
        """Why not all bitmaps are understood: then none can be kept, and the image must say so."""
        try:
            tables = set()
            for bitmap in load_bitmaps(cache.medium.store, header):
                record = bitmap.record
                if record.auto and not record.in_use:
                    if (place := (record.bitmap_table_offset, record.bitmap_table_size)) not in tables:
                        tables.add(place)
                        bitmap.read_table()
                    self._tracked.append(_Tracked(record, cache.geometry.cluster_size))
        except CorruptMetadata as problem:
            self._tracked, self.problem = [], problem

    def note(self, guest_offset: int, length: int) -> None:
        """Record a change of guest bytes, before it is made: the first one marks the bitmaps. Raises StoreError."""
        if self._tracked and not self._in_use:
            self._write_flags(lambda flags: flags | _IN_USE)
            self._in_use = True
        for tracked in self._tracked:
            tracked.mark(guest_offset, length)

    def finish(self) -> None:
        """Store the bitmaps, after everything else of the image is durable; changes may be noted again after it.

        Raises StoreError, LimitExceeded.
        """
        if not self._in_use:
            return
        updated = [(tracked, self._table(tracked.record)) for tracked in self._tracked]
        for tracked, table in updated:
            self._store_bits(tracked, table)
        self._cache.commit()
        self._cache.medium.flush()
        for tracked, table in updated:
            self._cache.medium.write([layout.stored(table)], tracked.record.bitmap_table_offset)
        self._cache.medium.flush()
        self._write_flags(lambda flags: flags & ~_IN_USE)
        self._in_use = False
        for tracked in self._tracked:
            tracked.chunks.clear()

    def _table(self, record: BitmapRecord) -> array[int]:
        size = record.bitmap_table_size * ENTRY_BYTES
        return layout.words(self._cache.medium.store.pread(size, record.bitmap_table_offset).ljust(size, b"\0"))

    def _store_bits(self, tracked: _Tracked, table: array[int]) -> None:
        """Write clusters of bitmap data: in place where there are some, for nothing relies on a bitmap in use."""
        geometry = self._cache.geometry
        for index, bits in tracked.chunks.items():
            entry = table[index]
            at = entry & BITMAP_OFFSET
            if not at and entry & BITMAP_ALL_ONES:
                continue
            if at:
                old = self._cache.medium.store.pread(geometry.cluster_size, at).ljust(geometry.cluster_size, b"\0")
                bits = bytearray(united(old, bits))  # noqa: PLW2901 - the bits that the cluster gets
            else:
                at = self._allocator.allocate(1).first << geometry.cluster_bits
                table[index] = at
            self._cache.medium.write([bits], at)

    def _write_flags(self, change: Callable[[int], int]) -> None:
        """Change the flags of the records of all tracked bitmaps, each within one sector, and make that durable."""
        for tracked in self._tracked:
            record = tracked.record
            data = layout.stored_integer(change(record.flags), _FLAGS.size)
            self._cache.medium.write([data], record.span.offset + _FLAGS.offset)
        self._cache.medium.flush()


class _Tracked:
    """One bitmap: the bits that were set since the image was opened, by index of its table."""

    def __init__(self, record: BitmapRecord, cluster_size: int) -> None:
        self.record = record
        self.chunks: dict[int, bytearray] = {}
        self._cluster_size = cluster_size

    def mark(self, guest_offset: int, length: int) -> None:
        """Set the bits of guest bytes."""
        per_chunk = self._cluster_size * 8
        first = guest_offset >> self.record.granularity_bits
        end = (guest_offset + length - 1 >> self.record.granularity_bits) + 1
        while first < end:
            index, start = divmod(first, per_chunk)
            stop = min(end - index * per_chunk, per_chunk)
            chunk = self.chunks.get(index)
            if chunk is None:
                chunk = self.chunks[index] = bytearray(self._cluster_size)
            _set_bits(chunk, start, stop)
            first = index * per_chunk + stop


def _set_bits(bits: bytearray, start: int, stop: int) -> None:
    """Set bits `start` to `stop`; the first bit of a byte is its least significant one."""
    first, last = start // 8, (stop - 1) // 8
    first_mask, last_mask = 255 << start % 8 & 255, 255 >> 7 - (stop - 1) % 8
    if first == last:
        bits[first] |= first_mask & last_mask
        return
    bits[first] |= first_mask
    bits[first + 1 : last] = b"\xff" * (last - first - 1)
    bits[last] |= last_mask
