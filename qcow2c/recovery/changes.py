"""The changes of a repair, as a journal: refcounts in place or anew, entries of tables, fields of the header.

Durable order in place: a header without marks of unknown features; raised refcounts; entries of tables;
lowered refcounts; the marks of the header. With all refcounts anew: that header; new blocks where nothing is; a table
of them; the header that names it; entries; the marks. A crash leaves an image with some of that done: no refcount
becomes too low by it that was not before.
Spec: "Host cluster management".
"""

from __future__ import annotations

import enum
from array import array
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE, Limit
from qcow2c.errors import Span
from qcow2c.format import layout, tables
from qcow2c.format.derived import AUTOCLEAR_FEATURES
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import field_span
from qcow2c.format.header_writer import with_fields
from qcow2c.format.refcounts import BLOCK_OFFSET, native_block, refcount_room, stored_block, word_code
from qcow2c.format.table_rules import L1_RULES, EntryRule, l2_rules
from qcow2c.recovery.journal import Journal
from qcow2c.recovery.plan import Plan, PlannedRefcounts, RepairAction, RepairKind
from qcow2c.recovery.survey import Survey
from qcow2c.references.walk import ACTIVE, L2Batch, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

_UNKNOWN_AUTOCLEAR = AUTOCLEAR_FEATURES.reserved


class Stage(enum.IntEnum):
    """The order of the changes; each stage is durable before the next."""

    MARK = 0
    RAISE = 1
    """Refcounts in place, or new refcount blocks."""
    TABLE = 2
    """A new refcount table: only with its blocks can it be told from an L2 table that was lost."""
    ENTRIES = 3
    LOWER = 4
    LATE_ENTRIES = 5
    """Entries where refcounts are anew: the old ones, which may overlap a table, are no longer in use."""
    HEADER = 6


