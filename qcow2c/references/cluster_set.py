"""A set of host clusters as runs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from qcow2c.format.geometry import ClusterRun


class ClusterSet:
    """Host clusters, as few runs; more can be added one by one."""

    def __init__(self, runs: Iterable[ClusterRun]) -> None:
        """`runs` may come in any order."""
        self._firsts: list[int] = []
        self._ends: list[int] = []
        for first, end in sorted(runs):
            if self._ends and first <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._firsts.append(first)
                self._ends.append(end)
        self._added: set[int] = set()

    def __contains__(self, cluster: object) -> bool:
        if not isinstance(cluster, int):
            return False
        position = bisect_right(self._firsts, cluster) - 1
        return (position >= 0 and cluster < self._ends[position]) or cluster in self._added

    def add(self, cluster: int) -> None:
        self._added.add(cluster)

    def within(self, first: int, end: int) -> Iterator[ClusterRun]:
        """Yield the runs of clusters in a range; those that were added are single clusters."""
        position = max(0, bisect_right(self._firsts, first) - 1)
        while position < len(self._firsts) and self._firsts[position] < end:
            run = ClusterRun(max(first, self._firsts[position]), min(end, self._ends[position]))
            if run.first < run.end:
                yield run
            position += 1
        yield from (ClusterRun(cluster, cluster + 1) for cluster in self._added if first <= cluster < end)
