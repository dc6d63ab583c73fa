"""The metadata of an image that is being written, in memory, and the one order in which it reaches the file.

The engine changes tables and refcounts here; nothing of that is written before `commit`. The order is the design:

    1  guest data       an external data file is durable before anything may name its clusters
    2  new refcounts    refcount blocks and a refcount table that nothing names yet: durable, then named
    3  raised refcounts with them the L2 tables that nothing names yet; durable, and the guest data with them
    4  the mapping      L2 entries and L1 entries, which now name only what is durable and counted; durable
    5  lowered refcounts of what step 4 has released; only now may it be allocated again, or given back to the system

A crash between any two writes leaves refcounts that are too high (leaks), never one that is too low. A step that
fails leaves its changes here: the next commit writes them again, in the same order. A failed flush is final, because
it is unknown what of the data before it is durable.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE
from qcow2c.errors import CorruptMetadata
from qcow2c.format import layout
from qcow2c.format.geometry import ClusterRun, Geometry
from qcow2c.format.header import Header
from qcow2c.format.refcounts import BLOCK_OFFSET, native_block, stored_block
from qcow2c.format.tables import Table
from qcow2c.light import NamedTuple
from qcow2c.storage.medium import Medium
from qcow2c.writer.header_update import HeaderUpdate

BLOCK_CACHE_BYTES = 32 << 20
"""Bound of the refcount blocks in memory that hold nothing new."""


class ReleasedClusters(NamedTuple):
    """Host clusters of which one reference each goes away with the changes that are pending."""

    first: int
    clusters: int
    discard: bool
    """Their space is given back to the system, where it is not needed again at once."""


class MetadataCache:
    """L1 and L2 tables, refcount table and blocks of one image, with what the file lacks of them."""

    def __init__(
        self, medium: Medium, data_medium: Medium, header: Header, l1_table: Table, l2: dict[int, Table]
    ) -> None:
        """`l1_table` and the loaded tables `l2`, by their L1 index, are shared with the reader.

        Guest data is written to `data_medium`: the same one, or that of an external data file.
        """
        store = medium.store
        self.geometry: Geometry = header.geometry
        self.medium = medium
        self.data_medium = data_medium
        self.header = HeaderUpdate(medium)
        self.l1 = l1_table
        self.l2 = l2
        table_size = header.refcount_table_clusters << header.cluster_bits
        stored_table = store.pread(table_size, header.refcount_table_offset).ljust(table_size, b"\0")
        self.refcount_table = Table(layout.words(stored_table), header.refcount_table_offset)
        self._tell_free: Callable[[list[ClusterRun]], None] = lambda _runs: None
        self._blocks: dict[int, Table] = {}
        self._block_limit = max(2, BLOCK_CACHE_BYTES >> header.cluster_bits)
        self._block_bits = self.geometry.refcount_block_bits
        self._block_mask = (1 << self._block_bits) - 1
        self._released: list[ReleasedClusters] = []

    # --- refcounts ---

    def report_free(self, tell: Callable[[list[ClusterRun]], None]) -> None:
        """Tell an allocator, from now on, which clusters become free."""
        self._tell_free = tell

    def refcount(self, cluster: int) -> int:
        """Return the refcount of a host cluster. Raises CorruptMetadata, StoreError."""
        block = self._blocks.get(cluster >> self._block_bits) or self.block(cluster >> self._block_bits)
        return 0 if block is None else block.words[cluster & self._block_mask]

    def set_refcounts(self, first: int, end: int, value: int) -> None:
        """Set the refcounts of clusters `first` to `end`, all of which have a refcount block."""
        while first < end:
            block = self.block(first >> self._block_bits)
            assert block is not None, "the allocator makes the block first"
            index = first & self._block_mask
            count = min(end - first, self._block_mask + 1 - index)
            block.set_many(index, array(block.words.typecode, [value]) * count)
            first += count

    def has_block(self, index: int) -> bool:
        """Return whether clusters have a refcount block: those from `index << refcount_block_bits` on."""
        return index < len(self.refcount_table.words) and bool(self.refcount_table.words[index] & BLOCK_OFFSET)

    def block(self, index: int) -> Table | None:
        """Return a refcount block, None where there is none and all refcounts are 0."""
        found = self._blocks.get(index)
        if found is not None or not self.has_block(index):
            return found
        offset, size = self.refcount_table.words[index] & BLOCK_OFFSET, self.geometry.cluster_size
        data = b"" if offset % size else self.medium.store.pread(size, offset)
        if not data:
            where = layout.word_span(self.refcount_table.host_offset, index)
            message = f"refcount block {index} at {offset:#x} is misaligned or past the end of the file"
            raise CorruptMetadata(message, where=where, spec="Host cluster management")
        self._evict_blocks()
        words = native_block(data.ljust(size, b"\0"), self.geometry.refcount_order)
        block = self._blocks[index] = Table(words, offset, sector_bits=self._refcounts_per_sector_bits)
        return block

    def add_block(self, index: int, host_offset: int) -> None:
        """Add an empty refcount block and its entry in the refcount table, which reaches so far."""
        words = native_block(bytes(self.geometry.cluster_size), self.geometry.refcount_order)
        bits = self._refcounts_per_sector_bits
        self._blocks[index] = Table(words, host_offset, sector_bits=bits, reachable=False)
        self.refcount_table.set(index, host_offset)

    def move_refcount_table(self, host_offset: int, entries: int) -> None:
        """Replace the refcount table by a longer one at another place; the old place is released."""
        old = self.refcount_table
        words = old.words + array("Q", bytes((entries - len(old.words)) * old.words.itemsize))
        self.refcount_table = Table(words, host_offset, reachable=False)
        bits = self.geometry.cluster_bits
        self.release(old.host_offset >> bits, self.geometry.clusters(len(old.words) * ENTRY_BYTES))
        clusters = self.geometry.clusters(entries * ENTRY_BYTES)
        self.header.set(refcount_table_offset=host_offset, refcount_table_clusters=clusters)

    def release(self, first: int, count: int = 1, *, discard: bool = False) -> None:
        """Take a reference away from each of `count` clusters, as soon as the change that does so is durable."""
        last = self._released[-1] if self._released else None
        if last is not None and last.first + last.clusters == first and last.discard == discard:
            self._released[-1] = ReleasedClusters(last.first, last.clusters + count, discard)
        else:
            self._released.append(ReleasedClusters(first, count, discard))

    @property
    def releases(self) -> int:
        """How many runs of clusters wait for a commit."""
        return len(self._released)

    @property
    def _refcounts_per_sector_bits(self) -> int:
        return (SECTOR_SIZE * 8).bit_length() - 1 - self.geometry.refcount_order

    def _evict_blocks(self) -> None:
        if len(self._blocks) >= self._block_limit:
            for index in [index for index, block in self._blocks.items() if not block.dirty][: self._block_limit // 2]:
                del self._blocks[index]

    # --- the order ---

    def commit(self) -> None:
        """Make all pending changes durable, in the order of this module's docstring.

        After it, everything written before it survives a crash; a crash within it leaves leaks at most.
        Raises StoreError: what is not durable yet stays pending, except after a failed flush.
        """
        self.data_medium.flush()
        self._publish_refcounts()
        self._write_what_nothing_names()
        self._write_mapping()
        self._lower_refcounts()

    def _publish_refcounts(self) -> None:
        """Step 2. A block must be reachable, and with it its refcounts, before anything relies on them."""
        new_blocks = [block for block in self._blocks.values() if not block.reachable]
        new_tables = [] if self.refcount_table.reachable else [self.refcount_table]
        if new_blocks or new_tables:
            self._write_blocks(new_blocks)
            self._write_words(new_tables)
            self.medium.flush()
            _settle([*new_blocks, *new_tables])
        # Only where the table has moved. The old one stays as it was: released, but not free before step 5.
        self.header.write()

    def _write_what_nothing_names(self) -> None:
        """Step 3. Raised refcounts may be durable too early, and new L2 tables too: that is a leak."""
        blocks = [block for block in self._blocks.values() if block.dirty]
        new_tables = [table for table in self.l2.values() if not table.reachable]
        self._write_words([self.refcount_table])
        self._write_blocks(blocks)
        self._write_words(new_tables)
        self.medium.flush()
        _settle([self.refcount_table, *blocks, *new_tables])

    def _write_mapping(self) -> None:
        """Step 4. Every entry stands for itself: a crash leaves some old and some new, all of them counted."""
        changed = [table for table in self.l2.values() if table.dirty]
        self._write_words([*changed, self.l1])
        self.medium.flush()
        _settle([*changed, self.l1])

    def _lower_refcounts(self) -> None:
        """Step 5. Not made durable here: until it is, the clusters count as leaked, or as used again."""
        released, self._released = self._released, []
        freed: list[ClusterRun] = []
        for run in released:
            freed += self._lower(run.first, run.first + run.clusters)
        if freed:
            self._tell_free(freed)
        self._write_blocks([block for block in self._blocks.values() if block.dirty])
        self._give_back(released)

    def _lower(self, first: int, end: int) -> Iterable[ClusterRun]:
        """Lower refcounts by one; yield the runs of clusters that are free now."""
        free_from = first
        for cluster in range(first, end):
            value = self.refcount(cluster) - 1
            if value >= 0:  # Else damaged metadata, opened with trust: it cannot get any lower.
                self.set_refcounts(cluster, cluster + 1, value)
            if value:
                if free_from < cluster:
                    yield ClusterRun(free_from, cluster)
                free_from = cluster + 1
        if free_from < end:
            yield ClusterRun(free_from, end)

    def lower_at_once(self, first: int, end: int) -> None:
        """Lower refcounts of clusters that were allocated, but to which nothing has ever referred."""
        freed = list(self._lower(first, end))
        if freed:
            self._tell_free(freed)

    def _give_back(self, released: Iterable[ReleasedClusters]) -> None:
        bits = self.geometry.cluster_bits
        for run in released:
            clusters = range(run.first, run.first + run.clusters)
            if run.discard and not any(map(self.refcount, clusters)):
                self.medium.punch(run.first << bits, run.clusters << bits)

    def _write_words(self, tables: Iterable[Table]) -> None:
        for table in tables:
            for first, end in table.dirty_runs():
                self.medium.write([layout.stored(table.words[first:end])], table.host_offset + first * ENTRY_BYTES)

    def _write_blocks(self, blocks: Iterable[Table]) -> None:
        order = self.geometry.refcount_order
        for block in blocks:
            for first, end in block.dirty_runs():
                data = stored_block(block.words[first:end], order)
                self.medium.write([data], block.host_offset + (first << order >> 3))


def _settle(tables: Iterable[Table]) -> None:
    """What was written of the tables is durable: from now on something in the file may refer to them."""
    for table in tables:
        table.dirty.clear()
        table.reachable = True
