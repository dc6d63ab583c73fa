"""The refcounts that clusters will have: those that are stored, and the change of the references. Writes nothing.

Spec: "Host cluster management".
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.errors import CorruptMetadata, LimitExceeded, Span, StoreError
from qcow2c.format import tables
from qcow2c.format.refcounts import stored_block, word_code
from qcow2c.references.batches import SCAN_CLUSTERS, batches, flat
from qcow2c.references.stored_refcounts import StoredRefcounts, used_end
from qcow2c.references.sweep import Sweep
from qcow2c.references.walk import L2Batch, L2Tables, Walk, distinct_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array
from qcow2c.constants import Limit

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ReferenceDelta:
    """The change of each cluster's references; `counts` has shape (clusters,), dtype int32."""

    def __init__(self, walk: Walk) -> None:
        """Raises LimitExceeded for a file of more clusters than a check takes on."""
        self._walk = walk
        self._geometry = walk.geometry
        self._bits = np.uint64(walk.geometry.cluster_bits)
        clusters = walk.geometry.clusters(walk.size)
        if clusters > Limit.CHECKED_CLUSTERS:
            raise LimitExceeded(f"the file has {clusters} clusters, more than {Limit.CHECKED_CLUSTERS}")
        # What is yet to be placed mostly comes behind the file; untouched pages cost nothing.
        self.counts: NDArray[np.int32] = flat(2 * clusters + (1 << 16), np.int32)

    def add_run(self, first: int, clusters: int, weight: int) -> None:
        """Add to adjacent clusters."""
        end = first + clusters
        if end > len(self.counts):
            self._require_place(end, of_the_image=weight < 0)
            grown = flat(end + (1 << 16), np.int32)
            grown[: len(self.counts)] = self.counts
            self.counts = grown
        self.counts[first:end] += np.int32(weight)

    def _require_place(self, end: int, *, of_the_image: bool = True) -> None:
        """Raise for clusters up to `end` that could not have been counted: in an image that is trusted, all may be."""
        if of_the_image and end > len(self.counts):
            message = f"cluster {end - 1} is referred to, which is past the end of the file: run check -r first"
            raise CorruptMetadata(message, where=Span(0, self._walk.size), spec="Cluster mapping")

    def add_tables(self, l1_words: U64Array, weight: int) -> None:
        """Add for everything that an L1 table reaches: L2 tables, and what their entries name, as often as they do."""
        offsets, times = distinct_tables(l1_words)
        self._require_place(int(offsets[-1] >> self._bits) + 1 if len(offsets) else 0)
        np.add.at(self.counts, (offsets >> self._bits).view(np.int64), (times.astype(np.int64) * weight).astype("i4"))
        found = L2Tables(offsets, times, np.zeros(len(offsets), dtype=np.uint64))
        keep = self._walk.stored(offsets)
        if not keep.all():
            found = L2Tables(offsets[keep], times[keep], found.snapshot[keep])
        for _, batch in batches(self._walk, found):
            self.add_entries(batch, weight)

    def add_entries(self, batch: L2Batch, weight: int) -> None:
        """Add for what the entries of L2 tables name."""
        if self._geometry.external_data:
            return
        sweep = Sweep(batch, self._geometry)
        self._require_place(sweep.end >> self._geometry.cluster_bits)
        if sweep.uniform_weight is not None and sweep.in_runs:
            for first, end in sweep.runs:
                self.add_run(first, end - first, weight * sweep.uniform_weight)
        elif sweep.count:
            amounts = sweep.weights().astype(np.int32) * np.int32(weight)
            np.add.at(self.counts, sweep.clusters(), amounts)
        if len(sweep.packed):
            self._add_compressed(sweep, weight)

    def _add_compressed(self, sweep: Sweep, weight: int) -> None:
        offsets, lengths = tables.compressed_extents(sweep.packed, self._geometry)
        first = (offsets >> self._bits).view(np.int64)
        last = ((offsets + lengths - np.uint64(1)) >> self._bits).view(np.int64)
        self._require_place(int(last.max()) + 1)
        amounts = sweep.packed_weights().astype(np.int32) * np.int32(weight)
        for step in range(int((last - first).max()) + 1):
            reaches = first + step <= last
            np.add.at(self.counts, (first + step)[reaches], amounts[reaches])


def block_of(counts: U64Array, order: int) -> bytes:
    """Return refcounts as they are stored in a block."""
    words = array(word_code(order))
    words.frombytes(counts.astype(f"u{words.itemsize}").tobytes())
    return stored_block(words, order)


