"""Where an image says that its refcount blocks lie: no L2 table can be there. Reads one piece of the file, once.

Spec: "Host cluster management".
"""

from __future__ import annotations

from qcow2c.constants import ENTRY_BYTES
from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.format.refcounts import BLOCK_OFFSET
from qcow2c.storage.store import Store

_READ_BYTES = 1 << 16
"""Bytes of the refcount table that are read at most: what lies behind is not looked at."""


def refcount_places(store: Store, header: Header) -> frozenset[int]:
    """Return the host offsets of the refcount blocks that describe the file, the first ones. Raises StoreError."""
    geometry = header.geometry
    entries = (geometry.clusters(store.size()) >> geometry.refcount_block_bits) + 1
    length = min(entries * ENTRY_BYTES, _READ_BYTES, header.refcount_table_clusters << header.cluster_bits)
    data = store.pread(length, header.refcount_table_offset)
    words = layout.words(data[: len(data) // ENTRY_BYTES * ENTRY_BYTES])
    return frozenset(word & BLOCK_OFFSET for word in words if word & BLOCK_OFFSET)
