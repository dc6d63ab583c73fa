"""The refcounts that clusters will have: those that are stored, and the change of the references. Writes nothing.

Spec: "Host cluster management".
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.errors import CorruptMetadata, LimitExceeded
from qcow2c.reference_delta import SCAN_CLUSTERS, ReferenceDelta, StoredRefcounts, flat
from qcow2c.references import Walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    U64Array = NDArray[np.uint64]


class RefcountChange:
    """Stored refcounts and new ones; `order` is the width of the new ones."""

    def __init__(self, walk: Walk, stored: StoredRefcounts, delta: ReferenceDelta) -> None:
        self.order = walk.geometry.refcount_order
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
        """Tell whether a cluster that stays in use is shared only before the change, or only after it."""
        delta = self._delta.counts
        for first in range(0, len(delta), SCAN_CLUSTERS):
            changed = np.flatnonzero(delta[first : first + SCAN_CLUSTERS])
            if len(changed):
                before = self._stored.counts(first, SCAN_CLUSTERS)[changed]
                after = self.counts(first, SCAN_CLUSTERS)[changed]
                if ((before != 0) & (after != 0) & ((before == 1) != (after == 1))).any():
                    return True
        return False

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
        starts = reversed(range(0, clusters, SCAN_CLUSTERS))
        windows = ((first, np.flatnonzero(self.counts(first, SCAN_CLUSTERS))) for first in starts)
        return next((first + int(used[-1]) + 1 for first, used in windows if len(used)), 0)

    def freed(self, clusters: int) -> list[NDArray[np.int64]]:
        """Return which of the first clusters will be free, and are not, as first and end of runs, one by one."""
        runs: list[NDArray[np.int64]] = []
        for first in range(0, clusters, SCAN_CLUSTERS):
            count = min(SCAN_CLUSTERS, clusters - first)
            if (self._delta.counts[first : first + count] < 0).any():
                free = (self._stored.counts(first, count) != 0) & (self.counts(first, count) == 0)
                runs.append(np.flatnonzero(np.diff(np.concatenate(([False], free, [False])))) + first)
        return runs
