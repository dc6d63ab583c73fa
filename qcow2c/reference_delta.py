"""How many references each host cluster gains or loses by a change, counted with arrays; and where clusters are free.

Memory follows the number of clusters of the file, a few bytes each; above a bound it is a file without a name that the
system may write out. Nothing of the image is written here.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c import tables
from qcow2c.errors import CorruptMetadata, LimitExceeded, Span
from qcow2c.refcounts import BLOCK_OFFSET, native_block, stored_block, word_code
from qcow2c.references import L2Batch, L2Tables, Walk, distinct_tables
from qcow2c.structs import Limit
from qcow2c.sweep import Sweep

if TYPE_CHECKING:
    from numpy.typing import NDArray

    U64Array = NDArray[np.uint64]
    I64Array = NDArray[np.int64]


MEMORY_BYTES = 128 << 20
"""An array above this is kept in a file."""

SCAN_CLUSTERS = 1 << 20
"""Clusters whose refcounts are looked at together."""

_THREADS = 2
_MAX_RUNS = 1 << 16
"""Free runs that are remembered; space in others is not used."""


def flat(count: int, dtype: Any) -> NDArray[Any]:
    """Return zeros, in memory or in a file that goes away with them; pages that stay zeros take no room."""
    size = count * np.dtype(dtype).itemsize
    if size <= MEMORY_BYTES:
        return np.zeros(count, dtype=dtype)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=(count,))


def batches(walk: Walk, found: L2Tables) -> Iterator[tuple[int, L2Batch]]:
    """Yield the tables in batches, each with the row of its first one; they are read ahead in threads."""
    waiting: deque[tuple[int, Future[L2Batch]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for start, end in walk.batches(found):
            waiting.append((start, pool.submit(walk.batch, found, start, end)))
            if len(waiting) > _THREADS:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


class ReferenceDelta:
    """The change of each cluster's references; `counts` has shape (clusters,), dtype int32."""

    def __init__(self, walk: Walk) -> None:
        """Raises LimitExceeded for a file of more clusters than anybody checks."""
        self._walk = walk
        self._geometry = walk.geometry
        self._bits = np.uint64(walk.geometry.cluster_bits)
        clusters = walk.geometry.clusters(walk.size)
        if clusters > Limit.CHECKED_CLUSTERS:
            raise LimitExceeded(f"the file has {clusters} clusters, more than {Limit.CHECKED_CLUSTERS}")
        # What is yet to be placed mostly comes behind the file; pages that nobody touches cost nothing.
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
        """Raise for clusters up to `end` that nobody could have counted: in an image that is trusted, all may be."""
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


def block_of(counts: U64Array, order: int) -> bytes:
    """Return refcounts as they are stored in a block."""
    words = array(word_code(order))
    words.frombytes(counts.astype(f"u{words.itemsize}").tobytes())
    return stored_block(words, order)


class FreeSpace:
    """Clusters with refcount 0, in the file and behind it; each is given out once."""

    def __init__(self, used: Callable[[int, int], NDArray[np.bool_]], inside: int, end: int) -> None:
        """`used` tells which clusters of a range are in use; `inside` is the end of the file, `end` that of all use."""
        self._used = used
        self._inside = inside
        self._end = max(inside, end)
        self._scanned = 0
        self._runs: deque[tuple[int, int]] = deque()

    def take(self, clusters: int) -> int:
        """Give out clusters that lie together; return the first."""
        while True:
            for position, (first, end) in enumerate(self._runs):
                if end - first >= clusters:
                    self._runs[position] = first + clusters, end
                    if first + clusters == end:
                        del self._runs[position]
                    return first
            if not self._scan():
                return self.take_behind(clusters)

    def take_some(self, clusters: int) -> tuple[int, int]:
        """Give out at most so many clusters that lie together; return the first and their number."""
        while not self._runs:
            if not self._scan():
                return self.take(clusters), clusters
        first, end = self._runs.popleft()
        count = min(clusters, end - first)
        if first + count < end:
            self._runs.appendleft((first + count, end))
        return first, count

    def take_behind(self, clusters: int) -> int:
        """Give out clusters behind the file and all use; return the first."""
        first, self._end = self._end, self._end + clusters
        return first

    def _scan(self) -> bool:
        """Look at more of the file; return False where there is no more."""
        if self._scanned >= self._inside or len(self._runs) >= _MAX_RUNS:
            return False
        first, last = self._scanned, min(self._scanned + SCAN_CLUSTERS, self._inside)
        edge = np.ones(1, dtype=bool)
        edges = np.flatnonzero(np.diff(np.concatenate((edge, self._used(first, last), edge)))) + first
        self._runs.extend((start, stop) for start, stop in edges.reshape(-1, 2).tolist())
        self._scanned = last
        return True
