"""The refcounts that an image stores, read as they are needed. Spec: "Host cluster management"."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c.constants import Limit
from qcow2c.format.refcounts import BLOCK_OFFSET, refcounts
from qcow2c.references.batches import SCAN_CLUSTERS
from qcow2c.references.walk import Walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array


class StoredRefcounts:
    """The refcounts that an image stores, by arrays. `table` names their blocks, shape (entries,), uint64, 0 for none.

    Blocks that cannot be (misaligned) are told apart from blocks that are not (all refcounts 0). What a block has past
    the end of the file is zeros. `counts` and `whole_at` give the refcounts whole; `window` and `at`
    give them in `dtype`.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._geometry = walk.geometry
        self.table = walk.refcount_table() & np.uint64(BLOCK_OFFSET)
        self.dtype = np.dtype(f"u{min(4, max(1, walk.geometry.refcount_bits >> 3))}")
        """Wider refcounts are cut off at the largest value of 32 bits, which stands for itself and all above."""

    def describes(self, cluster: int) -> bool:
        """Return whether a cluster has a refcount block."""
        index = cluster >> self._geometry.refcount_block_bits
        return index < len(self.table) and bool(self.table[index])

    def described_clusters(self) -> NDArray[np.int64]:
        """Return the first cluster that each refcount block describes, ascending."""
        return np.flatnonzero(self.table) << self._geometry.refcount_block_bits

    def counts(self, first: int, count: int) -> U64Array:
        """Return the refcounts of clusters; shape (count,)."""
        found = np.zeros(count, dtype=np.uint64)
        self._fill(found, first)
        return found

    def window(self, first: int, count: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return the refcounts of clusters, as wide as `dtype`; shape (count,)."""
        found = np.zeros(count, dtype=self.dtype)
        self._fill(found, first)
        return found

    def _fill(self, found: NDArray[np.unsignedinteger[Any]], first: int) -> None:
        bits, end = self._geometry.refcount_block_bits, first + len(found)
        for index in (np.flatnonzero(self.table[first >> bits : -(-end >> bits)]) + (first >> bits)).tolist():
            block = self._block(int(self.table[index]), found.dtype)
            if block is not None:
                start = index << bits
                low, high = max(first, start), min(end, start + len(block))
                found[low - first : high - first] = block[low - start : high - start]

    def unreadable(self, first: int, count: int) -> NDArray[np.bool_]:
        """Return which clusters have an impossible refcount block: misaligned, or beyond any file; shape (count,)."""
        bits = self._geometry.refcount_block_bits
        offsets = self.table[first >> bits : -(-(first + count) >> bits)]
        broken = np.zeros(count, dtype=bool)
        impossible = offsets % np.uint64(self._geometry.cluster_size) != 0
        impossible |= offsets >= np.uint64(Limit.SIGNED_OFFSET_END)
        for index in np.flatnonzero(impossible).tolist():
            broken[index << bits : (index + 1) << bits] = True
        return broken

    def at(self, clusters: NDArray[np.uint64]) -> NDArray[np.unsignedinteger[Any]]:
        """Return the refcounts of any clusters, in the order given; shape (n,). Each block is read once."""
        found = np.zeros(len(clusters), dtype=self.dtype)
        self._fill_at(found, clusters)
        return found

    def whole_at(self, clusters: NDArray[np.uint64]) -> U64Array:
        """Return the refcounts of any clusters as `at`, but none cut off."""
        found = np.zeros(len(clusters), dtype=np.uint64)
        self._fill_at(found, clusters)
        return found

    def _fill_at(self, found: NDArray[np.unsignedinteger[Any]], clusters: NDArray[np.uint64]) -> None:
        bits = np.uint64(self._geometry.refcount_block_bits)
        known = np.flatnonzero(clusters >> bits < np.uint64(len(self.table)))
        offsets = self.table[clusters[known] >> bits]
        order = np.argsort(offsets, kind="stable")
        edges = [0, *(np.flatnonzero(np.diff(offsets[order])) + 1).tolist(), len(order)]
        for start, end in pairwise(edges):
            if start == end or not offsets[order[start]]:
                continue
            block = self._block(int(offsets[order[start]]), found.dtype)
            rows = known[order[start:end]]
            if block is not None:
                found[rows] = block[clusters[rows] & np.uint64((1 << int(bits)) - 1)]

    def _block(self, offset: int, dtype: np.dtype[Any]) -> NDArray[np.unsignedinteger[Any]] | None:
        """Return the refcounts of a block, cut off where they do not fit; None where there can be no block."""
        size = self._geometry.cluster_size
        if offset % size or offset >= Limit.SIGNED_OFFSET_END:
            return None
        found = refcounts(self._walk.store.pread(size, offset).ljust(size, b"\0"), self._geometry.refcount_order)
        if found.itemsize > dtype.itemsize:
            found = np.minimum(found, np.iinfo(dtype).max).astype(dtype)
        return found


def used_end(counts: Callable[[int, int], NDArray[np.unsignedinteger[Any]]], clusters: int) -> int:
    """Return the end of the last of so many clusters, or a few more, whose refcount is not 0; 0 without one.

    `counts` returns the refcounts of a number of clusters from a first one on.
    """
    starts = reversed(range(0, clusters, SCAN_CLUSTERS))
    windows = ((first, np.flatnonzero(counts(first, SCAN_CLUSTERS))) for first in starts)
    return next((first + int(used[-1]) + 1 for first, used in windows if len(used)), 0)
