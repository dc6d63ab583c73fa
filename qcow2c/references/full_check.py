"""The whole check of an image, by arrays. Beyond QEMU's counts it tells which clusters two structures claim at once.

It reads only; `check_result.py` says what the result means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from qcow2c.constants import ENTRY_BYTES
from qcow2c.errors import Span
from qcow2c.format import rules
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapDirectory, BitmapRecord, SnapshotTable
from qcow2c.format.table_rules import BITMAP_TABLE_RULES, L1_RULES, REFCOUNT_TABLE_RULES, EntryRule
from qcow2c.format.tables import L1_COPIED, L1_OFFSET
from qcow2c.references.check_result import CheckResult, Fault, Mismatch
from qcow2c.references.counts import Accounting
from qcow2c.references.faults import (
    copied_faults,
    l1_faults,
    l2_faults,
    of_finding,
    overflow_fault,
    past_end_faults,
    record_faults,
    refcount_block_faults,
    refcount_table_faults,
)
from qcow2c.references.overlaps import overlaps
from qcow2c.references.sweep import Window
from qcow2c.references.walk import ACTIVE, References, Walk
from qcow2c.storage.sources import Store
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

MAX_LISTED = 10_000
"""How many clusters with a wrong refcount, how many overlaps, and how many other faults a result lists."""

_CHUNK = 1 << 18


class Failed(Exception):
    """The check cannot go on, as QEMU's would not; the text is the system's for the error that QEMU returns."""


class FullCheck:
    """One check of an image; what it finds is added to `result`."""

    def __init__(self, store: Store, header: Header, result: CheckResult, progress: Progress | None = None) -> None:
        self._store = store
        self._header = header
        self._geometry = header.geometry
        self._result = result
        self._progress = progress

    def run(self, snapshots: SnapshotTable, bitmaps: BitmapDirectory) -> None:
        """Judge and count everything. Raises Failed, LimitExceeded, with what was found until then in the result."""
        walk = Walk(self._store, self._header, snapshots, bitmaps)
        self._judge_records(walk)
        self._judge_l1_tables(walk)
        self._judge_bitmaps(walk)
        self._count(walk)

    # --- rules ---

    def _found(self, rule: str, times: int) -> None:
        if times:
            self._result.corruptions += times
            self._result.broken[rule] = self._result.broken.get(rule, 0) + times

    def _add(self, faults: Iterable[Fault]) -> None:
        """List faults that are counted already, as far as there is room."""
        room = MAX_LISTED - len(self._result.faults)
        self._result.faults += islice(faults, max(0, room))

    def _judge_records(self, walk: Walk) -> None:
        faults = list(record_faults(self._header, walk))
        times: Counter[str] = Counter()
        for fault in faults:
            times[fault.rule] += fault.times
        for rule, count in times.items():
            self._found(rule, count)
        self._add(faults)

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
        for finding in rules.header_findings(self._header):
            if finding.rule.startswith("extension.bitmaps") and finding.severity >= Severity.WARNING:
                self._fail(finding)
        if walk.bitmaps.broken is not None:
            self._fail(walk.bitmaps.broken)
        seen: set[tuple[int, int]] = set()
        for record in walk.bitmaps.records:
            for finding in rules.bitmap_findings(self._header, record):
                self._fail(finding)
            if (record.bitmap_table_offset, record.bitmap_table_size) in seen:
                continue
            seen.add((record.bitmap_table_offset, record.bitmap_table_size))
            words = walk.words(record.bitmap_table_offset, record.bitmap_table_size)
            for rule in BITMAP_TABLE_RULES:
                wrong = np.flatnonzero(rule.broken(words, 0, self._geometry))
                if len(wrong):
                    self._fail(_bitmap_entry(record, words, int(wrong[0]), rule))

    def _fail(self, finding: Finding) -> NoReturn:
        """Give up, as QEMU does, which does not open such an image. Raises Failed."""
        self._found(finding.rule, 1)
        self._add([of_finding(finding)])
        where = "" if finding.where is None else f" ({finding.where})"
        raise Failed(f"Invalid argument: {finding.message}{where}")

    # --- counts ---

    def _count(self, walk: Walk) -> None:
        result, accounting = self._result, Accounting(walk, progress=self._progress)
        table = walk.refcount_table()
        blocks = self._countable_blocks(table)
        highest = 0
        for window in accounting.windows():
            if not window.first:
                self._find_blocks_outside(walk, blocks, accounting.end)
            inside = blocks[blocks < np.uint64(accounting.end)]
            self._find_overlaps(accounting.metadata, window)
            self._count_blocks(walk, window, inside)
            highest = max(highest, self._compare(window, accounting))
        tally = accounting.tally
        for rule, times in tally.broken.items():
            self._found(rule, times)
        self._found("past_end", tally.past_end)
        self._found("copied", tally.copied + self._l1_copied(accounting))
        self._locate(walk, accounting)
        self._count_silent_overlaps()
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

    def _find_blocks_outside(self, walk: Walk, blocks: U64Array, end: int) -> None:
        outside = blocks[blocks >= np.uint64(end)]
        self._found("refcount_block.outside", len(outside))
        places, times = np.unique(outside, return_counts=True)
        rows = zip(places.tolist(), times.tolist(), strict=True)
        found = ((cluster, "is outside image", count) for cluster, count in rows)
        self._add(refcount_block_faults(walk, "refcount_block.outside", found))

    def _count_blocks(self, walk: Walk, window: Window, blocks: U64Array) -> None:
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
        shared = np.flatnonzero(counted != 1)
        self._found("refcount_block.shared", len(shared))
        found = ((window.first + int(ordered[row]), f"refcount={int(counted[row])}", 1) for row in shared)
        self._add(refcount_block_faults(walk, "refcount_block.shared", found))
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
                self._find_overflow(referenced, window.first + start)
                referenced = np.minimum(referenced, largest)
            wrong = referenced != refcounts
            if broken[start:end].any():
                result.check_errors += int(np.count_nonzero(broken[start:end]))
                wrong &= ~broken[start:end]
            if wrong.any():
                rows = np.flatnonzero(wrong)
                # A window cuts wide refcounts off: what is reported is the whole of them.
                have = accounting.refcounts.whole_at((rows + window.first + start).astype(np.uint64))
                self._list_mismatches(rows, have, referenced[rows].astype(np.uint64), window.first + start)
        return self._highest_used(window, count)

    def _find_overflow(self, referenced: NDArray[np.unsignedinteger], first: int) -> None:
        over = np.flatnonzero(referenced > referenced.dtype.type(self._max_count))
        excess = referenced[over].astype(np.uint64) - np.uint64(self._max_count)
        self._found("overflow", int(excess.sum()))
        self._add(
            overflow_fault(self._geometry, first + int(row), int(times))
            for row, times in zip(over, excess, strict=True)
        )

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
        have: U64Array,
        want: U64Array,
        first: int,
    ) -> None:
        result = self._result
        result.leaks += int(np.count_nonzero(have > want))
        result.corruptions += int(np.count_nonzero(have < want))
        room = max(0, MAX_LISTED - len(result.mismatches))
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

    # --- places ---

    def _locate(self, walk: Walk, accounting: Accounting) -> None:
        """List which entries were counted; only where some were, for it takes another pass."""
        found = self._result.broken
        if any(rule.startswith("l1.") for rule in found):
            self._add(l1_faults(walk))
        if any(rule.startswith("l2.") for rule in found):
            self._add(l2_faults(walk))
        if "past_end" in found:
            self._add(past_end_faults(walk, accounting.metadata))
        if any(rule.startswith("refcount_table.") for rule in found):
            self._add(refcount_table_faults(walk))
        if "copied" in found:
            self._add(copied_faults(walk, accounting.refcounts))

    # --- beyond QEMU ---

    def _count_silent_overlaps(self) -> None:
        """Count overlapped clusters where QEMU, which knows no overlaps, would call the image clean."""
        if not self._result.corruptions:
            self._found("overlap", len({overlap.cluster for overlap in self._result.overlaps}))

    def _find_overlaps(self, metadata: list[References], window: Window) -> None:
        """List metadata clusters with more references than their own structure has."""
        listed = self._result.overlaps
        for overlap in overlaps(metadata, window, self._geometry.cluster_bits, self._store.size()):
            if len(listed) >= MAX_LISTED:
                return
            if not any(known.cluster == overlap.cluster and known.owner is overlap.owner for known in listed[-4:]):
                listed.append(overlap)


def _bitmap_entry(record: BitmapRecord, words: U64Array, index: int, rule: EntryRule) -> Finding:
    """Return what is wrong with an entry of a bitmap table."""
    name = record.name.decode("utf-8", "backslashreplace")
    message = f"bitmap {name!r}: entry {index} of its table, {int(words[index]):#x}: {rule.message}"
    where = Span(record.bitmap_table_offset + index * ENTRY_BYTES, ENTRY_BYTES)
    return Finding(rule.rule, Severity.WARNING, message, where, rule.spec)
