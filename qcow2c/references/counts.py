"""Accounting: how often each host cluster is referenced, set against its refcount; and what the L2 entries add up to.

It counts in windows of bounded size over all host clusters, so that memory does not grow with the image. Tables are
read in batches by two threads; nothing loops over entries. It reports and judges nothing: see `ops/check.py`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import SECTOR_SIZE
from qcow2c.format import tables
from qcow2c.format.table_rules import l2_rules
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.sweep import Sweep, Tally, Window
from qcow2c.references.walk import L2Tables, Owner, References, Walk
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

WINDOW_BYTES = 144 << 20
"""Bound of the counters and refcounts of one window."""

L1_TABLES = (Owner.L1_TABLE, Owner.SNAPSHOT_L1_TABLE)
_THREADS = 2
_CHUNK = 1 << 18
"""References that are counted at a time."""


def _whole_sectors(size: int) -> int:
    return -(-size // SECTOR_SIZE) * SECTOR_SIZE


def end_of_room(walk: Walk, *, is_l1: bool = False) -> int:
    """Return up to where a structure may reach: the last cluster of a file may be cut short.

    An L1 table needs all of its clusters, because without one of them a disk would read as zeros. Anything else may
    reach into one more, as for QEMU.
    """
    size, end = walk.geometry.cluster_size, _whole_sectors(walk.size)
    return walk.geometry.clusters(end) * size if is_l1 else end + size - 1


def leaves_file(walk: Walk, offsets: U64Array, lengths: U64Array, *, is_l1: bool = False) -> NDArray[np.bool_]:
    """Return which spans leave the file; see `end_of_room`."""
    room = np.uint64(end_of_room(walk, is_l1=is_l1))
    past: NDArray[np.bool_] = (offsets > room) | (lengths > room - np.minimum(offsets, room))
    return past


class Accounting:
    """The count over one image. `windows()` yields each window when it is complete; `tally` is then complete too."""

    def __init__(
        self, walk: Walk, metadata: Iterable[References] | None = None, *, progress: Progress | None = None
    ) -> None:
        """`metadata` is what is counted besides what L2 entries name: if not given, all but the refcount blocks.

        `progress` is told how many bytes of the file are counted.
        """
        self.walk = walk
        self.geometry = walk.geometry
        self.refcounts = StoredRefcounts(walk)
        self.tally = Tally()
        self.metadata = [*(walk.metadata() if metadata is None else metadata)]
        self.blocks = walk.refcount_blocks()
        self._progress = progress
        self._lock = threading.Lock()
        self._rules = l2_rules(self.geometry)
        self._tables = walk.stored_tables()
        self._reach = np.zeros((len(self._tables.offsets), 2), dtype=np.uint64)
        """For each table the first and the last cluster that it refers to: later windows skip tables by it."""
        self._size = _whole_sectors(walk.size)
        """Length of the file in whole sectors, as QEMU sees it."""
        self.end = self.geometry.clusters(self._size)
        """Clusters that are compared: those of the file, and one that something reaches into beyond its end."""
        self._end = self.end + 2
        self._bound = sum(int(part.weights.sum()) for part in self.metadata) * self.geometry.l2_entries

    def windows(self) -> Iterator[Window]:
        """Yield the windows in order, each with all references but those of the refcount table."""
        counter = np.dtype(np.uint32 if self._bound < 1 << 32 else np.uint64)
        size = WINDOW_BYTES // (counter.itemsize + self.refcounts.dtype.itemsize)
        size = max(1, size >> self.geometry.refcount_block_bits) << self.geometry.refcount_block_bits
        first = 0
        while True:
            count = min(size, self._end - first)
            window = Window(first, first + count, self.refcounts.window(first, count), np.zeros(count, counter))
            for part in self.metadata:
                self._count_spans(
                    window, part.offsets, part.lengths, part.weights, self.tally, is_l1=part.owner in L1_TABLES
                )
            self._count_tables(window)
            yield window
            first += count
            if first >= self.end:
                return

    # --- whole spans ---

    def _count_spans(
        self,
        window: Window,
        offsets: U64Array,
        lengths: U64Array,
        weights: U64Array,
        tally: Tally,
        *,
        is_l1: bool = False,
    ) -> None:
        """Count every cluster that each span touches, and the spans past the end, once in the first window."""
        if len(offsets) > _CHUNK:
            for start in range(0, len(offsets), _CHUNK):
                part = slice(start, start + _CHUNK)
                rows = offsets[part], lengths[part], weights[part]
                self._count_spans(window, *rows, tally, is_l1=is_l1)
            return
        past = leaves_file(self.walk, offsets, lengths, is_l1=is_l1)
        if not window.first:
            tally.past_end += int(weights[past].sum())
        inside = ~past & (lengths > 0)
        offsets, lengths, weights = offsets[inside], lengths[inside], weights[inside]
        if not len(offsets):
            return
        bits = np.uint64(self.geometry.cluster_bits)
        first = (offsets >> bits).view(np.int64)
        last = ((offsets + lengths - np.uint64(1)) >> bits).view(np.int64)
        self.end = max(self.end, int(last.max()) + 1)
        longest = int((last - first).max())
        if longest <= 4:
            for step in range(longest + 1):
                reaches = first + step <= last
                window.count((first + step)[reaches], weights[reaches])
        else:
            for start, end, weight in zip(first.tolist(), last.tolist(), weights.tolist(), strict=True):
                window.count_run(start, end + 1, weight)

    # --- L2 tables ---

    def _count_tables(self, window: Window) -> None:
        """Count what the L2 tables refer to; the first window's pass also sums up the entries."""
        chosen = self._tables
        if window.first:
            first, last = self._reach[:, 0], self._reach[:, 1]
            rows = np.flatnonzero((last >= np.uint64(window.first)) & (first < np.uint64(window.end)))
            chosen = L2Tables(chosen.offsets[rows], chosen.active[rows], chosen.snapshot[rows])
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(_THREADS) as pool:
            for start, end in self.walk.batches(chosen):
                self._tell(window, start, len(chosen.offsets))
                waiting.append(pool.submit(self._count_batch, window, chosen, start, end))
                if len(waiting) > _THREADS:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        self._tell(window, 1, 1)

    def _tell(self, window: Window, tables: int, of_all: int) -> None:
        """Tell that so many tables of all are counted in a window."""
        if self._progress is not None:
            clusters = window.first + (window.end - window.first) * tables // max(1, of_all)
            size = self.geometry.cluster_size
            self._progress(min(clusters, self.end) * size, self.end * size)

    def _count_batch(self, window: Window, chosen: L2Tables, start: int, end: int) -> None:
        sweep = Sweep(self.walk.batch(chosen, start, end), self.geometry)
        tally = Tally()
        if not window.first:
            sweep.add_to(tally, self._rules)
            tally.copied += self._copied_elsewhere(sweep)
            self._reach[start:end] = sweep.reach() if self._end > window.end else 0
        tally.copied += sweep.copied_mismatches(window)
        with self._lock:
            if not self.geometry.external_data:
                self._count_data(window, sweep, tally)
                self._count_compressed(window, sweep, tally)
            self.tally.add(tally)

    def _count_data(self, window: Window, sweep: Sweep, tally: Tally) -> None:
        size = self.geometry.cluster_size
        if not sweep.count:
            return
        if sweep.misaligned or sweep.end > self.geometry.clusters(self._size) * size:
            lengths = np.full(sweep.count, size, dtype=np.uint64)
            self._count_spans(window, sweep.offsets, lengths, sweep.weights(), tally)
        else:
            window.count_sweep(sweep)

    def _count_compressed(self, window: Window, sweep: Sweep, tally: Tally) -> None:
        if len(sweep.packed):
            offsets, lengths = tables.compressed_extents(sweep.packed, self.geometry)
            self._count_spans(window, offsets, lengths, sweep.packed_weights(), tally)

    def _copied_elsewhere(self, sweep: Sweep) -> int:
        """Return the copied bits that contradict the refcounts of clusters beyond all windows."""
        if self.geometry.external_data or sweep.end >> self.geometry.cluster_bits <= self._end:
            return 0
        clusters = sweep.clusters()
        beyond = np.flatnonzero(clusters >= self._end)
        return sweep.mismatches(beyond, self.refcounts.at(clusters[beyond].view(np.uint64)) == 1)
