"""Bitmaps of one image for a new one: which can be copied, and their clusters, tables and directory.

What is placed here is named by a header extension in the end. Spec: "Bitmaps extension", "Bitmap directory".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qcow2c.bitmaps.stored import Bitmap, PlaceClusters, load_bitmaps, store_clusters, store_directory, table_entries
from qcow2c.constants import Version
from qcow2c.errors import UsageError
from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.format.layout import zero_words
from qcow2c.storage.store import Store


def bitmaps_to_copy(
    store: Store, header: Header, *, skip_broken: bool, warn: Callable[[str], object]
) -> tuple[Bitmap, ...]:
    """Return the bitmaps that can be copied; told which cannot. Raises UsageError, CorruptMetadata."""
    if header.version < Version.V3:
        raise UsageError("Source lacks bitmap support")
    kept = []
    for bitmap in load_bitmaps(store, header):
        if bitmap.inconsistent and not skip_broken:
            raise UsageError(
                f"Cannot copy inconsistent bitmap '{bitmap.name}'\n"
                "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"
            )
        if bitmap.inconsistent:
            warn(f"Skipping inconsistent bitmap '{bitmap.name}'")
        else:
            kept.append(bitmap)
    return tuple(kept)


def copy_bitmaps(bitmaps: Sequence[Bitmap], disk_size: int, cluster_size: int, place: PlaceClusters) -> bytes | None:
    """Store copies of bitmaps for a new image; return the data of its bitmaps extension, None without any.

    Durable order: data, tables, directory. Raises CorruptMetadata, StoreError, and what `place` raises.
    """
    records = []
    for bitmap in bitmaps:
        bits = bitmap.record.granularity_bits
        table = zero_words(table_entries(disk_size, bits, cluster_size))
        store_clusters(enumerate(bitmap.clusters(bits, cluster_size)), table, place)
        at = place(layout.stored(table))
        records.append(bitmap.record._replace(bitmap_table_offset=at, bitmap_table_size=len(table)))
    return store_directory(records, place)