class Changes:
    """Writes what a repair changes into a journal, and what that is into its plan."""

    def __init__(self, survey: Survey, refcounts: PlannedRefcounts, plan: Plan, journal: Journal) -> None:
        self._survey = survey
        self._refcounts = refcounts
        self._plan = plan
        self._journal = journal
        self._geometry = survey.geometry
        self._bits = survey.bits
        self._sector = survey.store.pread(SECTOR_SIZE, 0)
        self._header_is_alone = bool(survey.references_at(np.zeros(1, dtype=np.int64))[0] == 1)
        self._entries = Stage.LATE_ENTRIES if refcounts.rebuild else Stage.ENTRIES
        self._switch: tuple[str, dict[str, int]] | None = None
        self._gives_up_bitmaps = False

    # --- header ---

    def set_header(self, stage: Stage, reason: str, **values: int) -> None:
        """Change fields of the header, of which at least one is other; not where it is something else, too."""
        if not self._header_is_alone:
            return
        old, self._sector = self._sector, with_fields(self._sector, values)
        for name, value in values.items():
            span = field_span(name)
            before = layout.integer(old[span.offset : span.end])
            if before != value:
                self._plan.add(RepairAction(RepairKind.HEADER, span, before, value, f"{name}: {reason}"))
        self._journal.add(stage, 0, old, self._sector)

    def mark(self) -> None:
        """Take away, before anything else, the marks of unknown features, as every writer must."""
        known = self._survey.header.autoclear_features & ~_UNKNOWN_AUTOCLEAR
        if known != self._survey.header.autoclear_features:
            self.set_header(Stage.MARK, "unknown features", autoclear_features=known)

    def give_up_bitmaps(self, reason: str) -> None:
        """Let the header say that the bitmaps are stale, as that of the survey does."""
        self._gives_up_bitmaps = True
        self.set_header(Stage.MARK, reason, autoclear_features=self._survey.header.autoclear_features)

    def drop_lone_mark(self) -> None:
        """Let the marks be where nothing else changes."""
        if self._journal.stages == [Stage.MARK] and not self._gives_up_bitmaps:
            self._journal.drop()
            self._plan.drop(RepairKind.HEADER)

    # --- refcounts in place ---

    def correct_refcounts(self) -> None:
        """Change refcounts in the blocks that there are."""
        survey, block_bits = self._survey, self._geometry.refcount_block_bits
        for first, count in survey.chunks():
            old, new = self._refcounts.of(first, count)
            changed = np.flatnonzero(old != new)
            for index in np.unique(changed + first >> block_bits).tolist():
                start = (index << block_bits) - first
                rows = changed[(changed >= start) & (changed < start + (1 << block_bits))]
                # A cluster without a block counts as free, and stays so where only leaks are repaired.
                self._correct_block(int(survey.table[index]) & BLOCK_OFFSET, rows - start, old[rows], new[rows])

    def _correct_block(self, at: int, rows: NDArray[np.int64], old: U64Array, new: U64Array) -> None:
        order = self._geometry.refcount_order
        stored = self._survey.store.pread(self._geometry.cluster_size, at)
        words = native_block(stored.ljust(self._geometry.cluster_size, b"\0"), order)
        counts = np.frombuffer(words, dtype=f"u{words.itemsize}")
        raised, low = counts.copy(), new > old
        raised[rows[low]] = new[low]
        final = raised.copy()
        final[rows[~low]] = new[~low]
        between = self._block(raised)
        self._add_sectors(Stage.RAISE, at, stored, between)
        self._add_sectors(Stage.LOWER, at, between, self._block(final))

    def _block(self, counts: NDArray[np.unsignedinteger]) -> bytes:
        code = word_code(self._geometry.refcount_order)
        words = array(code, counts.astype(f"u{array(code).itemsize}").tobytes())
        return stored_block(words, self._geometry.refcount_order)

    def _add_sectors(self, stage: Stage, at: int, old: bytes, new: bytes) -> None:
        """Note those sectors of a structure that change; `old` is shorter where the file ends."""
        padded = old.ljust(len(new), b"\0")
        pair = np.frombuffer(padded, dtype=np.uint8) != np.frombuffer(new, dtype=np.uint8)
        changed = pair.reshape(-1, SECTOR_SIZE).any(axis=1).astype(np.int8)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], changed, [0])))) * SECTOR_SIZE
        for start, end in edges.reshape(-1, 2).tolist():
            self._journal.add(stage, at + start, old[start:end], new[start:end])

    # --- refcounts anew ---

    def rebuild_refcounts(self, reason: str) -> str:
        """Write all refcounts behind everything, for the header to name; return why not, where that cannot be.

        Nothing may come to lie where anything refers to: then it would read what is no data.
        """
        survey = self._survey
        if not self._header_is_alone:
            return "something else overlaps the header"
        if self._refcounts.keeps and survey.overlap():
            return "it is a sign that tables were lost"
        bits, block_bits = self._bits, self._geometry.refcount_block_bits
        start = max(survey.clusters, self._geometry.clusters(survey.walk.size))
        needed: set[int] = set()
        for first, count in survey.chunks():
            used = np.flatnonzero(self._refcounts.of(first, count)[1])
            needed.update(np.unique(used + first >> block_bits).tolist())
        behind = start >> block_bits
        needed.discard(behind)  # The room begins there, so that this block is new in any case.
        room = refcount_room(self._geometry, start, kept=behind - len(needed))
        needed.update(range(behind, room.entries))
        table_clusters, end = room.table_clusters, start + room.clusters
        if (end + 1) << bits > min(survey.past_end(), Limit.HOST_OFFSET_END):
            return "new ones would come to lie where something refers to already"
        if table_clusters << bits > Limit.REFCOUNT_TABLE_BYTES:
            return f"the refcount table would have more than {Limit.REFCOUNT_TABLE_BYTES} bytes"
        table = np.zeros(table_clusters * survey.geometry.words_per_cluster, dtype=np.uint64)
        for number, index in enumerate(sorted(needed)):
            at = (start + table_clusters + number) << bits
            table[index] = at
            self._journal.add(Stage.RAISE, at, b"", self._new_block(index, start, end))
        self._journal.add(Stage.TABLE, start << bits, b"", table.astype(">u8").tobytes())
        span = Span(start << bits, room.clusters << bits)
        self._plan.add(
            RepairAction(RepairKind.REBUILD, span, survey.header.refcount_table_offset, start << bits, reason)
        )
        fields = {"refcount_table_offset": start << bits, "refcount_table_clusters": table_clusters}
        self._switch = (reason, fields)
        return ""

    def switch(self) -> None:
        """Let the header name what was written anew."""
        if self._switch is not None:
            reason, fields = self._switch
            self.set_header(Stage.LOWER, reason, **fields)

    def _new_block(self, index: int, start: int, end: int) -> bytes:
        """Return a block of the refcounts to be; clusters `start` to `end` are those that are written anew."""
        block_bits = self._geometry.refcount_block_bits
        first, size = index << block_bits, 1 << block_bits
        counts = np.zeros(size, dtype=np.uint64)
        known = max(0, min(size, self._survey.clusters - first))
        if known:
            counts[:known] = self._refcounts.of(first, known)[1]
        counts[min(max(start - first, 0), size) : min(max(end - first, 0), size)] = 1
        return self._block(counts)

    # --- entries ---

    def correct_entries(self, *, rules: bool) -> None:
        """Correct entries of L1 and L2 tables: copied bits of the active state, what breaks `rules` and can be told."""
        survey = self._survey
        for state in survey.states():
            if rules or state.index == ACTIVE:
                self._correct_l1(state, rules=rules)
        named, found = survey.walk.l2_tables(), survey.walk.stored_tables()
        places, _ = survey.l1_places()
        for start, end in survey.walk.batches(found):
            batch = survey.walk.batch(found, start, end)
            rows = np.searchsorted(named.offsets, batch.offsets)
            self._correct_batch(batch, places[rows], rules=rules)

    def _correct_l1(self, state: State, *, rules: bool) -> None:
        survey = self._survey
        words = survey.walk.l1_table(state)
        at, one = np.array([state.l1_offset], dtype=np.uint64), np.ones(1, dtype=np.uint64)
        if not survey.is_alone(at, state.l1_entries * ENTRY_BYTES, one, structures=not self._refcounts.rebuild)[0]:
            return
        fixed = words.copy()
        if rules:
            cleared = words & ~np.uint64(tables.L1_RESERVED)
            wrong = (words != cleared) & self._is_whole(cleared, cleared & np.uint64(tables.L1_OFFSET))
            fixed[wrong] = cleared[wrong]
        self._report_entries(RepairKind.ENTRY, state.l1_offset, words, fixed, "reserved bits", None)
        if state.index == ACTIVE:
            before = fixed.copy()
            sound = ~_any_broken(L1_RULES, fixed, 0, self._geometry)
            named = np.flatnonzero(sound & self._has_place(fixed & np.uint64(tables.L1_OFFSET)))
            self._set_copied(fixed, named, fixed[named] & np.uint64(tables.L1_OFFSET))
            self._plan.copied += int(np.count_nonzero(before != fixed))
            self._report_entries(RepairKind.COPIED, state.l1_offset, before, fixed, "copied bit of an L2 table", None)
        old, new = (found.astype(">u8").tobytes() for found in (words, fixed))
        padding = bytes(-len(old) % SECTOR_SIZE)
        if old != new:
            tail = survey.store.pread(len(padding), state.l1_offset + len(old))
            self._add_sectors(self._entries, state.l1_offset, old + tail, new + tail.ljust(len(padding), b"\0"))

    def _has_place(self, offsets: U64Array) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (offsets != 0) & (offsets < np.uint64(self._survey.clusters << self._bits))
        return found

    def _is_whole(self, entries: U64Array, offsets: U64Array) -> NDArray[np.bool_]:
        """Return which entries, without their reserved bits, name a cluster with the refcount that it ought to have."""
        whole: NDArray[np.bool_] = self._has_place(offsets) & (offsets % np.uint64(self._geometry.cluster_size) == 0)
        clusters = offsets[whole] >> np.uint64(self._bits)
        counts = self._survey.refcounts.whole_at(clusters)
        whole[whole] = counts == self._survey.references_at(clusters.view(np.int64))
        assert whole.shape == entries.shape
        return whole

    def _set_copied(self, words: U64Array, rows: NDArray[np.int64], offsets: U64Array) -> None:
        """Let entries say whether the refcount of what they name will be 1."""
        once = self._refcounts.once()[(offsets >> np.uint64(self._bits)).view(np.int64)]
        bit = np.uint64(tables.L2_COPIED)
        words[rows] = np.where(once, words[rows] | bit, words[rows] & ~bit)

    def _correct_batch(self, batch: L2Batch, places: NDArray[np.int64], *, rules: bool) -> None:
        geometry = self._geometry
        times, structures = batch.active + batch.snapshot, not self._refcounts.rebuild
        own = self._survey.is_alone(batch.offsets, geometry.cluster_size, times, structures=structures)
        if not own.any():
            return
        batch = _chosen(batch, own)
        places = places[own]
        entries = batch.entries.copy()
        bitmaps = np.zeros(1, dtype=np.uint64) if batch.bitmaps is None else batch.bitmaps
        if rules:
            self._correct_rules(entries, bitmaps)
        corrected = entries.copy()
        sound = ~_any_broken(l2_rules(geometry), entries, bitmaps, geometry)
        sound &= (batch.active > 0)[:, None] & ((entries & np.uint64(tables.L2_COMPRESSED)) == 0)
        final = entries.reshape(-1)
        offsets = final & np.uint64(tables.L2_OFFSET)
        if geometry.external_data:
            rows = np.flatnonzero(sound.reshape(-1) & (offsets != 0))
            final[rows] |= np.uint64(tables.L2_COPIED)
        else:
            rows = np.flatnonzero(sound.reshape(-1) & self._has_place(offsets))
            self._set_copied(final, rows, offsets[rows])
        self._plan.copied += int(np.count_nonzero(corrected != entries))
        for row in np.flatnonzero((entries != batch.entries).any(axis=1)).tolist():
            at, place = int(batch.offsets[row]), int(places[row])
            self._report_entries(RepairKind.ENTRY, at, batch.entries[row], corrected[row], "breaks a rule", place)
            self._report_entries(RepairKind.COPIED, at, corrected[row], entries[row], "copied bit", place)
            stored = (_stored(words[row], batch.bitmaps, row) for words in (batch.entries, entries))
            self._add_sectors(self._entries, at, *stored)

    def _correct_rules(self, entries: U64Array, bitmaps: U64Array) -> None:
        """Correct what breaks a rule and can be told."""
        geometry = self._geometry
        cleared = entries & ~np.uint64(tables.L2_RESERVED)
        is_packed = (entries & np.uint64(tables.L2_COMPRESSED)) != 0
        wrong = ~is_packed & (cleared != entries) & ~_any_broken(l2_rules(geometry), cleared, bitmaps, geometry)
        wrong[wrong] = self._is_whole(cleared[wrong], cleared[wrong] & np.uint64(tables.L2_OFFSET))
        entries[wrong] = cleared[wrong]
        plain = entries & ~np.uint64(tables.L2_COPIED)
        wrong = is_packed & (plain != entries) & ~_any_broken(l2_rules(geometry), plain, bitmaps, geometry)
        wrong &= self._survey.inside(entries)
        entries[wrong] = plain[wrong]
        wrong = empty_misaligned(entries, bitmaps, self._survey)
        entries[wrong] = np.uint64(0 if geometry.extended_l2 else tables.L2_ZERO)

    def _report_entries(
        self, kind: RepairKind, at: int, old: U64Array, new: U64Array, reason: str, place: int | None
    ) -> None:
        """Add the entries of one table that change to the plan; `place` is the L1 index of an L2 table."""
        geometry = self._geometry
        width = ENTRY_BYTES if place is None else geometry.l2_entry_bytes
        cluster_bits = geometry.l2_coverage_bits if place is None else geometry.cluster_bits
        first = 0 if place is None else place << geometry.l2_bits
        for row in np.flatnonzero(old != new).tolist():
            guest = Span((first + row) << cluster_bits, 1 << cluster_bits)
            host = Span(at + row * width, width)
            self._plan.add(RepairAction(kind, host, int(old[row]), int(new[row]), reason, guest))


