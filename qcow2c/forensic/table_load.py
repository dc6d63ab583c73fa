"""How much the tables of an image claim: bytes of metadata, bytes of guest data, entries that share what they name.

It counts with arrays, in batches of bounded size, and judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qcow2c.constants import ENTRY_BYTES, Version
from qcow2c.format import tables
from qcow2c.light import NamedTuple
from qcow2c.references.walk import ACTIVE, Walk


class TableLoad(NamedTuple):
    """What the L2 tables of all states claim; bytes of the guest's disks count once for each state that has them."""

    guest_bytes: int
    compressed_clusters: int
    shared_tables: int
    """L2 tables that the active L1 table names more than once."""
    shared_clusters: int
    """Clusters of data that are named more than once, in an image without snapshots."""
    zeros_in_v2: int
    """Zero clusters in an image of version 2."""


def metadata_bytes(walk: Walk) -> int:
    """Return the bytes of all metadata, as the header and the L1 tables announce it. Raises LimitExceeded."""
    total = sum(int(part.lengths.sum(dtype=np.uint64)) for part in walk.metadata())
    return total + int(walk.refcount_blocks().lengths.sum(dtype=np.uint64))


def l1_bytes(walk: Walk) -> int:
    """Return the bytes of all L1 tables that can be walked, which are read to find the L2 tables."""
    return sum(state.l1_entries * ENTRY_BYTES for state in walk.states() if state.walkable)


def table_load(walk: Walk, tick: Callable[[], object]) -> TableLoad:
    """Return what the tables claim; `tick` is called for each batch, and may raise. Raises LimitExceeded."""
    geometry = walk.geometry
    found = walk.stored_tables()
    has_snapshots = any(state.index != ACTIVE for state in walk.states())
    guest, compressed_count, shared, zeros = 0, 0, 0, 0
    is_v2 = walk.header.version < Version.V3
    for start, end in walk.batches(found):
        tick()
        batch = walk.batch(found, start, end)
        times = (batch.active + batch.snapshot).astype(np.uint64)
        compressed = (batch.entries & np.uint64(tables.L2_COMPRESSED)) != 0
        plain = ~compressed & ((batch.entries & np.uint64(tables.L2_OFFSET)) != 0)
        if batch.bitmaps is None:
            holds = plain & ((batch.entries & np.uint64(tables.L2_ZERO)) == 0)
        else:
            holds = plain & ((batch.bitmaps & np.uint64(tables.SUBCLUSTERS_ALLOCATED)) != 0)
        each = np.count_nonzero(compressed | holds, axis=1).astype(np.uint64)
        guest += int((each * times).sum()) * geometry.cluster_size
        compressed_count += int(np.count_nonzero(compressed))
        if is_v2:
            zeros += int(np.count_nonzero(~compressed & ((batch.entries & np.uint64(tables.L2_ZERO)) != 0)))
        if not has_snapshots and not geometry.external_data:
            shared += int(np.count_nonzero(plain & ((batch.entries & np.uint64(tables.L2_COPIED)) == 0)))
    repeated = int(np.count_nonzero(walk.l2_tables().active > 1))
    return TableLoad(guest, compressed_count, repeated, shared, zeros)
