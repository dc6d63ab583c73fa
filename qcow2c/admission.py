"""Admission: may this image be written? Looks at every reference and every refcount first, and changes nothing.

A writer believes refcounts: a cluster with refcount 0 is given out, one with refcount 1 is overwritten in place. So an
image is let in only if each refcount covers the references that there are, and no metadata is also something else.
Leaks are no obstacle, and neither are copied bits, which the engine does not believe.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qcow2c import rules
from qcow2c.errors import CorruptMetadata, MissingKey
from qcow2c.findings import Severity, raise_first
from qcow2c.header import Header, field_span
from qcow2c.records import SnapshotTable, read_bitmaps
from qcow2c.small_check import proved_clean
from qcow2c.store import Store


class ClusterSet:
    """Host clusters, as few runs; more can be added one by one."""

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        """`runs` are (first, end), in any order."""
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

    def within(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the runs, as (first, end), of clusters in a range; those that were added are single clusters."""
        position = max(0, bisect_right(self._firsts, first) - 1)
        while position < len(self._firsts) and self._firsts[position] < end:
            run = max(first, self._firsts[position]), min(end, self._ends[position])
            if run[0] < run[1]:
                yield run
            position += 1
        yield from ((cluster, cluster + 1) for cluster in self._added if first <= cluster < end)


@dataclass(frozen=True)
class Admission:
    """What was found. `verified`: refcounts can be believed; else `metadata` are the clusters to keep away from.

    `undercounted`: clusters of a dirty image with how many references they have, more than their refcount says.
    """

    verified: bool
    metadata: ClusterSet
    undercounted: list[tuple[int, int]] = field(default_factory=list)


def admit(store: Store, header: Header, snapshots: SnapshotTable) -> Admission:
    """Return the admission of an image whose header and snapshot table were believed when it was opened.

    Raises CorruptMetadata, MissingKey, and LimitExceeded where it would take too much to look.
    """
    _require_state(header)
    for record in snapshots.records:
        raise_first(rules.snapshot_findings(header, record), Severity.ERROR)
    if proved_clean(store, header, snapshots, read_bitmaps(store, header)) is not None:
        return Admission(True, ClusterSet(()))
    from qcow2c.admission_count import count  # Late: it imports numpy.

    return Admission(True, ClusterSet(()), count(store, header, snapshots))


def trusted(store: Store, header: Header, snapshots: SnapshotTable) -> Admission:
    """Return the admission of an image whose refcounts nobody has looked at.

    Raises as `admit`, but only for the state of the image, and for a refcount table that cannot be one.
    """
    _require_state(header)
    from qcow2c.admission_count import metadata_runs  # Late: it imports numpy.

    return Admission(False, ClusterSet(metadata_runs(store, header, snapshots)))


def _require_state(header: Header) -> None:
    if header.corrupt:
        message = (
            "the image is marked corrupt, so that it must not be written: "
            "the image is not opened for writing: run check -r first"
        )
        raise CorruptMetadata(message, where=field_span("incompatible_features"), spec="Header")
    if header.encrypted:
        raise MissingKey("the image is encrypted, and no key was given", spec="Data encryption")