def empty_misaligned(entries: U64Array, bitmaps: U64Array, survey: Survey) -> NDArray[np.bool_]:
    """Return which L2 entries name a misaligned host cluster that holds no data: zeros, or nothing at all."""
    geometry = survey.geometry
    within = np.uint64(tables.L2_OFFSET & (geometry.cluster_size - 1))
    found: NDArray[np.bool_] = (entries & within) != 0
    found &= (entries & np.uint64(tables.L2_COMPRESSED | tables.L2_RESERVED)) == 0
    if geometry.extended_l2:
        found &= (bitmaps & np.uint64(tables.SUBCLUSTERS_ALLOCATED)) == 0
    else:
        found &= ((entries & np.uint64(tables.L2_ZERO)) != 0) & geometry.has_zero_bit
    return found


def forget_empty_misaligned(survey: Survey) -> None:
    """Do not count what entries name that will name it no more: see `empty_misaligned`."""
    # What is not alone with the refcounts as they are is left: a leak at most.
    walk, geometry = survey.walk, survey.geometry
    found = walk.stored_tables()
    for start, end in walk.batches(found) if not geometry.external_data else ():
        batch = walk.batch(found, start, end)
        own = survey.is_alone(batch.offsets, geometry.cluster_size, batch.active + batch.snapshot)
        bitmaps = np.zeros(1, dtype=np.uint64) if batch.bitmaps is None else batch.bitmaps
        rows, columns = np.nonzero(empty_misaligned(batch.entries, bitmaps, survey) & own[:, None])
        offsets = batch.entries[rows, columns] & np.uint64(tables.L2_OFFSET)
        survey.forget(offsets, (batch.active + batch.snapshot)[rows])


def _chosen(batch: L2Batch, rows: NDArray[np.bool_]) -> L2Batch:
    bitmaps = None if batch.bitmaps is None else batch.bitmaps[rows]
    return L2Batch(batch.offsets[rows], batch.active[rows], batch.snapshot[rows], batch.entries[rows], bitmaps)


def _stored(entries: U64Array, bitmaps: U64Array | None, row: int) -> bytes:
    """Return entries of a table, with the bitmaps of a row, as they are stored."""
    words = entries if bitmaps is None else np.stack((entries, bitmaps[row]), axis=1).reshape(-1)
    return words.astype(">u8").tobytes()


def _any_broken(
    rules: tuple[EntryRule, ...], entries: U64Array, bitmaps: U64Array | int, geometry: Geometry
) -> NDArray[np.bool_]:
    broken = np.zeros(entries.shape, dtype=bool)
    for rule in rules:
        broken |= np.broadcast_to(np.asarray(rule.broken(entries, bitmaps, geometry), dtype=bool), entries.shape)
    return broken
