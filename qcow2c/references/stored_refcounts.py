"""The refcounts that an image stores, read as they are needed. Spec: "Host cluster management"."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import BLOCK_OFFSET, native_block, refcounts
from qcow2c.references.walk import Walk
from qcow2c.storage.sources import Store
from qcow2c.structs import Limit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array


class StoredRefcounts:
    """The refcounts that the file has; `table` names their blocks, shape (n,), dtype uint64, 0 for none."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._geometry = walk.geometry
        self.table = walk.refcount_table() & np.uint64(BLOCK_OFFSET)

    def counts(self, first: int, count: int) -> U64Array:
        """Return the refcounts of clusters; shape (count,)."""
        found = np.zeros(count, dtype=np.uint64)
        bits = self._geometry.refcount_block_bits
        end = min(first + count, len(self.table) << bits)
        for index in range(first >> bits, -(-end >> bits) if end > first else 0):
            if self.table[index]:
                start = index << bits
                low, high = max(first, start), min(end, start + (1 << bits))
                found[low - first : high - first] = self._block(int(self.table[index]))[low - start : high - start]
        return found

    def _block(self, offset: int) -> NDArray[np.unsignedinteger[Any]]:
        size = self._geometry.cluster_size
        words = native_block(self._walk.store.pread(size, offset).ljust(size, b"\0"), self._geometry.refcount_order)
        return np.frombuffer(words, dtype=f"u{words.itemsize}")

    def end_of_use(self) -> int:
        """Return the end of the last cluster with a refcount, if that is behind the file, else the file's."""
        bits, inside = self._geometry.refcount_block_bits, self._geometry.clusters(self._walk.size)
        for index in np.flatnonzero(self.table)[::-1].tolist():
            if (index + 1) << bits <= inside:
                break
            used = np.flatnonzero(self.counts(index << bits, 1 << bits))
            if len(used):
                return max(inside, int(used[-1] + (index << bits)) + 1)
        return inside


class Refcounts:
    """The refcounts of an image by arrays, read through its refcount table; shape of `table` (entries,), uint64.

    Blocks that cannot be (misaligned) are told apart from blocks that are not (all refcounts 0). What a block has past
    the end of the file is zeros.
    """

    def __init__(self, store: Store, geometry: Geometry, table: NDArray[np.uint64]) -> None:
        import numpy as np

        self._store = store
        self._geometry = geometry
        self._offsets = table & np.uint64(BLOCK_OFFSET)
        self.dtype = (
            np.dtype(np.uint32)
            if geometry.refcount_bits > 32
            else refcounts(b"", geometry.refcount_order).dtype.newbyteorder("=")
        )
        """Wider refcounts are cut off at the largest value of 32 bits, which stands for itself and all above."""

    @property
    def covered(self) -> int:
        """How many clusters, from the first, the refcount table can describe."""
        return len(self._offsets) << self._geometry.refcount_block_bits

    def describes(self, cluster: int) -> bool:
        """Tell whether a cluster has a refcount block."""
        index = cluster >> self._geometry.refcount_block_bits
        return index < len(self._offsets) and bool(self._offsets[index])

    def described_clusters(self) -> NDArray[np.int64]:
        """Return the first cluster that each refcount block describes, ascending."""
        import numpy as np

        return np.flatnonzero(self._offsets) << self._geometry.refcount_block_bits

    def window(self, first: int, count: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return the refcounts of clusters `first` to `first + count`, both multiples of a block; shape (count,)."""
        import numpy as np

        bits = self._geometry.refcount_block_bits
        found = np.zeros(count, dtype=self.dtype)
        offsets = self._offsets[first >> bits : -(-(first + count) >> bits)]
        for index in np.flatnonzero(offsets).tolist():
            block = self._block(int(offsets[index]))
            start = index << bits
            if block is not None:
                found[start : start + len(block)] = block[: max(0, count - start)]
        return found

    def unreadable(self, first: int, count: int) -> NDArray[np.bool_]:
        """Return which clusters have an impossible refcount block: misaligned, or beyond any file; shape (count,)."""
        import numpy as np

        bits = self._geometry.refcount_block_bits
        offsets = self._offsets[first >> bits : -(-(first + count) >> bits)]
        broken = np.zeros(count, dtype=bool)
        impossible = offsets % np.uint64(self._geometry.cluster_size) != 0
        impossible |= offsets >= np.uint64(Limit.SIGNED_OFFSET_END)
        for index in np.flatnonzero(impossible).tolist():
            broken[index << bits : (index + 1) << bits] = True
        return broken

    def at(self, clusters: NDArray[np.uint64]) -> NDArray[np.unsignedinteger[Any]]:
        """Return the refcounts of any clusters, in the order given; shape (n,). Each block is read once."""
        import numpy as np

        bits = np.uint64(self._geometry.refcount_block_bits)
        found = np.zeros(len(clusters), dtype=self.dtype)
        known = np.flatnonzero(clusters >> bits < np.uint64(len(self._offsets)))
        offsets = self._offsets[clusters[known] >> bits]
        order = np.argsort(offsets, kind="stable")
        edges = [0, *(np.flatnonzero(np.diff(offsets[order])) + 1).tolist(), len(order)]
        for start, end in pairwise(edges):
            if start == end or not offsets[order[start]]:
                continue
            block = self._block(int(offsets[order[start]]))
            rows = known[order[start:end]]
            if block is not None:
                found[rows] = block[clusters[rows] & np.uint64((1 << int(bits)) - 1)]
        return found

    def _block(self, offset: int) -> NDArray[np.unsignedinteger[Any]] | None:
        import numpy as np

        size = self._geometry.cluster_size
        if offset % size or offset >= Limit.SIGNED_OFFSET_END:
            return None
        decoded = refcounts(self._store.pread(size, offset).ljust(size, b"\0"), self._geometry.refcount_order)
        if self._geometry.refcount_bits > 32:
            decoded = np.minimum(decoded, np.iinfo(np.uint32).max).astype(np.uint32)
        return decoded
