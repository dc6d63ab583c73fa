"""What a repair must know of an image: how often each cluster is referenced, and what of the refcounts can be used.

References are counted without the refcount table and its blocks, which a repair may replace. Memory follows the number
of clusters, a few bytes each, as in `atomic/refcounts.py`. It reads only, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import SECTOR_SIZE, Limit
from qcow2c.format.derived import AUTOCLEAR_FEATURES
from qcow2c.format.geometry import ClusterRun
from qcow2c.format.header import Header
from qcow2c.format.table_rules import REFCOUNT_TABLE_RULES
from qcow2c.format.tables import L1_OFFSET, L2_COMPRESSED, L2_OFFSET, compressed_extents
from qcow2c.references.batches import SCAN_CLUSTERS, flat
from qcow2c.references.counts import Accounting
from qcow2c.references.walk import L2Tables, Owner, References, State, Walk
from qcow2c.storage.store import Progress, Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

_BITMAPS = AUTOCLEAR_FEATURES["bitmaps"].mask
TABLE_OVERLAP = "something else overlaps the refcount table"

_BITMAP_OWNERS = (Owner.BITMAP_DIRECTORY, Owner.BITMAP_TABLE, Owner.BITMAP_DATA)


class Survey:
    """References and refcounts of one image, cluster by cluster; `clusters` are those of the file, or one more."""

    def __init__(self, store: Store, header: Header, progress: Progress | None = None) -> None:
        """Raises CorruptMetadata, LimitExceeded, StoreError."""
        self.store = store
        self.header = header
        self.geometry = header.geometry
        self.walk = Walk(store, header)
        self.bits = self.geometry.cluster_bits
        self.table = self.walk.refcount_table()
        self.step = max(SCAN_CLUSTERS, 1 << self.geometry.refcount_block_bits)
        self.metadata = [*self.walk.metadata()]
        counted = [part for part in self.metadata if part.owner is not Owner.REFCOUNT_TABLE]
        accounting = Accounting(self.walk, counted, progress=progress)
        self.refcounts = accounting.refcounts
        self._counts = flat(accounting.end + 2, np.uint32)
        referenced: set[int] = set()
        for window in accounting.windows():
            for first in range(0, window.end - window.first, SCAN_CLUSTERS):
                part = window.references[first : first + SCAN_CLUSTERS]
                if part.any():  # Untouched pages cost nothing.
                    referenced.add((window.first + first) // self.step)
                    limit = np.iinfo(np.uint32).max
                    self._counts[window.first + first :][: len(part)] = np.minimum(part, part.dtype.type(limit))
        self.clusters = accounting.end
        self._firsts = [first for first in range(0, self.clusters, self.step) if self._is_used(first, referenced)]
        self.past_end_count = accounting.tally.past_end
        """References past the end of the file, but for the refcount table."""
        self.blocks = self._blocks()
        self.table_run = self._run(header.refcount_table_offset, header.refcount_table_clusters << self.bits)
        self.stale = self._stale_bitmaps()

    def _run(self, offset: int, length: int) -> ClusterRun:
        """Return the clusters of a structure, as far as they are in the file."""
        end = self.geometry.clusters(offset + length)
        return ClusterRun(min(self.clusters, offset >> self.bits), min(self.clusters, end))

    def _blocks(self) -> NDArray[np.int64]:
        """Return the clusters of the refcount blocks that can be used, ascending, as often as they are named."""
        offsets = self.table[self._is_usable(self.table)]
        return np.sort((offsets >> np.uint64(self.bits)).view(np.int64))

    def _is_usable(self, table: U64Array) -> NDArray[np.bool_]:
        usable: NDArray[np.bool_] = (table != 0) & (table < np.uint64(self.walk.size))
        for rule in REFCOUNT_TABLE_RULES:
            usable &= ~rule.broken(table, 0, self.geometry)
        return usable

    def _stale_bitmaps(self) -> list[ClusterRun]:
        """Return the clusters of bitmaps that a program without knowledge of them has made stale."""
        header = self.header
        if header.bitmaps is None or header.bitmaps_consistent:
            return []
        walk = Walk(self.store, replace(header, autoclear_features=header.autoclear_features | _BITMAPS))
        found: list[ClusterRun] = []
        for part in walk.metadata():
            if part.owner in _BITMAP_OWNERS:
                for offset, length in zip(part.offsets.tolist(), part.lengths.tolist(), strict=True):
                    found.append(self._run(offset, length))
        return found

    # --- clusters ---

    def _is_used(self, first: int, referenced: set[int]) -> bool:
        """Return whether a chunk has references, refcount blocks, or data in the file."""
        bits = self.geometry.refcount_block_bits
        if first // self.step in referenced or self.table[first >> bits : (first + self.step) >> bits].any():
            return True
        start, end = (min(cluster << self.bits, self.walk.size) for cluster in (first, first + self.step))
        return any(is_data for _, is_data in self.store.extents(start, end))

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield clusters as (first, count); each chunk begins with a refcount block. Chunks without any use are not."""
        for first in self._firsts:
            yield first, min(self.step, self.clusters - first)

    def old(self, first: int, count: int) -> U64Array:
        """Return the refcounts as they are, none cut off; shape (count,)."""
        return self.refcounts.counts(first, count)

    def references(self, first: int, count: int, *, structures: bool = True) -> U64Array:
        """Return the references, with those of the refcount table and its blocks or without; shape (count,)."""
        found = self._counts[first : first + count].astype(np.uint64)
        if structures:
            start, end = (min(max(edge - first, 0), count) for edge in self.table_run)
            found[start:end] += np.uint64(1)
            mine = self.blocks[(self.blocks >= first) & (self.blocks < first + count)] - first
            np.add.at(found, mine, np.uint64(1))
        return found

    def references_at(self, clusters: NDArray[np.int64], *, structures: bool = True) -> U64Array:
        """Return the references of clusters in any order within the file, as `references`; shape (n,)."""
        found = self._counts[clusters].astype(np.uint64)
        if not structures:
            return found
        found += (clusters >= self.table_run.first) & (clusters < self.table_run.end)
        blocks = np.searchsorted(self.blocks, clusters, "right") - np.searchsorted(self.blocks, clusters)
        found += blocks.astype(np.uint64)
        return found

    def forget(self, offsets: U64Array, times: U64Array) -> None:
        """Take references away that misaligned clusters had: each of them touches two."""
        counted = offsets < np.uint64(-(-self.walk.size // SECTOR_SIZE) * SECTOR_SIZE)
        first = (offsets[counted] >> np.uint64(self.bits)).view(np.int64)
        for cluster in (first, first + 1):
            np.subtract.at(self._counts, cluster, times[counted].astype(np.uint32))

    def is_alone(
        self, offsets: U64Array, length: int, times: U64Array, *, structures: bool = True
    ) -> NDArray[np.bool_]:
        """Return which tables lie in the file, aligned, and have no other references than `times`, their own."""
        size = np.uint64(self.geometry.cluster_size)
        alone: NDArray[np.bool_] = (offsets != 0) & (offsets % size == 0)
        end = np.uint64(self.geometry.clusters(self.walk.size) << self.bits)
        alone &= (offsets < end) & (offsets + np.uint64(length) <= end)
        first = (offsets[alone] >> np.uint64(self.bits)).view(np.int64)
        fine = np.ones(len(first), dtype=bool)
        for step in range(self.geometry.clusters(length)):
            fine &= self.references_at(first + step, structures=structures) == times[alone]
        alone[alone] = fine
        return alone

    def is_believable(self, first: int, count: int) -> NDArray[np.bool_]:
        """Return which clusters have a refcount that says something; shape (count,).

        The others have no refcount block, an impossible one, or one that is all zeros although they are in use.
        """
        bits = self.geometry.refcount_block_bits
        entries = self.table[first >> bits : -(-(first + count) >> bits)]
        usable = np.zeros(-(-count >> bits), dtype=bool)
        usable[: len(entries)] = self._is_usable(entries)
        old, references = self.old(first, count), self.references(first, count)
        for index in np.flatnonzero(usable).tolist():
            rows = slice(index << bits, (index + 1) << bits)
            usable[index] = old[rows].any() or not references[rows].any()
        return np.repeat(usable, 1 << bits)[:count]

    # --- damage of the refcounts ---

    def overlap(self) -> str:
        """Return what something else overlaps, "" if nothing does: a refcount block, or only the refcount table."""
        if (self.references_at(self.blocks) != 1).any():
            return "something else overlaps a refcount block"
        if (self.references_at(np.arange(*self.table_run)) != 1).any():
            return TABLE_OVERLAP
        return ""

    def damage(self) -> str:
        """Return why the refcounts cannot be corrected where they are, but for overlaps; "" if they can."""
        header, table = self.header, self.table
        size = header.refcount_table_clusters << self.bits
        if not size:
            return "there is no refcount table"
        if header.refcount_table_offset + size > self.geometry.clusters(self.walk.size) << self.bits:
            return "the refcount table leaves the file"
        named = table != 0
        if (named & ~self._is_usable(table)).any():
            return "the refcount table names blocks that cannot be"
        bits = self.geometry.refcount_block_bits
        for first, count in self.chunks():
            used = np.unique(np.flatnonzero(self.references(first, count)) + first >> bits)
            if (used >= len(table)).any() or (table[used] == 0).any():
                return "clusters in use have no refcount block"
        return ""

    # --- places ---

    def states(self) -> Iterator[State]:
        """Yield the states with an L1 table, the active one first; of several with the same table only the first."""
        seen: set[tuple[int, int]] = set()
        for state in self.walk.states():
            key = state.l1_offset, state.l1_entries
            if state.walkable and state.l1_entries and key not in seen:
                seen.add(key)
                yield state

    def l1_places(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the L1 index of each of `walk.l2_tables()`, and which have several; shapes (n,)."""
        offsets = self.walk.l2_tables().offsets
        places, several = np.full(len(offsets), -1, dtype=np.int64), np.zeros(len(offsets), dtype=bool)
        for state in self.states():
            words = self.walk.l1_table(state)
            named = np.flatnonzero(words)
            rows = np.searchsorted(offsets, words[named] & np.uint64(L1_OFFSET))
            several[rows[(places[rows] >= 0) & (places[rows] != named)]] = True
            places[rows] = named
            several[rows[places[rows] != named]] = True
        return places, several

    def past_end(self) -> int:
        """Return the lowest byte behind all clusters to which anything refers; without any, the end of all offsets."""
        lowest, end = Limit.SIGNED_OFFSET_END, self.clusters << self.bits
        for part in self._all_references():
            with np.errstate(over="ignore"):
                ends = part.offsets + part.lengths
            past = (ends > np.uint64(end)) | (ends < part.offsets)
            if past.any():
                lowest = min(lowest, max(end, int(part.offsets[past].min())))
        return lowest

    def _all_references(self) -> Iterator[References]:
        yield from (part for part in self.metadata if part.owner is not Owner.REFCOUNT_TABLE)
        found: L2Tables = self.walk.stored_tables()
        for start, end in self.walk.batches(found):
            yield from self.walk.data(self.walk.batch(found, start, end))

    def inside(self, entries: U64Array) -> NDArray[np.bool_]:
        """Return which L2 entries name nothing past the end of the file; same shape."""
        size = np.uint64(self.geometry.clusters(self.walk.size) << self.bits)
        found: NDArray[np.bool_] = (entries & np.uint64(L2_OFFSET)) < size
        packed = (entries & np.uint64(L2_COMPRESSED)) != 0
        if packed.any():
            offsets, lengths = compressed_extents(entries[packed], self.geometry)
            found[packed] = offsets + lengths <= size
        return found
