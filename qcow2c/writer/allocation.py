"""Free host clusters: finding, counting and giving them out; new refcount blocks, and a longer refcount table.

It decides where; refcounts are changed in `cache.py`, and nothing is written here. A cluster is free when its refcount
in memory is 0: what was released stays counted until the change that released it is durable.
"""

from __future__ import annotations

import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

from qcow2c.constants import ENTRY_BYTES, Limit
from qcow2c.errors import LimitExceeded, StoreError
from qcow2c.format.geometry import ClusterRun
from qcow2c.format.refcounts import RefcountRoom, refcount_room, require_table
from qcow2c.format.tables import require_nameable
from qcow2c.light import NamedTuple, Protocol
from qcow2c.writer.cache import MetadataCache

_LOOK_AHEAD = 32
"""Free runs that are looked at for one that is long enough."""

_MAX_RUNS = 1 << 16
"""Free runs that are remembered before further ones are looked for."""

_BLOCKS_AHEAD = 64
"""Refcount blocks that are made together at most, so that what follows lies together, too."""


_NOT_ZERO = re.compile(rb"[^\0]")


class Forbidden(Protocol):
    """Clusters that are never given out."""

    def within(self, first: int, end: int) -> Iterable[ClusterRun]:
        """Return the runs of them in a range of clusters."""
        ...


class Allocation(NamedTuple):
    """Adjacent host clusters that were given out. `fresh`: nothing was ever written there, they read as zeros."""

    first: int
    clusters: int
    fresh: bool


