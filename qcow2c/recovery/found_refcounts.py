"""The refcounts of a damaged image, where they can be believed: those that the header names, or found by structure.

They are believed where they count themselves and most of the tables. Reads only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import Limit
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapDirectory, SnapshotTable
from qcow2c.format.refcounts import BLOCK_OFFSET
from qcow2c.format.tables import L2_COMPRESSED, L2_OFFSET
from qcow2c.light import replace
from qcow2c.recovery.found_tables import FoundTables, read_l2
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.walk import Walk

if TYPE_CHECKING:
    from qcow2c.format.array_types import I64Array

_MOST_TABLES = 512
"""Tables of which the refcounts are looked at before they are believed."""


class FoundRefcounts:
    """The refcounts of an image; `usable` is false where none can be believed, and all are unknown then."""

    def __init__(self, found: FoundTables, header: Header) -> None:
        """Raises StoreError."""
        self._found = found
        self._stored: StoredRefcounts | None = None
        self.table: tuple[int, int] = 0, 0
        """Offset and clusters of the table."""
        self.header = header
        for offset, clusters, order in self._candidates(header):
            stored = self._judged(replace(header, refcount_order=order), offset, clusters)
            if stored is not None:
                self._stored, self.table = stored, (offset, clusters)
                break

    @property
    def usable(self) -> bool:
        return self._stored is not None

    def _candidates(self, header: Header) -> list[tuple[int, int, int]]:
        bits, size = header.cluster_bits, self._found.scan.size
        orders = [header.refcount_order, *(order for order in (4, 0, 1, 2, 3, 5, 6) if order != header.refcount_order)]
        places: list[tuple[int, int]] = []
        offset, clusters = header.refcount_table_offset, header.refcount_table_clusters
        if offset and offset % header.cluster_size == 0 and offset < size and 0 < clusters <= size >> bits:
            places.append((offset, clusters))
        places += self._found.other_pointers()
        return [(*place, order) for place in places for order in orders]

    def _judged(self, header: Header, offset: int, clusters: int) -> StoredRefcounts | None:
        """Return the refcounts of a table that counts itself and most other tables, None for another one."""
        if clusters << header.cluster_bits > Limit.REFCOUNT_TABLE_BYTES:
            return None
        named = replace(header, refcount_table_offset=offset, refcount_table_clusters=clusters)
        walk = Walk(self._found.store, named, SnapshotTable((), 0, None), BitmapDirectory((), None))
        stored = StoredRefcounts(walk)
        blocks = stored.table[stored.table != 0] & np.uint64(BLOCK_OFFSET)
        if not len(blocks):
            return None
        bits = np.uint64(header.cluster_bits)
        mine = np.concatenate((blocks >> bits, np.array([offset], dtype=np.uint64) >> bits))
        mine = mine[mine < np.uint64(max(1, self._found.scan.size >> header.cluster_bits))]
        if not len(mine) or (stored.at(mine) == 1).sum() * 2 <= len(mine):
            return None
        tables = self._found.l2[:_MOST_TABLES].astype(np.uint64) >> bits
        counted = stored.at(tables)
        if len(tables) and (counted == 0).sum() * 2 > len(tables):
            return None
        return stored

    def at(self, offset: int) -> int | None:
        """Return the refcount of the cluster at a host offset, None where it is unknown."""
        if self._stored is None:
            return None
        cluster = offset >> self._found.geometry.cluster_bits
        if not self._stored.describes(cluster):
            return None
        return int(self._stored.whole_at(np.array([cluster], dtype=np.uint64))[0])

    def may_share(self) -> bool:
        """Return whether there may be snapshots: not where no cluster that a table names is counted twice."""
        if self._stored is None:
            return True
        bits = np.uint64(self._found.geometry.cluster_bits)
        for at in self._found.l2[:: max(1, len(self._found.l2) // _MOST_TABLES)].tolist():
            entries = read_l2(self._found.store, at, self._found.geometry).entries
            plain = entries[(entries & np.uint64(L2_COMPRESSED)) == 0] & np.uint64(L2_OFFSET)
            clusters = np.append(plain[plain != 0], np.uint64(at)) >> bits
            if (self._stored.at(clusters) > 1).any():
                return True
        return False

    def counts_beyond_the_end(self) -> bool:
        """Return whether clusters are in use that the file does not have: it was cut off."""
        if self._stored is None:
            return False
        end = self._found.geometry.clusters(self._found.scan.size)
        if (self._stored.table >= np.uint64(max(1, self._found.scan.size))).any():
            return True
        return bool(self._stored.counts(end, 1 << self._found.geometry.refcount_block_bits).any())

    def excess(self, clusters: I64Array, references: I64Array) -> I64Array:
        """Return those of some clusters that are counted more often than they are referred to."""
        if self._stored is None or not len(clusters):
            return np.zeros(0, dtype=np.int64)
        found: I64Array = clusters[self._stored.whole_at(clusters.astype(np.uint64)) > references.astype(np.uint64)]
        return found

    def counted(self, clusters: I64Array) -> I64Array:
        """Return those of some clusters, ascending, that are in use, or may be: a block that is lost says nothing."""
        if self._stored is None or not len(clusters):
            return clusters
        bits = self._found.geometry.refcount_block_bits
        blocks, rows = np.unique(clusters >> bits, return_inverse=True)
        lost = [not self._stored.counts(int(block) << bits, 1 << bits).any() for block in blocks]
        kept: I64Array = clusters[(self._stored.at(clusters.astype(np.uint64)) != 0) | np.array(lost, dtype=bool)[rows]]
        return kept

    def blocks(self) -> I64Array:
        """Return the host offsets of table and blocks, cluster by cluster."""
        if self._stored is None:
            return np.zeros(0, dtype=np.int64)
        offset, clusters = self.table
        size = self._found.geometry.cluster_size
        named = self._stored.table[self._stored.table != 0]
        return np.concatenate((np.arange(offset, offset + clusters * size, size), named.astype(np.int64)))
