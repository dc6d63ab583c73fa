"""Free host clusters of an image that is changed as a whole. Counts; writes nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

from qcow2c.errors import LimitExceeded
from qcow2c.references.batches import SCAN_CLUSTERS

_MAX_RUNS = 1 << 16
"""Free runs that are remembered; space in others is not used."""

_MOST_PASSED = 1 << 10
"""Clusters behind the file that may be passed over in any case, because a refcount is in the way."""


class FreeSpace:
    """Clusters with refcount 0, in the file and behind it; each is given out once."""

    def __init__(self, used: Callable[[int, int], NDArray[np.bool_]], inside: int) -> None:
        """`used` returns which clusters of a range are in use, behind the file too; `inside` is the end of the file."""
        self._used = used
        self._inside = inside
        self._end = inside
        self._given = 0
        """Clusters that were given out behind the file."""
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
        """Give out clusters that lie together behind the file and what was given out there; return the first.

        A stray refcount there is passed over where it is in the way: the file becomes no longer than it must. Raises
        LimitExceeded where so many are that it would grow by far more than it needs.
        """
        self._given += clusters
        first = at = self._end
        while at < first + clusters:
            step = min(SCAN_CLUSTERS, first + clusters - at)
            used = np.flatnonzero(self._used(at, at + step))
            if len(used):
                first = at + int(used[-1]) + 1
                self._require_near(first + clusters)
            at += step
        self._end = first + clusters
        return first

    def _require_near(self, end: int) -> None:
        """Raise LimitExceeded for an end that leaves far more behind the file than was given out there."""
        most = self._inside + _MOST_PASSED + 2 * self._given
        if end > most:
            message = (
                f"the file would end at cluster {end}, and not at {self._inside + self._given}, "
                f"because of refcounts of clusters behind it, to which nothing refers: at most {most} is sound"
            )
            raise LimitExceeded(message, spec="Host cluster management")

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
