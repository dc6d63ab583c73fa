"""The whole check of an image, by arrays. Beyond QEMU's counts it tells which clusters two structures claim at once.

It reads only; `check_result.py` says what the result means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.format import rules
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapDirectory, SnapshotTable
from qcow2c.format.table_rules import BITMAP_TABLE_RULES, L1_RULES, REFCOUNT_TABLE_RULES, EntryRule
from qcow2c.format.tables import L1_COPIED, L1_OFFSET
from qcow2c.references.check_result import CheckResult, Mismatch
from qcow2c.references.counts import Accounting
from qcow2c.references.overlaps import overlaps
from qcow2c.references.sweep import Window
from qcow2c.references.walk import ACTIVE, References, Walk
from qcow2c.storage.sources import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

MAX_MISMATCHES = 10_000
"""How many clusters with a wrong refcount, and how many overlaps, a result lists."""

_CHUNK = 1 << 18


class Failed(Exception):
    """The check cannot go on, as QEMU's would not; the text is the system's for the error that QEMU returns."""


class FullCheck:
    """One check of an image; what it finds is added to `result`."""

    def __init__(self, store: Store, header: Header, result: CheckResult) -> None:
        self._store = store
        self._header = header
        self._geometry = header.geometry
        self._result = result

    def run(self, snapshots: SnapshotTable, bitmaps: BitmapDirectory) -> None:
        """Judge and count everything. Raises Failed, LimitExceeded, with what was found until then in the result."""
        walk = Walk(self._store, self._header, snapshots, bitmaps)
        self._judge_snapshots(walk)
        self._judge_l1_tables(walk)
        self._judge_bitmaps(walk)
        self._count(walk)

    # --- rules ---

    def _found(self, rule: str, times: int) -> None:
        if times:
            self._result.corruptions += times
            self._result.broken[rule] = self._result.broken.get(rule, 0) + times

    def _judge_snapshots(self, walk: Walk) -> None:
        counted = {"snapshot.extra_data", "snapshot.l1_table_offset", "snapshot.l1_size"}
        for record in walk.snapshots.records:
            found = {finding.rule for finding in rules.snapshot_findings(self._header, record)} & counted
            # QEMU looks at the size only where the offset is aligned.
            if "snapshot.l1_table_offset" in found:
                found.discard("snapshot.l1_size")
            for rule in sorted(found):
                self._found(rule, 1)
        if self._header.external_data and self._header.nb_snapshots:
            self._found("header.snapshots_with_data_file", 1)

    def _judge_l1_tables(self, walk: Walk) -> None:
        seen: dict[tuple[int, int], dict[str, int]] = {}
        for state in walk.states():
            if not state.walkable:
                continue
            key = state.l1_offset, state.l1_entries
            if key not in seen:
                words = walk.l1_table(state)
                seen[key] = {rule.rule: self._broken(words, rule) for rule in L1_RULES}
                if state.index == ACTIVE:
                    self._active_l1 = words
            for rule, times in seen[key].items():
                self._found(rule, times)

    def _broken(self, words: U64Array, rule: EntryRule) -> int:
        found = 0
        for start in range(0, len(words), _CHUNK):
            found += int(np.count_nonzero(rule.broken(words[start : start + _CHUNK], 0, self._geometry)))
        return found

    def _judge_bitmaps(self, walk: Walk) -> None:
        if walk.bitmaps.broken is not None:
            self._found(walk.bitmaps.broken.rule, 1)
            raise Failed("Invalid argument")
        seen: set[tuple[int, int]] = set()
        for record in walk.bitmaps.records:
            if any(rules.bitmap_findings(self._header, record)):
                self._found("bitmap", 1)
                raise Failed("Invalid argument")
            if (record.bitmap_table_offset, record.bitmap_table_size) in seen:
                continue
            seen.add((record.bitmap_table_offset, record.bitmap_table_size))
            words = walk.words(record.bitmap_table_offset, record.bitmap_table_size)
            for rule in BITMAP_TABLE_RULES:
                if self._broken(words, rule):
                    self._found(rule.rule, 1)
                    raise Failed("Invalid argument")

    # --- counts ---

    def _count(self, walk: Walk) -> None:
        result, accounting = self._result, Accounting(walk)
        table = walk.refcount_table()
        blocks = self._countable_blocks(table)
        highest = 0
        for window in accounting.windows():
            if not window.first:
                self._found("refcount_block.outside", self._blocks_outside(blocks, accounting.end))
            inside = blocks[blocks < np.uint64(accounting.end)]
            self._find_overlaps(accounting.metadata, window)
            self._count_blocks(window, inside)
            highest = max(highest, self._compare(window, accounting))
        tally = accounting.tally
        for rule, times in tally.broken.items():
            self._found(rule, times)
        self._found("past_end", tally.past_end)
        self._found("copied", tally.copied + self._l1_copied(accounting))
        result.allocated_clusters = tally.allocated
        result.fragmented_clusters = tally.fragmented
        result.compressed_clusters = tally.compressed
        result.image_end_offset = (highest + 1) * self._geometry.cluster_size

    def _countable_blocks(self, table: U64Array) -> U64Array:
        """Return the clusters of refcount blocks, judged; what breaks a rule is not counted."""
        broken = np.zeros(len(table), dtype=bool)
        for rule in REFCOUNT_TABLE_RULES:
            wrong = rule.broken(table, 0, self._geometry) & ~broken
            self._found(rule.rule, int(np.count_nonzero(wrong)))
            broken |= wrong
        clusters: U64Array = table[~broken & (table != 0)] >> np.uint64(self._geometry.cluster_bits)
        return clusters

    @staticmethod
    def _blocks_outside(blocks: U64Array, end: int) -> int:
        return int(np.count_nonzero(blocks >= np.uint64(end)))

    def _count_blocks(self, window: Window, blocks: U64Array) -> None:
        """Count the refcount blocks, last of all: none of them may have another reference."""
        mine = (blocks[(blocks >= window.first) & (blocks < window.end)] - window.first).view(np.int64)
        if not len(mine):
            return
        order = np.argsort(mine, kind="stable")
        ordered = mine[order]
        starts = np.concatenate(([True], ordered[1:] != ordered[:-1]))
        earlier = np.arange(len(ordered)) - np.maximum.accumulate(np.where(starts, np.arange(len(ordered)), 0))
        counted = np.minimum(
            window.references[ordered] + earlier.astype(np.uint64) + np.uint64(1), np.uint64(self._max_count)
        )
        self._found("refcount_block.shared", int(np.count_nonzero(counted != 1)))
        window.count(mine + window.first, np.ones(len(mine), dtype=np.uint64))

    @property
    def _max_count(self) -> int:
        return self._geometry.refcount_max

    def _compare(self, window: Window, accounting: Accounting) -> int:
        """Compare a window; return its highest cluster in use, or 0."""
        result = self._result
        count = min(window.end, accounting.end) - window.first
        broken = accounting.refcounts.unreadable(window.first, count)
        for start in range(0, count, _CHUNK):
            end = min(start + _CHUNK, count)
            referenced, refcounts = window.references[start:end], window.refcounts[start:end]
            if int(referenced.max()) > self._max_count:
                largest = referenced.dtype.type(self._max_count)
                self._found("overflow", int((referenced[referenced > largest] - largest).sum(dtype=np.uint64)))
                referenced = np.minimum(referenced, largest)
            wrong = referenced != refcounts
            if broken[start:end].any():
                result.check_errors += int(np.count_nonzero(broken[start:end]))
                wrong &= ~broken[start:end]
            if wrong.any():
                self._list_mismatches(np.flatnonzero(wrong), refcounts, referenced, window.first + start)
        return self._highest_used(window, count)

    @staticmethod
    def _highest_used(window: Window, count: int) -> int:
        for start in reversed(range(0, count, _CHUNK)):
            end = min(start + _CHUNK, count)
            used = np.flatnonzero((window.references[start:end] | window.refcounts[start:end]) != 0)
            if len(used):
                return window.first + start + int(used[-1])
        return 0

    def _list_mismatches(
        self,
        rows: NDArray[np.int64],
        refcounts: NDArray[np.unsignedinteger],
        referenced: NDArray[np.unsignedinteger],
        first: int,
    ) -> None:
        result = self._result
        have, want = refcounts[rows].astype(np.uint64), referenced[rows].astype(np.uint64)
        result.leaks += int(np.count_nonzero(have > want))
        result.corruptions += int(np.count_nonzero(have < want))
        room = max(0, MAX_MISMATCHES - len(result.mismatches))
        for row, refcount, references in zip(
            rows[:room].tolist(), have[:room].tolist(), want[:room].tolist(), strict=True
        ):
            result.mismatches.append(Mismatch(first + row, refcount, references))

    def _l1_copied(self, accounting: Accounting) -> int:
        """Return how many active L1 entries have a copied bit that contradicts the refcount of the L2 table."""
        found = 0
        for start in range(0, len(self._active_l1), _CHUNK):
            words = self._active_l1[start : start + _CHUNK]
            words = words[(words & np.uint64(L1_OFFSET)) != 0]
            clusters = (words & np.uint64(L1_OFFSET)) >> np.uint64(self._geometry.cluster_bits)
            copied = (words & np.uint64(L1_COPIED)) != 0
            found += int(np.count_nonzero((accounting.refcounts.at(clusters) == 1) != copied))
        return found

    # --- beyond QEMU ---

    def _find_overlaps(self, metadata: list[References], window: Window) -> None:
        """List metadata clusters with more references than their own structure has."""
        listed = self._result.overlaps
        for overlap in overlaps(metadata, window, self._geometry.cluster_bits, self._store.size()):
            if len(listed) >= MAX_MISMATCHES:
                return
            if not any(known.cluster == overlap.cluster and known.owner is overlap.owner for known in listed[-4:]):
                listed.append(overlap)
