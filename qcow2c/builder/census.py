"""The census of an image: which host clusters and which compressed data its tables need, and how often, by arrays.

Host clusters that are only reserved (under zeros, or for subclusters that are not there) are not needed. Memory follows
the clusters that are in use, under a limit. It reads tables, and neither guest data nor refcounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c.constants import SECTOR_SIZE
from qcow2c.errors import CorruptMetadata, LimitExceeded, Span
from qcow2c.format import rules, tables
from qcow2c.format.findings import Severity, raise_first
from qcow2c.format.geometry import Geometry
from qcow2c.format.layout import word_span
from qcow2c.format.records import BitmapRecord
from qcow2c.format.table_rules import BITMAP_TABLE_RULES, l2_rules, suspects
from qcow2c.references.walk import L2Batch, Walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

MAX_CLUSTERS = 1 << 28
"""Clusters of a file: 16 TiB of 64 KiB each. Arrays have up to 21 bytes for each that is in use."""

MAX_COMPRESSED = 1 << 26
"""Distinct compressed clusters, with 16 bytes each, and twice that while they are gathered."""

_MERGE_FROM = 1 << 21
"""Compressed clusters that are gathered before equal ones become one."""


class Census:
    """What the tables of an image need.

    `needed`: for each host cluster the subclusters that something needs, as bits (one bit without extended entries);
    `counts`: how many references it then has; `fixed`: it must stay as it is, because some reference needs only parts
    of it, or is a bitmap's. All of shape (clusters,). `packed` are the distinct compressed descriptors, ascending, and
    `packed_counts` how often each is referenced; shapes (n,). `bitmap_clusters` hold bits of bitmaps, ascending.
    """

    def __init__(self, walk: Walk) -> None:
        """Raises CorruptMetadata for an entry that breaks a rule, LimitExceeded."""
        self._walk = walk
        geometry = self.geometry = walk.geometry
        self.clusters = geometry.clusters(walk.size)
        if self.clusters > MAX_CLUSTERS:
            message = f"a file of {self.clusters} clusters is beyond the limit of {MAX_CLUSTERS}"
            raise LimitExceeded(message, spec="Host cluster management")
        self.whole = tables.SUBCLUSTERS_ALLOCATED if geometry.extended_l2 else 1
        """All bits of `needed`."""
        self.tables = walk.stored_tables()
        self.needed = np.zeros(self.clusters, dtype=np.uint32 if geometry.extended_l2 else np.uint8)
        self.fixed = np.zeros(self.clusters, dtype=bool)
        times = self.tables.active + self.tables.snapshot
        bound = int(times.sum()) * geometry.l2_entries
        bound += sum(record.bitmap_table_size for record in walk.bitmaps.records)
        self.counts: NDArray[np.unsignedinteger[Any]] = np.zeros(
            self.clusters, dtype=np.uint32 if bound < 1 << 32 else np.uint64
        )
        self.packed = np.zeros(0, dtype=np.uint64)
        self.packed_counts = np.zeros(0, dtype=np.uint64)
        self._gathered: list[tuple[U64Array, U64Array]] = []
        self._rules = l2_rules(geometry)
        for batch in self.batches():
            self._judge(batch)
            if not geometry.external_data:
                self._count(batch, batch.active + batch.snapshot)
        self._merge()
        parts = [self._count_bitmap(record) for record in walk.bitmaps.records]
        self.bitmap_clusters = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))

    def batches(self) -> Iterator[L2Batch]:
        """Yield the L2 tables in the order of `tables`."""
        for start, end in self._walk.batches(self.tables):
            yield self._walk.batch(self.tables, start, end)

    def bitmap_table(self, record: BitmapRecord) -> U64Array:
        """Return the entries of a bitmap's table. Raises CorruptMetadata, LimitExceeded."""
        raise_first(rules.bitmap_findings(self._walk.header, record), Severity.WARNING)
        words = self._walk.words(record.bitmap_table_offset, record.bitmap_table_size)
        for rule in BITMAP_TABLE_RULES:
            broken = np.flatnonzero(rule.broken(words, 0, self.geometry))
            if len(broken):
                where = word_span(record.bitmap_table_offset, int(broken[0]))
                message = f"bitmap table entry {int(words[broken[0]]):#018x}: {rule.message}"
                raise CorruptMetadata(message, where=where, spec=rule.spec)
        return words

    def _judge(self, batch: L2Batch) -> None:
        """Raise CorruptMetadata for the first entry that breaks a rule."""
        bitmaps = 0 if batch.bitmaps is None else batch.bitmaps
        seen = int(np.bitwise_or.reduce(batch.entries, axis=None))
        for rule in suspects(self._rules, seen, self.geometry):
            broken = np.argwhere(rule.broken(batch.entries, bitmaps, self.geometry))
            if len(broken):
                table, index = broken[0].tolist()
                length = self.geometry.l2_entry_bytes
                where = Span(int(batch.offsets[table]) + index * length, length)
                message = f"L2 entry {int(batch.entries[table, index]):#018x}: {rule.message}"
                raise CorruptMetadata(message, where=where, spec=rule.spec)

    def _count(self, batch: L2Batch, times: U64Array) -> None:
        per_table = batch.entries.shape[1]
        entries = batch.entries.reshape(-1)
        is_packed = (entries & np.uint64(tables.L2_COMPRESSED)) != 0
        rows = np.flatnonzero(needs_cluster(entries, None if batch.bitmaps is None else batch.bitmaps.reshape(-1)))
        clusters = self._clusters_of(entries[rows] & np.uint64(tables.L2_OFFSET))
        np.add.at(self.counts, clusters, times[rows // per_table].astype(self.counts.dtype))
        if batch.bitmaps is None:
            self.needed[clusters] = self.whole
        else:
            allocated = (batch.bitmaps.reshape(-1)[rows] & np.uint64(self.whole)).astype(np.uint32)
            np.bitwise_or.at(self.needed, clusters, allocated)
            self.fixed[clusters[allocated != self.whole]] = True
        if is_packed.any():
            rows = np.flatnonzero(is_packed)
            self._gathered.append((entries[rows], times[rows // per_table]))
            if sum(len(words) for words, _ in self._gathered) >= _MERGE_FROM:
                self._merge()

    def _count_bitmap(self, record: BitmapRecord) -> NDArray[np.int64]:
        offsets = self.bitmap_table(record) & np.uint64(tables.BITMAP_OFFSET)
        clusters = self._clusters_of(offsets[offsets != 0])
        np.add.at(self.counts, clusters, self.counts.dtype.type(1))
        self.needed[clusters] = self.whole
        self.fixed[clusters] = True
        return clusters

    def _clusters_of(self, offsets: U64Array) -> NDArray[np.int64]:
        """Return the clusters at offsets. Raises CorruptMetadata for one that lies past the end of the file."""
        clusters = (offsets >> np.uint64(self.geometry.cluster_bits)).view(np.int64)
        if len(clusters) and int(clusters.max()) >= self.clusters:
            where = Span(int(offsets.max()), self.geometry.cluster_size)
            message = f"a host cluster is past the end of the file at {self._walk.size:#x}"
            raise CorruptMetadata(message, where=where, spec="Cluster mapping")
        return clusters

    def _merge(self) -> None:
        """Add what was gathered to the compressed descriptors, each once."""
        parts = [(self.packed, self.packed_counts), *self._gathered]
        self._gathered = []
        if len(parts) == 1:
            return
        self.packed, inverse = np.unique(np.concatenate([words for words, _ in parts]), return_inverse=True)
        self.packed_counts = np.zeros(len(self.packed), dtype=np.uint64)
        np.add.at(self.packed_counts, inverse.reshape(-1), np.concatenate([times for _, times in parts]))
        if len(self.packed) > MAX_COMPRESSED:
            raise LimitExceeded(f"more than {MAX_COMPRESSED} compressed clusters", spec="Cluster mapping")


def needs_cluster(entries: U64Array, bitmaps: U64Array | None) -> NDArray[np.bool_]:
    """Return which entries need the contents of their host cluster; of the shape of `entries`."""
    has_cluster = (entries & np.uint64(tables.L2_OFFSET)) != 0
    has_cluster &= (entries & np.uint64(tables.L2_COMPRESSED)) == 0
    if bitmaps is None:
        has_cluster &= (entries & np.uint64(tables.L2_ZERO)) == 0
    else:
        has_cluster &= (bitmaps & np.uint64(tables.SUBCLUSTERS_ALLOCATED)) != 0
    found: NDArray[np.bool_] = has_cluster
    return found


class PackedPlan:
    """Where compressed data goes that lies anywhere in a file: one piece behind the other, without what is between.

    `words` are the descriptors in the order of the data, and `offsets` their new places, from the start of the area,
    shapes (n,); `runs` are start and end in the old file of what is copied, in order; `counts` are the references to
    each cluster of the area, shape (clusters,).
    """

    def __init__(self, words: U64Array, times: U64Array, geometry: Geometry) -> None:
        """At least one descriptor; `times` is how often each is referenced. Raises LimitExceeded."""
        offsets, lengths = tables.compressed_extents(words, geometry)
        order = np.argsort(offsets, kind="stable")
        self.words, self._times = words[order], times[order]
        self._old, self._lengths = offsets[order].view(np.int64), lengths[order].view(np.int64)
        self._bits = geometry.cluster_bits
        # Whole sectors, so that a descriptor's length stays right.
        self._place(SECTOR_SIZE)
        if int(self.counts.max()) > geometry.refcount_max:
            self._place(geometry.cluster_size)  # As many references to each cluster as there are now.

    def _place(self, unit: int) -> None:
        """Close the gaps between the units that hold any data."""
        first, last = self._old // unit, (self._old + self._lengths - 1) // unit
        reach = np.maximum.accumulate(last)
        gaps = first.copy()
        gaps[1:] = np.maximum(0, first[1:] - reach[:-1] - 1)
        removed = np.cumsum(gaps)
        self.offsets = self._old - removed * unit
        starts = np.flatnonzero(np.concatenate(([True], gaps[1:] > 0)))
        ends = np.concatenate((starts[1:] - 1, [len(first) - 1]))
        self.runs = list(zip((first[starts] * unit).tolist(), ((reach[ends] + 1) * unit).tolist(), strict=True))
        self.length = int((reach[-1] + 1 - removed[-1]) * unit)
        steps = np.zeros((self.length + (1 << self._bits) - 1 >> self._bits) + 1, dtype=np.uint64)
        np.add.at(steps, self.offsets >> self._bits, self._times)
        np.subtract.at(steps, (self.offsets + self._lengths - 1 >> self._bits) + 1, self._times)
        self.counts = np.cumsum(steps)[:-1]
