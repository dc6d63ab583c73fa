"""The mapping while it is written: which L2 table maps a guest offset, who owns its cluster, what entries come to say.

It changes L1 and L2 tables in memory, and hands what they no longer name to `cache.py`, which counts it down once the
change is durable. Whether a cluster may be overwritten is decided by its refcount, never by the copied bit. It moves
no guest data. Spec: "Cluster mapping".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from qcow2c.errors import CorruptMetadata, Span
from qcow2c.format.tables import (
    L1_COPIED,
    L2_COMPRESSED,
    L2_COPIED,
    L2_OFFSET,
    L2_ZERO,
    SUBCLUSTERS_ALLOCATED,
    SUBCLUSTERS_ZERO_SHIFT,
    Table,
    compressed_entry,
    compressed_extent,
)
from qcow2c.layers.reader import Reader
from qcow2c.references.cluster_set import ClusterSet
from qcow2c.writer.allocation import Allocator
from qcow2c.writer.cache import MetadataCache
from qcow2c.writer.cow import reads_as_zeros

MAX_RELEASES = 1 << 16
"""Runs of released clusters that wait in memory before they cause a commit."""


class Mapping:
    """The L1 table and the L2 tables of one state, to be changed; `reader` shows the changes at once."""

    def __init__(
        self, reader: Reader, cache: MetadataCache, allocator: Allocator, guard: ClusterSet | None = None
    ) -> None:
        """`guard` are clusters that hold metadata, where refcounts cannot be believed: they are never written to."""
        self._reader = reader
        self._cache = cache
        self._allocator = allocator
        self._guard = guard
        self._geometry = reader.geometry
        self._cluster_bits = reader.geometry.cluster_bits
        self._cluster_mask = reader.geometry.cluster_size - 1
        self._words = reader.geometry.l2_entry_words
        self._l2_mask = reader.geometry.l2_entries - 1
        self._every_entry_counts = reader.geometry.extended_l2 or reader.geometry.external_data

    # --- where ---

    def by_table(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a guest range that one L2 table each maps, as (start, end)."""
        coverage = 1 << self._geometry.l2_coverage_bits
        while start < end:
            stop = min(end, (start | (coverage - 1)) + 1)
            yield start, stop
            start = stop

    def index(self, guest_offset: int) -> int:
        """Return the index in its L2 table of the entry of a guest cluster."""
        return guest_offset >> self._cluster_bits & self._l2_mask

    def entry(self, table: Table | None, guest_offset: int) -> int:
        """Return the L2 descriptor of a guest cluster, 0 without a table."""
        return 0 if table is None else table.words[self.index(guest_offset) * self._words]

    def entries(self, table: Table, start: int, end: int) -> list[int]:
        """Return the L2 descriptors of a guest range that one table maps."""
        first, last = self.index(start), self.index(end - 1)
        return table.words[first * self._words : (last + 1) * self._words : self._words].tolist()

    def is_own(self, cluster: int) -> bool:
        """Return whether a host cluster to which a guest cluster maps may be overwritten."""
        return self._cache.refcount(cluster) == 1 and (self._guard is None or cluster not in self._guard)

    def own_cluster(self, table: Table, guest_offset: int) -> int | None:
        """Return the host offset of a guest cluster if it may be overwritten. Raises CorruptMetadata."""
        index = self.index(guest_offset)
        entry = table.words[index * self._words]
        if entry & self._reader.unusual_bits or self._every_entry_counts:
            bitmap = table.words[index * 2 + 1] if self._geometry.extended_l2 else 0
            self._reader.judge(table, index, entry, bitmap, guest_offset)
            if entry & L2_COMPRESSED:
                return None
        if self._geometry.external_data:
            return guest_offset & ~self._cluster_mask
        host_offset = entry & L2_OFFSET
        if not host_offset:
            return None
        cluster = host_offset >> self._cluster_bits
        if self.is_own(cluster):
            return host_offset
        refcount = self._cache.refcount(cluster)
        if refcount <= 1:
            problem = "overlaps metadata" if refcount else "has refcount 0"
            message = f"L2 entry {entry:#018x}: the host cluster {problem}, so that it is not written: run check -r"
            guest = Span(guest_offset & ~self._cluster_mask, self._geometry.cluster_size)
            where = Span(table.host_offset + index * self._words * 8, self._words * 8)
            raise CorruptMetadata(message, where=where, guest=guest, spec="Cluster mapping")
        return None

    def stretch(self, table: Table, start: int, end: int) -> tuple[int, int | None]:
        """Return up to where guest bytes can be treated alike, and where they may be written; None: in new clusters."""
        size = self._geometry.cluster_size
        stop = (start | (size - 1)) + 1
        host_offset = self.own_cluster(table, start)
        expected = host_offset
        while stop < end:
            expected = None if expected is None else expected + size
            if self.own_cluster(table, stop) != expected:
                break
            stop += size
        return min(stop, end), host_offset

    # --- tables ---

    def writable_table(self, guest_offset: int) -> Table:
        """Return the L2 table of a guest offset: a new one, or a copy of it, where it is missing or shared.

        Durable order, at the next commit: refcount, table, L1 entry; then the refcount of the shared one is lowered.
        """
        reader, cache = self._reader, self._cache
        table = reader.table(guest_offset)
        l1_index = guest_offset >> self._geometry.l2_coverage_bits
        refcount = 0 if table is None else cache.refcount(table.host_offset >> self._cluster_bits)
        if table is not None and refcount == 1:
            if not reader.l1_table[l1_index] & L1_COPIED:
                cache.l1.set(l1_index, table.host_offset | L1_COPIED)
            return table
        if table is not None and not refcount:
            where = Span(reader.l1_offset + l1_index * 8, 8)
            message = f"the L2 table at {table.host_offset:#x} has refcount 0, so that it is not written: run check -r"
            raise CorruptMetadata(message, where=where, spec="Cluster mapping")
        words = array("Q", bytes(self._geometry.cluster_size)) if table is None else table.words[:]
        host_offset = self._allocator.allocate(1).first << self._cluster_bits
        if self._guard is not None:
            self._guard.add(host_offset >> self._cluster_bits)
        new = reader.l2_tables[l1_index] = Table(words, host_offset, reachable=False)
        cache.l1.set(l1_index, host_offset | L1_COPIED)
        if table is not None:
            cache.release(table.host_offset >> self._cluster_bits)
        return new

    def release(self, entry: int, *, discard: bool = False) -> None:
        """Take a reference away from what an entry, which has just been replaced, names."""
        bits = self._cluster_bits
        if entry & L2_COMPRESSED:
            self._reader.decompressed.forget(entry)
            where = compressed_extent(entry, self._geometry)
            first = where.host_offset >> bits
            self._cache.release(first, (where.host_offset + where.length - 1 >> bits) - first + 1, discard=discard)
        elif entry & L2_OFFSET and not self._geometry.external_data:
            self._cache.release((entry & L2_OFFSET) >> bits, discard=discard)

    def make_room(self) -> None:
        """Commit where too much waits in memory; called before anything of a change is done."""
        tables, limit = self._reader.l2_tables, self._reader.l2_tables_limit
        if len(tables) >= max(2, limit // 2) or self._cache.releases > MAX_RELEASES:
            self._cache.commit()
            for index in list(tables)[: -limit // 4]:
                del tables[index]

    # --- what entries say ---

    def point(self, table: Table, start: int, end: int, host_offset: int) -> None:
        """Let the entries of guest bytes name adjacent host clusters that hold the bytes, all with refcount 1."""
        if self._geometry.extended_l2:
            self._point_subclusters(table, start, end, host_offset)
            return
        size, first = self._geometry.cluster_size, self.index(start)
        named = host_offset | L2_COPIED
        entries = array("Q", range(named, named + (self.index(end - 1) - first + 1) * size, size))
        if table.words[first : first + len(entries)] != entries:
            table.set_many(first, entries)

    def _point_subclusters(self, table: Table, start: int, end: int, host_offset: int) -> None:
        size, unit = self._geometry.cluster_size, self._geometry.subcluster_size
        while start < end:
            base = start & ~self._cluster_mask
            stop = min(end, base + size)
            index = self.index(start)
            touched = _bits((start - base) // unit, (stop - 1 - base) // unit)
            old, bitmap = table.words[index * 2], table.words[index * 2 + 1]
            if old & L2_COMPRESSED:
                bitmap = SUBCLUSTERS_ALLOCATED
            bitmap = (bitmap | touched) & ~(touched << SUBCLUSTERS_ZERO_SHIFT)
            words = array("Q", (host_offset | L2_COPIED, bitmap))
            if table.words[index * 2 : index * 2 + 2] != words:
                table.set_many(index * 2, words)
            start, host_offset = stop, host_offset + size

    def move(self, table: Table, start: int, end: int, host_offset: int) -> None:
        """Let the entries of guest bytes name new host clusters, and release what they named."""
        replaced = self.entries(table, start, end)
        self.point(table, start, end, host_offset)
        for entry in replaced:
            self.release(entry)

    def point_compressed(self, table: Table, guest_offset: int, host_offset: int, length: int) -> None:
        """Let the entry of a guest cluster name compressed data, and release what it named."""
        index, replaced = self.index(guest_offset), self.entry(table, guest_offset)
        table.set(index * self._words, compressed_entry(host_offset, length, self._geometry))
        if self._geometry.extended_l2:
            table.set(index * 2 + 1, 0)
        self.release(replaced)

    # --- zeros ---

    @property
    def can_zero(self) -> bool:
        """Whether entries can say that something reads as zeros, whatever lies below."""
        return self._geometry.extended_l2 or self._geometry.has_zero_bit

    def shows_backing(self, guest_offset: int) -> bool:
        """Return whether an unallocated cluster would show anything but zeros."""
        backing = self._reader.backing
        return backing is not None and guest_offset < backing.disk_size

    def is_plain_zero(self, table: Table | None, start: int, stop: int, *, unmap: bool) -> bool:
        """Return whether part of a cluster already is what zeroing would make of it."""
        if table is None:
            return not self.shows_backing(start)
        if unmap and self.entry(table, start) & (L2_OFFSET | L2_COMPRESSED | L2_COPIED):
            return False
        return reads_as_zeros(self._reader, start, stop - start)

    def hide_backing(self, table: Table, guest_offset: int, length: int) -> bool:
        """Let whole clusters read as zeros if none of them is in use: all at once; return whether that was so."""
        index, words, count = self.index(guest_offset), self._words, length >> self._cluster_bits
        if any(table.words[index * words : (index + count) * words]):
            return False
        zero = (0, SUBCLUSTERS_ALLOCATED << SUBCLUSTERS_ZERO_SHIFT) if self._geometry.extended_l2 else (L2_ZERO,)
        table.set_many(index * words, array("Q", zero * count))
        return True

    def zero(self, table: Table, start: int, stop: int, *, unmap: bool, whole: bool) -> None:
        """Let whole subclusters of one cluster read as zeros; `unmap` releases a `whole` cluster."""
        index = self.index(start)
        self.own_cluster(table, start)  # Judges the entry.
        entry = self.entry(table, start)
        drop = whole and (unmap or bool(entry & L2_COMPRESSED) or not self.can_zero)
        kept = 0 if drop else entry
        if self._geometry.extended_l2:
            self._zero_subclusters(table, index, kept, start, stop, whole=whole)
        else:
            table.set(index, kept | L2_ZERO if self.can_zero else 0)
        if drop:
            self.release(entry, discard=unmap)

    def _zero_subclusters(self, table: Table, index: int, kept: int, start: int, stop: int, *, whole: bool) -> None:
        unit = self._geometry.subcluster_size
        last = self._geometry.subclusters - 1 if whole else (stop - 1 & self._cluster_mask) // unit
        touched = _bits((start & self._cluster_mask) // unit, last)
        bitmap = 0 if whole else table.words[index * 2 + 1]
        table.set_many(index * 2, array("Q", (kept, bitmap & ~touched | touched << SUBCLUSTERS_ZERO_SHIFT)))


def _bits(first: int, last: int) -> int:
    """Return the bits of subclusters `first` to `last`, as in the lower half of a bitmap."""
    return ((1 << last - first + 1) - 1) << first