class RefcountChange:
    """Stored refcounts and new ones; `order` is the width of the new ones."""

    def __init__(self, walk: Walk, stored: StoredRefcounts, delta: ReferenceDelta, order: int) -> None:
        self.order = order
        self._geometry = walk.geometry
        self._stored = stored
        self._delta = delta

    @property
    def block_bits(self) -> int:
        """The clusters that a new refcount block describes, as a power of two."""
        return self._geometry.cluster_bits + 3 - self.order

    def counts(self, first: int, count: int) -> U64Array:
        """Return the refcounts that clusters will have. Raises LimitExceeded, CorruptMetadata."""
        old = self._stored.counts(first, count)
        change = np.zeros(count, dtype=np.int64)
        known = self._delta.counts[first : first + count]
        change[: len(known)] = known
        new = old + change.view(np.uint64)
        most = (1 << (1 << self.order)) - 1
        over = (new > np.uint64(most)) | ((change > 0) & (new < old))
        low = (change < 0) & (new > old)
        if low.any():
            cluster = first + int(np.flatnonzero(low)[0])
            message = f"cluster {cluster} has fewer references than are to be taken away: run check -r first"
            raise CorruptMetadata(message, spec="Host cluster management")
        if over.any():
            cluster = first + int(np.flatnonzero(over)[0])
            message = f"cluster {cluster} would have more references than a refcount can say, {most}"
            raise LimitExceeded(message, spec="Host cluster management")
        return new

    def at(self, clusters: NDArray[np.int64]) -> U64Array:
        """Return the refcounts that clusters, in any order, will have; shape (n,)."""
        found = np.zeros(len(clusters), dtype=np.uint64)
        bits = self._geometry.refcount_block_bits
        order = np.argsort(clusters, kind="stable")
        blocks = clusters[order] >> bits
        edges = np.concatenate(([0], np.flatnonzero(np.diff(blocks)) + 1, [len(blocks)])).tolist()
        for start, end in pairwise(edges):
            rows = order[start:end]
            if len(rows):
                first = int(blocks[start]) << bits
                found[rows] = self.counts(first, 1 << bits)[clusters[rows] - first]
        return found

    def counted_once(self, clusters: int) -> NDArray[np.bool_]:
        """Return for each of the first clusters whether its refcount will be 1."""
        once: NDArray[np.bool_] = flat(clusters, np.bool_)
        for first in range(0, clusters, SCAN_CLUSTERS):
            count = min(SCAN_CLUSTERS, clusters - first)
            once[first : first + count] = self.counts(first, count) == 1
        return once

    def sharing_changes(self) -> bool:
        """Return whether a cluster that stays in use is shared only before the change, or only after it."""
        delta = self._delta.counts
        for first in range(0, len(delta), SCAN_CLUSTERS):
            changed = np.flatnonzero(delta[first : first + SCAN_CLUSTERS])
            if len(changed):
                before = self._stored.counts(first, SCAN_CLUSTERS)[changed]
                after = self.counts(first, SCAN_CLUSTERS)[changed]
                if ((before != 0) & (after != 0) & ((before == 1) != (after == 1))).any():
                    return True
        return False

    def require_in_place(self) -> None:
        """Raise where the new refcounts cannot be written over the old: LimitExceeded, CorruptMetadata, StoreError."""
        bits = self._geometry.refcount_block_bits
        for index in self.changed_blocks(anew=False):
            if index >= len(self._stored.table) or not self._stored.table[index]:
                reason = "a refcount block would have to be made"
                raise StoreError(f"no room: {reason}", errno=errno.ENOSPC)
            self.counts(index << bits, 1 << bits)

    def write_in_place(self, write: Callable[[int, bytes], object], *, only_raised: bool) -> bool:
        """Write new refcounts over the old ones, which they are then; return whether there were any.

        `write` takes a host offset and what is to be there. With `only_raised` those that become lower stay to be
        written.
        """
        bits, delta = self._geometry.refcount_block_bits, self._delta.counts
        found = False
        for index in self.changed_blocks(anew=False):
            first = index << bits
            known = delta[first : first + (1 << bits)]
            change = np.maximum(known, 0) if only_raised else known.copy()
            if not change.any():
                continue
            new = self._stored.counts(first, 1 << bits)
            new[: len(change)] += change.astype(np.int64).view(np.uint64)
            write(int(self._stored.table[index]), block_of(new, self.order))
            known -= change
            found = True
        return found

    def changed_blocks(self, *, anew: bool) -> list[int]:
        """Return the new refcount blocks that must be written: all with a refcount, or those with a change."""
        delta, table = self._delta.counts, self._stored.table
        bits = self._geometry.refcount_block_bits
        step = max(SCAN_CLUSTERS, 1 << self.block_bits)
        found: list[int] = []
        end = max(len(delta), (len(table) << bits) if anew else 0)
        for first in range(0, end, step):
            if first >= len(delta) and not table[first >> bits : (first + step) >> bits].any():
                continue
            marked = self.counts(first, min(step, end - first)) if anew else delta[first : first + step]
            starts = np.arange(0, len(marked), 1 << self.block_bits)
            blocks = np.flatnonzero(np.logical_or.reduceat(marked != 0, starts))
            found += (blocks + (first >> self.block_bits)).tolist()
        return found

    def end(self, clusters: int) -> int:
        """Return the end of the last of so many clusters, or a few more, that will be in use; 0 where none will."""
        return used_end(self.counts, clusters)

    def freed(self, clusters: int) -> list[NDArray[np.int64]]:
        """Return which of the first clusters will be free, and are not, as first and end of runs, one by one."""
        runs: list[NDArray[np.int64]] = []
        for first in range(0, clusters, SCAN_CLUSTERS):
            count = min(SCAN_CLUSTERS, clusters - first)
            if (self._delta.counts[first : first + count] < 0).any():
                free = (self._stored.counts(first, count) != 0) & (self.counts(first, count) == 0)
                runs.append(np.flatnonzero(np.diff(np.concatenate(([False], free, [False])))) + first)
        return runs
