"""Bitmaps that no header names any more: their directory by its form, and from there tables and data. Reads only.

They are not recovered, for what they say of a disk is out of date; but what they occupy is not lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import BitmapType, Limit
from qcow2c.format.derived import BITMAP_DIRECTORY_HEADER
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import aligned
from qcow2c.format.tables import BITMAP_OFFSET
from qcow2c.recovery.table_scan import read_words
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from qcow2c.format.array_types import I64Array

_MOST_LOOKED_AT = 1 << 16
_MOST_ENTRIES = 1 << 20


def bitmap_clusters(store: Store, geometry: Geometry, clusters: I64Array) -> I64Array:
    """Return the clusters of bitmaps whose directory begins in one of some clusters, ascending. Raises StoreError."""
    bits = geometry.cluster_bits
    found: list[I64Array] = []
    for cluster in clusters[:_MOST_LOOKED_AT].tolist():
        offset, count = cluster << bits, 0
        while (record := _record(store, geometry, offset)) is not None:
            table, entries, length = record
            names = read_words(store, table, entries) & np.uint64(BITMAP_OFFSET)
            found.append(np.arange(table >> bits, geometry.clusters(table + entries * 8), dtype=np.int64))
            found.append((names[names != 0] >> np.uint64(bits)).astype(np.int64))
            offset, count = offset + length, count + 1
        if count:
            found.append(np.arange(cluster, geometry.clusters(offset), dtype=np.int64))
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)


def _record(store: Store, geometry: Geometry, offset: int) -> tuple[int, int, int] | None:
    """Return place and entries of the table of a bitmap, and the length of its record; None for no record."""
    data = store.pread(BITMAP_DIRECTORY_HEADER.size, offset)
    if len(data) < BITMAP_DIRECTORY_HEADER.size:
        return None
    known = BITMAP_DIRECTORY_HEADER.values(data)
    table, entries = known["bitmap_table_offset"], known["bitmap_table_size"]
    fits = table and table % geometry.cluster_size == 0 and table < store.size() and 0 < entries <= _MOST_ENTRIES
    fits = fits and known["type"] in tuple(BitmapType) and known["granularity_bits"] in Limit.BITMAP_GRANULARITY_BITS
    size, extra = known["name_size"], known["extra_data_size"]
    if not fits or not 0 < size <= Limit.BITMAP_NAME_BYTES or extra > Limit.BITMAP_NAME_BYTES:
        return None
    name = store.pread(size, offset + len(data) + extra)
    if len(name) < size or not name.decode("utf-8", "replace").isprintable():
        return None
    return table, entries, aligned(len(data) + extra + size)
