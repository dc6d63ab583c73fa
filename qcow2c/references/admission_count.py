"""The count behind an admission: every reference and every refcount, by arrays. It changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.errors import CorruptMetadata, Qcow2Error, Span
from qcow2c.format.geometry import ClusterRun
from qcow2c.format.header import Header
from qcow2c.format.layout import word_span
from qcow2c.format.records import SnapshotTable
from qcow2c.format.table_rules import L1_RULES, REFCOUNT_TABLE_RULES
from qcow2c.references.counts import Accounting
from qcow2c.references.overlaps import overlaps
from qcow2c.references.sweep import Window
from qcow2c.references.walk import References, Walk
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

MAX_UNDERCOUNTED = 1 << 20
"""Clusters of a dirty image whose refcount is raised; with more of them it needs a repair."""

_REPAIR = "the image is not opened for writing: run check -r first"
_SPEC = "Host cluster management"


def count(store: Store, header: Header, snapshots: SnapshotTable) -> list[tuple[int, int]]:
    """Return the clusters of a dirty image that have more references than their refcount says, with how many.

    Raises CorruptMetadata for anything that makes it unsafe to write, LimitExceeded where it would take too much.
    """
    walk = Walk(store, header, snapshots)
    _require_sound_tables(walk)
    return _Count(walk).undercounted()


def metadata_runs(store: Store, header: Header, snapshots: SnapshotTable) -> list[ClusterRun]:
    """Return the clusters of metadata. Raises CorruptMetadata for an impossible refcount table."""
    walk = Walk(store, header, snapshots)
    _require_sound_refcount_table(walk)
    bits = header.cluster_bits
    runs: list[ClusterRun] = []
    for part in [*walk.metadata(), walk.refcount_blocks()]:
        for offset, length in zip(part.offsets.tolist(), part.lengths.tolist(), strict=True):
            runs.append(ClusterRun(offset >> bits, (offset + length - 1 >> bits) + 1))
    return runs


def _refused(message: str, where: Span | None = None, spec: str = _SPEC) -> Qcow2Error:
    return CorruptMetadata(f"{message}; {_REPAIR}", where=where, spec=spec)


def _require_sound_tables(walk: Walk) -> None:
    """Raise for an entry of an L1 table or of the refcount table that breaks a rule."""
    _require_sound_refcount_table(walk)
    for state in walk.states():
        words = walk.l1_table(state)
        for rule in L1_RULES:
            _require_none(rule.broken(words, 0, walk.geometry), words, state.l1_offset, f"L1 entry: {rule.message}")


def _require_sound_refcount_table(walk: Walk) -> None:
    """Raise for an entry of the refcount table that breaks a rule, or names the block of another."""
    table = walk.refcount_table()
    at = walk.header.refcount_table_offset
    for rule in REFCOUNT_TABLE_RULES:
        _require_none(rule.broken(table, 0, walk.geometry), table, at, f"refcount table entry: {rule.message}")
    rows = np.flatnonzero(table)
    _, first = np.unique(table[rows], return_index=True)
    repeated = np.zeros(len(table), dtype=bool)
    repeated[np.delete(rows, first)] = True
    _require_none(repeated, table, at, "two entries of the refcount table name one block")


def _require_none(broken: NDArray[np.bool_], words: U64Array, table_offset: int, problem: str) -> None:
    rows = np.flatnonzero(broken)
    if len(rows):
        row = int(rows[0])
        raise _refused(f"{problem} ({int(words[row]):#018x})", word_span(table_offset, row))


class _Count:
    """The count of all references, compared with the refcounts window by window."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._geometry = walk.geometry
        self._accounting = Accounting(walk)
        self._undercounted: list[tuple[int, int]] = []

    def undercounted(self) -> list[tuple[int, int]]:
        accounting = self._accounting
        blocks = (walk_blocks := accounting.blocks).offsets >> np.uint64(self._geometry.cluster_bits)
        for window in accounting.windows():
            self._judge(window, blocks, [*accounting.metadata, walk_blocks])
        tally = accounting.tally
        for rule, times in tally.broken.items():
            raise _refused(f"{times} L2 entries break the rule {rule}", spec="Cluster mapping")
        if tally.past_end:
            raise _refused(f"{tally.past_end} references lead past the end of the file")
        return self._undercounted

    def _judge(self, window: Window, blocks: U64Array, metadata: list[References]) -> None:
        inside = blocks[(blocks >= window.first) & (blocks < window.end)]
        window.count(inside.view(np.int64), np.ones(len(inside), dtype=np.uint64))
        if window.first == 0 and len(blocks) and int(blocks.max()) >= self._accounting.end:
            raise _refused(f"the refcount block at cluster {int(blocks.max())} is past the end of the file")
        bits = self._geometry.cluster_bits
        for overlap in overlaps(metadata, window, bits, self._walk.size):
            where = Span(overlap.cluster << bits, self._geometry.cluster_size)
            owner = overlap.owner.name.lower().replace("_", " ")
            raise _refused(f"something else overlaps the {owner}: {overlap.references} references", where)
        unreadable = np.flatnonzero(self._accounting.refcounts.unreadable(window.first, window.end - window.first))
        if len(unreadable):
            raise _refused(f"the refcount block of cluster {window.first + int(unreadable[0])} cannot be read")
        self._compare(window)

    def _compare(self, window: Window) -> None:
        low = np.flatnonzero(window.references > window.refcounts)
        if not len(low):
            return
        first = window.first + int(low[0])
        have, want = int(window.refcounts[low[0]]), int(window.references[low[0]])
        where = Span(first << self._geometry.cluster_bits, self._geometry.cluster_size)
        if not self._walk.header.dirty:
            raise _refused(f"cluster {first} has refcount {have}, but {want} references", where)
        if len(self._undercounted) + len(low) > MAX_UNDERCOUNTED:
            raise _refused(f"more than {MAX_UNDERCOUNTED} clusters have a refcount that is too low", where)
        clusters = (low + window.first).tolist()
        describes = self._accounting.refcounts.describes
        uncovered = [cluster for cluster in clusters if not describes(cluster)]
        if uncovered:
            raise _refused(f"cluster {uncovered[0]} is in use, but has no refcount block", where)
        self._undercounted += zip(clusters, window.references[low].tolist(), strict=True)