class Allocator:
    """The free clusters of one image."""

    def __init__(self, cache: MetadataCache, *, forbidden: Forbidden | None = None) -> None:
        """`forbidden` clusters are never given out, whatever their refcount: where refcounts cannot be believed."""
        self._cache = cache
        self._geometry = cache.geometry
        self._forbidden = forbidden
        self._block_bits = cache.geometry.refcount_block_bits
        self._runs: deque[tuple[int, int]] = deque()
        self._scanned = 0
        """Refcount blocks whose free clusters are in `_runs`, or were given out."""
        entries = Limit.REFCOUNT_TABLE_BYTES // ENTRY_BYTES
        self._blocks_limit = min(entries, Limit.HOST_OFFSET_END >> cache.geometry.cluster_bits + self._block_bits)
        self._fresh_from = cache.geometry.clusters(cache.medium.store.size())
        self.frugal = False
        """Whether to give out free clusters of the file first, however few lie together: there is no room behind it."""
        self._packing = 0
        """Host offset behind the last compressed data, 0 where its cluster is full."""
        cache.report_free(self._freed)

    # --- whole clusters ---

    def allocate(self, count: int) -> Allocation:
        """Give out up to `count` adjacent clusters with refcount 1, at least one. Raises LimitExceeded."""
        while True:
            position = self._find(count)
            first, end = self._runs[position]
            if self._cache.has_block(first >> self._block_bits):
                break
            self._add_blocks(position, count)
        end = min(end, first + count)
        for block in range((first >> self._block_bits) + 1, (end - 1 >> self._block_bits) + 1):
            if not self._cache.has_block(block):
                end = block << self._block_bits
                break
        self._cache.set_refcounts(first, end, 1)
        self._replace(position, end, self._runs[position][1])
        fresh = first >= self._fresh_from
        self._fresh_from = max(self._fresh_from, end)
        return Allocation(first, end - first, fresh)

    def abandon(self, extent: Allocation) -> None:
        """Take back clusters to which nothing refers, and never did."""
        self._cache.lower_at_once(extent.first, extent.first + extent.clusters)

    def give_back(self, extent: Allocation) -> None:
        """Take back clusters that could not be written: the file is not longer, and holds no more, for the attempt."""
        self.abandon(extent)
        medium, bits = self._cache.medium, self._geometry.cluster_bits
        end = extent.first + extent.clusters
        with suppress(StoreError):
            if extent.fresh and self._fresh_from == end and medium.store.size() > extent.first << bits:
                medium.cut(extent.first << bits)
                self._fresh_from = extent.first
            else:
                medium.punch(extent.first << bits, extent.clusters << bits)

    def raise_refcount(self, cluster: int, references: int) -> None:
        """Set the refcount of a cluster in use that was counted too low. Raises LimitExceeded."""
        if references > self._geometry.refcount_max:
            message = f"cluster {cluster} has {references} references, above {self._geometry.refcount_max}"
            raise LimitExceeded(message, spec="Host cluster management")
        self._cache.set_refcounts(cluster, cluster + 1, references)

    def _find(self, count: int) -> int:
        """Return the position of a free run: one with room for all, if there is any at hand, else the first."""
        while not self._runs:
            self._scan()
        if self.frugal:
            return 0
        for position, (first, end) in enumerate(islice(self._runs, _LOOK_AHEAD)):
            if end - first >= count:
                return position
        while len(self._runs) < _MAX_RUNS and self._scanned < self._blocks_limit:
            first, end = self._runs[-1]
            if end - first >= count:
                return len(self._runs) - 1
            self._scan()
        return 0

    def _scan(self) -> None:
        """Look for free clusters in the next refcount block; where there is none, all are free."""
        index = self._scanned
        if index >= self._blocks_limit:
            clusters = self._blocks_limit << self._block_bits
            message = f"no free host cluster: the refcount table describes at most {clusters} clusters, all in use"
            raise LimitExceeded(message, spec="Host cluster management")
        base, count = index << self._block_bits, 1 << self._block_bits
        block = self._cache.block(index)
        self._scanned += 1
        words = array("B", bytes(count)) if block is None else block.words
        if self._forbidden is not None:
            words = words[:]
            for first, end in self._forbidden.within(base, base + count):
                words[first - base : end - base] = array(words.typecode, (1,)) * (end - first)
        for first, end in zero_runs(words):
            self._append(base + first, base + end)

    def _append(self, first: int, end: int) -> None:
        if self._runs and self._runs[-1][1] == first:
            first = self._runs.pop()[0]
        self._runs.append((first, end))

    def _replace(self, position: int, first: int, end: int) -> None:
        if first < end:
            self._runs[position] = first, end
        else:
            del self._runs[position]

    def _freed(self, freed: list[ClusterRun]) -> None:
        """Take up clusters whose refcount has become 0, but for those that a scan will find."""
        scanned_end = self._scanned << self._block_bits
        packing = self._packing >> self._geometry.cluster_bits
        known = list(self._runs)
        for first, end in freed:
            if first <= packing < end:
                self._packing = 0
            if first < scanned_end:
                known.append((first, min(end, scanned_end)))
        self._runs.clear()
        for first, end in sorted(known):
            self._append(first, end)

    # --- refcount blocks ---

    def _add_blocks(self, position: int, wanted: int) -> None:
        """Make refcount blocks for `wanted` clusters behind them, at the start of a free run that has none.

        Where the refcount table is too short for the first of them, a longer one comes behind the blocks.
        """
        cache, bits, cluster_bits = self._cache, self._block_bits, self._geometry.cluster_bits
        index = self._runs[position][0] >> bits
        if index < len(cache.refcount_table.words):
            first, end = self._runs[position]
            blocks = min(self._lacking(index, (first + wanted - 1 >> bits) - index + 1), end - first)
            taken = blocks
        else:
            # Everything up to the limit is free there: the last run grows with each scan.
            while True:
                position = len(self._runs) - 1
                first, end = self._runs[position]
                index = first >> bits
                room = self._with_longer_table(first, wanted)
                if end - first >= room.clusters:
                    break
                self._scan()
            blocks, taken = room.blocks, room.clusters
            entries = room.table_clusters * self._geometry.words_per_cluster
            cache.move_refcount_table(first + blocks << cluster_bits, entries)
        for block in range(blocks):
            cache.add_block(index + block, first + block << cluster_bits)
        cache.set_refcounts(first, first + taken, 1)
        self._fresh_from = max(self._fresh_from, first + taken)
        self._replace(position, first + taken, self._runs[position][1])

    def _lacking(self, index: int, wanted: int) -> int:
        """Return how many refcount blocks from `index` on, of those wanted, the table could name and does not."""
        bound = min(wanted, _BLOCKS_AHEAD, len(self._cache.refcount_table.words) - index)
        count = 1
        while count < bound and not self._cache.has_block(index + count):
            count += 1
        return count

    def _with_longer_table(self, first: int, wanted: int) -> RefcountRoom:
        """Return the room, from `first` on, of blocks for themselves and what is wanted, and of a table that can grow.

        Raises LimitExceeded.
        """
        index = first >> self._block_bits
        reach = min(first + wanted, index + _BLOCKS_AHEAD << self._block_bits)
        comfortable = min(len(self._cache.refcount_table.words) * 3 // 2, self._blocks_limit)
        room = refcount_room(self._geometry, first, kept=index, reach=reach, table_entries=comfortable)
        require_table(room.entries, self._blocks_limit)
        return room

    # --- compressed data ---

    def allocate_bytes(self, length: int) -> int:
        """Give out room for compressed data, packed behind the data before it; return its host offset.

        Each host cluster that the data touches gets a reference. Raises LimitExceeded.
        """
        cache, geometry = self._cache, self._geometry
        size = geometry.cluster_size
        at = self._packing
        if at and cache.refcount(at >> geometry.cluster_bits) >= geometry.refcount_max:
            at = 0
        room = -at % size
        if at and length <= room:
            cluster = at >> geometry.cluster_bits
            cache.set_refcounts(cluster, cluster + 1, cache.refcount(cluster) + 1)
        else:
            first = self.allocate(1).first
            if at and first == (at >> geometry.cluster_bits) + 1:
                cache.set_refcounts(first - 1, first, cache.refcount(first - 1) + 1)
            else:
                at = first << geometry.cluster_bits
        try:
            require_nameable(at, length, geometry)
        except LimitExceeded:
            self.abandon_bytes(at, length)
            raise
        end = at + length
        self._packing = end if end % size else 0
        return at

    def abandon_bytes(self, host_offset: int, length: int) -> None:
        """Take back room for compressed data to which nothing refers, and never did."""
        bits = self._geometry.cluster_bits
        self._packing = 0
        self._cache.lower_at_once(host_offset >> bits, (host_offset + length - 1 >> bits) + 1)


def zero_runs(words: array[int]) -> Iterator[tuple[int, int]]:
    """Yield the runs of words that are 0, as (first, end)."""
    data, width = words.tobytes(), words.itemsize
    at = data.find(bytes(width))
    while at >= 0:
        first = -(-at // width)  # Zeros may begin with the upper bytes of a word that is not 0.
        found = _NOT_ZERO.search(data, first * width)
        end = len(words) if found is None else found.start() // width
        if first < end:
            yield first, end
        at = data.find(bytes(width), (end + 1) * width)
