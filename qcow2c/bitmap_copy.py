"""Bitmaps of one image for another: which can be copied, and their clusters, tables and directory for the new one.

What is placed here is named by a header extension in the end. Spec: "Bitmaps extension", "Bitmap directory".
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from qcow2c import layout, rules
from qcow2c.errors import UsageError
from qcow2c.findings import Severity, raise_first
from qcow2c.geometry import Geometry
from qcow2c.header import Header, aligned
from qcow2c.records import BitmapRecord, read_bitmaps
from qcow2c.store import Store
from qcow2c.structs import BITMAP_DIRECTORY_HEADER, BITMAP_FLAGS, BITMAPS_EXTENSION, BitmapType, Version
from qcow2c.tables import BITMAP_ALL_ONES, BITMAP_OFFSET

Place = Callable[[bytes], int]
"""Stores bytes in whole clusters of the new image, which lie together; returns their host offset."""


def bitmaps_to_copy(
    store: Store, header: Header, *, skip_broken: bool, warn: Callable[[str], object]
) -> tuple[BitmapRecord, ...]:
    """Return the bitmaps that can be copied; told which cannot. Raises UsageError, CorruptMetadata."""
    if header.version < Version.V3:
        raise UsageError("Source lacks bitmap support")
    directory = read_bitmaps(store, header)
    if directory.broken is not None:
        raise_first([directory.broken], Severity.WARNING)
    kept = []
    for record in directory.records:
        name = record.name.decode("utf-8", "backslashreplace")
        if record.in_use and not skip_broken:
            raise UsageError(
                f"Cannot copy inconsistent bitmap '{name}'\n"
                "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"
            )
        if record.in_use:
            warn(f"Skipping inconsistent bitmap '{name}'")
            continue
        raise_first(rules.bitmap_findings(header, record), Severity.WARNING)
        kept.append(record)
    return tuple(kept)


def copy_bitmaps(
    store: Store, header: Header, records: Sequence[BitmapRecord], geometry: Geometry, disk_size: int, place: Place
) -> bytes:
    """Store copies of bitmaps for a new image of `geometry`; return the data of its bitmaps extension.

    Durable order: data, tables, directory. Raises StoreError, and what `place` raises.
    """
    directory = b""
    for record in records:
        bits = _Bits(store, header, record)
        length = (-(-disk_size >> record.granularity_bits) + 7) // 8
        table = array("Q")
        for start in range(0, length, geometry.cluster_size):
            chunk = bits.read(start, min(geometry.cluster_size, length - start))
            table.append(place(chunk) if any(chunk) else 0)
        at = place(layout.stored(table))
        values = {
            "bitmap_table_offset": at,
            "bitmap_table_size": len(table),
            "flags": layout.flags(BITMAP_FLAGS, auto=record.auto),
            "type": BitmapType.DIRTY_TRACKING,
            "granularity_bits": record.granularity_bits,
            "name_size": len(record.name),
        }
        entry = layout.packed(BITMAP_DIRECTORY_HEADER, values) + record.name
        directory += entry.ljust(aligned(len(entry)), b"\0")
    values = {
        "nb_bitmaps": len(records),
        "bitmap_directory_size": len(directory),
        "bitmap_directory_offset": place(directory),
    }
    return layout.packed(BITMAPS_EXTENSION, values)


class _Bits:
    """The bits of a stored bitmap, eight in a byte, the first one least significant."""

    def __init__(self, store: Store, header: Header, record: BitmapRecord) -> None:
        self._store = store
        self._size = header.cluster_size
        size = record.bitmap_table_size * 8
        self._table = layout.words(store.pread(size, record.bitmap_table_offset).ljust(size, b"\0"))

    def read(self, start: int, length: int) -> bytes:
        """Return bytes of the bitmap; zeros behind its end."""
        parts = []
        while length > 0:
            index, inside = divmod(start, self._size)
            count = min(length, self._size - inside)
            parts.append(self._part(index, inside, count))
            start, length = start + count, length - count
        return b"".join(parts)

    def _part(self, index: int, inside: int, count: int) -> bytes:
        entry = self._table[index] if index < len(self._table) else 0
        if entry & BITMAP_OFFSET:
            return self._store.pread(count, (entry & BITMAP_OFFSET) + inside).ljust(count, b"\0")
        return (b"\xff" if entry & BITMAP_ALL_ONES else b"\0") * count
