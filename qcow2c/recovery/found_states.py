"""The states of a damaged image: the active disk and its snapshots, each as L2 tables by their index.

How sure each place is has a `Level`. A table has its index by an intact L1 table that names it; or by a copy: it shares
a host cluster, at the same entry, with a table whose index is known, for data never moves. Reads only.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE, Limit
from qcow2c.format.header import Header
from qcow2c.format.records import SnapshotRecord, read_snapshots
from qcow2c.format.tables import L1_COPIED, L1_OFFSET, L2_COMPRESSED, L2_COPIED, L2_OFFSET
from qcow2c.recovery.found_header import FoundHeader
from qcow2c.recovery.found_refcounts import FoundRefcounts
from qcow2c.recovery.found_tables import LARGE_DISK, FoundTables, L1Run, read_l2
from qcow2c.recovery.rival_tables import Slots, are_in_order, clusters_of, is_part, text_of, weight
from qcow2c.recovery.table_scan import read_words

if TYPE_CHECKING:
    from qcow2c.format.array_types import U64Array


_MOST_FILLED = 1 << 16
_BOOT_SIGNATURE = b"\x55\xaa"


class Level(enum.IntEnum):
    """How sure a range is, the surest first."""

    NAMED = 0
    """An intact table names it."""
    COPY = 1
    """Another state's table fixes the place of the table that names it."""
    INFERRED = 2
    """There is a reason for it, and no proof."""
    LOST = 3
    """What was there is gone, or cannot be told from what never was."""


@dataclass
class FoundDisk:
    """One state: `l1` holds the host offsets of L2 tables by index, 0 for none, and `levels` how sure each is."""

    name: str
    kind: str
    """`active`, `snapshot`, or `stale`: a state that the image no longer has."""
    size: int
    l1: U64Array
    levels: list[Level]
    l1_offset: int = 0
    """Where the L1 table is; 0 for one that is lost."""
    snapshot_id: str = ""
    evidence: list[str] = field(default_factory=list)
    size_evidence: str = ""
    size_is_known: bool = True
    blank: frozenset[int] = frozenset()
    """Sectors of the L1 table, by number, that are all zeros."""
    l1_lost: bool = False
    """Whether there is no L1 table, so that an index without a table says nothing."""


class FoundStates:
    """The states of one image."""

    def __init__(self, believed: FoundHeader, found: FoundTables, refcounts: FoundRefcounts, *, anchored: bool) -> None:
        """`anchored`: it is sure that the image begins where the store does. Raises StoreError."""
        self._anchored = anchored
        self.header: Header = believed.header
        self.geometry = self.header.geometry
        self._believed = believed
        self._found = found
        self._refcounts = refcounts
        self.doubts: list[str] = []
        self.records, records_are_the_headers = self._snapshot_records()
        starts = {record.l1_table_offset for _, record in self.records}
        size = self.geometry.cluster_size
        ends = {record.l1_table_offset + -(-record.l1_size * ENTRY_BYTES // size) * size for _, record in self.records}
        known = starts | ends | {self.header.l1_table_offset}
        self.runs = found.l1_runs(known, refcounts.at, may_share=not self.records and refcounts.may_share())
        self.snapshots = [self._snapshot(record) for record in self._distinct(records_are_the_headers)]
        self.active = self._active()
        self.stale = [disk for disk in self._others() if disk.l1.any()]

    def disks(self) -> list[FoundDisk]:
        """Return all states: the active one first, then snapshots, then those that the image no longer has."""
        return [self.active, *self.snapshots, *self.stale]

    # --- snapshots ---

    def _snapshot_records(self) -> tuple[list[tuple[int, SnapshotRecord]], bool]:
        """Return the records, each with the place of its table, and whether the header names the table."""
        header = self.header
        if self._believed.present and header.nb_snapshots and header.snapshots_offset % header.cluster_size == 0:
            table = read_snapshots(self._found.store, header)
            good = [record for record in table.records if self._is_record(record)]
            if table.broken is None and len(good) == header.nb_snapshots:
                return [(header.snapshots_offset, record) for record in good], True
        found = self._found.record_tables(header)
        if found:
            self.doubts.append("the snapshot table is not where the header says: records were found by their form")
        elif header.nb_snapshots:
            self.doubts.append(f"{header.nb_snapshots} snapshots, whose records are lost")
        return [(offset, record) for offset, records in found for record in records], False

    def _is_record(self, record: SnapshotRecord) -> bool:
        offset = record.l1_table_offset
        return 0 < record.l1_size <= Limit.L1_ENTRIES and offset > 0 and offset % self.header.cluster_size == 0

    def _distinct(self, are_the_headers: bool) -> Iterator[SnapshotRecord]:  # noqa: FBT001 - one fact of two
        seen: set[int] = set()
        for _offset, record in self.records:
            if record.l1_table_offset in seen or not self._is_record(record):
                continue
            if not are_the_headers and self._refcounts.at(record.l1_table_offset) == 0:
                continue
            seen.add(record.l1_table_offset)
            yield record

    def _snapshot(self, record: SnapshotRecord) -> FoundDisk:
        words = read_words(self._found.store, record.l1_table_offset, record.l1_size)
        size = record.disk_size
        evidence = "its snapshot record"
        if not size:
            size, evidence = len(words) << self.geometry.l2_coverage_bits, "its L1 table"
        sure = self._refcounts.at(record.l1_table_offset) != 0
        level = Level.NAMED if sure else Level.INFERRED
        disk = self._disk(text_of(record.name), "snapshot", words, record.l1_table_offset, level)
        disk.snapshot_id = text_of(record.id_str)
        disk.evidence.append(f"a snapshot record at {record.span.offset:#x} names its L1 table")
        disk.size, disk.size_evidence = size, evidence
        return disk

    def _disk(self, name: str, kind: str, words: U64Array, offset: int, level: Level) -> FoundDisk:
        l1 = words & np.uint64(L1_OFFSET)
        rows = words[: len(words) // 64 * 64].reshape(-1, 64)
        rest = words[len(words) // 64 * 64 :]
        blank = {int(row) for row in np.flatnonzero(~rows.any(axis=1))}
        if len(rest) and not rest.any():
            blank.add(len(rows))
        return FoundDisk(name, kind, 0, l1, [level] * len(l1), offset, blank=frozenset(blank))

    # --- the active disk ---

    def _active(self) -> FoundDisk:
        header, found = self.header, self._found
        if self._believed.present and header.l1_table_offset % header.cluster_size == 0 and header.l1_table_offset:
            entries = min(header.l1_size, found.scan.size // ENTRY_BYTES, Limit.L1_ENTRIES)
            words = read_words(found.store, header.l1_table_offset, entries)
            inside = header.l1_table_offset < found.scan.size
            is_other = header.l1_table_offset in {record.l1_table_offset for _, record in self.records}
            is_other |= self._is_inside_of_a_run(header.l1_table_offset)
            if found.names_l2(words) and inside and not is_other:
                return self._from_header(words)
            if inside and not words.any() and not self._loose_tables(()) and not self._rivals():
                return self._sized(self._disk("", "active", words, header.l1_table_offset, Level.NAMED))
        rivals = self._rivals()
        if rivals:
            return self._from_run(rivals)
        if self._believed.present and header.l1_table_offset % header.cluster_size == 0 and header.l1_table_offset:
            words = read_words(found.store, header.l1_table_offset, min(header.l1_size, found.scan.size // ENTRY_BYTES))
            if found.may_be_l1(words):
                return self._from_header(words)
        self.doubts.append("the L1 table of the active disk is lost")
        return self._from_copies()

    def _is_inside_of_a_run(self, offset: int) -> bool:
        """Return whether an offset points behind the beginning of an L1 table."""
        size = self.geometry.cluster_size
        return any(run.offset < offset < run.offset + len(run.words) * ENTRY_BYTES // size * size for run in self.runs)

    def _from_header(self, words: U64Array) -> FoundDisk:
        header = self.header
        run = next((run for run in self.runs if run.offset == header.l1_table_offset), None)
        needed = self.geometry.l1_entries(header.size) if self._believed.size_is_known else 0
        if run is not None and len(words) < needed <= len(run.words) and run.words[len(words) : needed].any():
            self.doubts.append(f"l1_size {header.l1_size}, where the disk needs {needed} entries, and they are there")
            words = run.words[:needed]
        disk = self._disk("", "active", words, header.l1_table_offset, Level.NAMED)
        disk.evidence.append("the header names its L1 table")
        return self._sized(disk)

    def _rivals(self) -> list[L1Run]:
        """Return the L1 tables that no snapshot has, those in use."""
        known = {record.l1_table_offset for _, record in self.records}
        runs = [run for run in self.runs if run.offset not in known]
        return [run for run in runs if self._refcounts.at(run.offset) != 0]

    def _from_run(self, rivals: list[L1Run]) -> FoundDisk:
        best = max(rivals, key=weight)
        level = Level.NAMED if self._anchored and self._is_start(best) else Level.INFERRED
        reason = f"the one L1 table that is there, at {best.offset:#x}"
        others = [run for run in rivals if run is not best and not is_part(run, best)]
        if others:
            best, is_clear = self._truest(rivals)
            level = Level.NAMED if is_clear and self._is_start(best) else Level.INFERRED
            reason = f"of {len(rivals)} L1 tables the one at {best.offset:#x} is right in what it says is its own"
        elif self._may_be_a_snapshots():
            level, reason = Level.INFERRED, f"{reason}, which may be a snapshot's"
        words = best.words
        if self._believed.size_is_known:
            needed = self.geometry.l1_entries(self.header.size)
            if needed and not words[needed:].any():
                words = words[:needed]
        disk = self._disk("", "active", words, best.offset, level)
        disk.evidence.append(reason)
        return self._sized(disk)

    def _may_be_a_snapshots(self) -> bool:
        """Return whether an L1 table that no record names may be that of a snapshot, whose record is lost."""
        if self._believed.present and self.header.nb_snapshots <= len(self.records):
            return False
        return self._refcounts.may_share() and (self._believed.present or not self.records)

    def _truest(self, rivals: list[L1Run]) -> tuple[L1Run, bool]:
        """Return the run that is the active one, and whether that is clear: its copied bits agree with the refcounts.

        Programs keep these bits right in the active table, and leave them as they were in those of snapshots.
        """
        wrong = [(self._wrong_copied(run), -weight(run)[0], number) for number, run in enumerate(rivals)]
        order = sorted(wrong)
        is_clear = self._refcounts.usable and not self._refcounts.counts_beyond_the_end()
        is_clear &= order[0][0] == 0 and order[1][0] > 0
        return rivals[order[0][2]], is_clear

    def _wrong_copied(self, run: L1Run) -> int:
        wrong = 0
        for word in run.words[run.words != 0].tolist():
            count = self._refcounts.at(word & L1_OFFSET)
            wrong += count is not None and (count == 1) != bool(word & L1_COPIED)
        return wrong

    def _is_start(self, run: L1Run) -> bool:
        """Return whether a run begins where its table does, so that indices are right.

        A cluster of zeros before it may be the beginning of the table: not where such a disk would be out of all
        proportion, nor where the cluster is known not to be in use, or where a disk begins at the first word.
        """
        if run.certain_start or not run.is_whole:
            return run.certain_start
        before = run.offset - self.geometry.cluster_size
        covered = self.geometry.words_per_cluster << self.geometry.l2_coverage_bits
        return covered >= LARGE_DISK or self._refcounts.at(before) == 0 or self._begins_a_disk(run)

    def _begins_a_disk(self, run: L1Run) -> bool:
        """Return whether the first cluster that a run names has the signature of a disk's first sector."""
        if not run.words[0]:
            return False
        table = read_l2(self._found.store, int(run.words[0]) & L1_OFFSET, self.geometry)
        entry = int(table.entries[0])
        if entry & L2_COMPRESSED or not entry & L2_OFFSET:
            return False
        sector = self._found.store.pread(SECTOR_SIZE, entry & L2_OFFSET)
        return sector.endswith(_BOOT_SIGNATURE)

    def _others(self) -> Iterator[FoundDisk]:
        """Yield states whose L1 tables nothing names: of snapshots whose record is lost, or that are no more."""
        known = {record.l1_table_offset for _, record in self.records} | {self.active.l1_offset}
        for run in self.runs:
            if run.offset in known:
                continue
            count = self._refcounts.at(run.offset)
            sure = bool(count) and self._is_start(run)
            disk = self._disk(
                f"l1-{run.offset:x}", "snapshot" if count else "stale", run.words, run.offset,
                Level.NAMED if sure else Level.INFERRED,
            )  # fmt: skip
            disk.evidence.append("an L1 table that no record names" + (", in use" if count else ""))
            yield self._sized(disk)

    # --- an L1 table that is lost ---

    def _loose_tables(self, disks: Iterable[FoundDisk]) -> list[int]:
        """Return the L2 tables in use that no state names."""
        named = [self._l1_of(disk) for disk in disks]
        known = np.concatenate(named) if named else np.zeros(0, dtype=np.uint64)
        loose = self._found.l2[~np.isin(self._found.l2.astype(np.uint64), known)]
        pointers = {offset for run in self.runs for offset in clusters_of(run, self.geometry.cluster_size)}
        pointers |= {
            self.header.snapshots_offset,
            self.header.refcount_table_offset,
            *self._refcounts.blocks().tolist(),
        }
        return [at for at in loose.tolist() if at not in pointers and self._refcounts.at(at) != 0]

    @staticmethod
    def _l1_of(disk: FoundDisk) -> U64Array:
        named: U64Array = disk.l1[disk.l1 != 0]
        return named

    def _from_copies(self) -> FoundDisk:
        """Return the active disk from the L2 tables that are there, as far as other states or they say their index."""
        geometry = self.geometry
        loose = self._loose_tables(self.snapshots)
        slots = Slots(self._found, [disk.l1 for disk in self.snapshots])
        placed: dict[int, tuple[int, Level]] = {}
        twice: set[int] = set()
        for at in loose:
            index = self._by_offset(at) if geometry.external_data else slots.index_of(at)
            if index is not None:
                if index in placed:
                    twice.add(index)
                placed[index] = at, Level.COPY if self._refcounts.usable else Level.INFERRED
        for index in twice:
            placed[index] = placed[index][0], Level.INFERRED
        self._add_shared(placed)
        needed = geometry.l1_entries(self.header.size) if self._believed.size_is_known else 0
        self._fill_up(placed, [at for at in loose if at not in {place for place, _ in placed.values()}], needed)
        entries = min(max([needed, *(index + 1 for index in placed)]), Limit.L1_ENTRIES)
        l1 = np.zeros(entries, dtype=np.uint64)
        levels = [Level.LOST] * entries
        for index, (at, level) in placed.items():
            if index < entries:
                l1[index], levels[index] = at, level
        disk = FoundDisk("", "active", 0, l1, levels, l1_lost=True)
        if placed:
            disk.evidence.append("L2 tables whose place other tables, or their own entries, fix")
        return self._sized(disk)

    def _fill_up(self, placed: dict[int, tuple[int, Level]], rest: list[int], needed: int) -> None:
        """Place as many tables as there are indices left: the only one where it must be, several if in order."""
        free = [index for index in range(needed) if index not in placed] if rest and needed <= _MOST_FILLED else []
        if not free or len(free) != len(rest):
            return
        if len(free) == 1 or are_in_order(self._found, rest):
            placed.update((index, (at, Level.INFERRED)) for index, at in zip(free, sorted(rest), strict=True))

    def _by_offset(self, at: int) -> int | None:
        """Return the index of an L2 table whose entries name the place of their data in the external data file."""
        entries = read_l2(self._found.store, at, self.geometry).entries
        rows = np.flatnonzero((entries & np.uint64(L2_OFFSET | L2_COPIED)) != 0)
        if not len(rows):
            return None
        guest = (entries[rows] & np.uint64(L2_OFFSET)) >> np.uint64(self.geometry.cluster_bits)
        bases = guest.astype(np.int64) - rows
        if (bases != bases[0]).any() or bases[0] < 0 or bases[0] % self.geometry.l2_entries:
            return None
        return int(bases[0]) >> self.geometry.l2_bits

    def _add_shared(self, placed: dict[int, tuple[int, Level]]) -> None:
        """Place the tables of snapshots that one more state must have: they are counted once more than named."""
        for disk in self.snapshots:
            for index in np.flatnonzero(disk.l1).tolist():
                at = int(disk.l1[index])
                names = sum(index < len(other.l1) and int(other.l1[index]) == at for other in self.snapshots)
                count = self._refcounts.at(at)
                if index not in placed and count is not None and count > names:
                    placed[index] = at, Level.COPY

    # --- sizes ---

    def _sized(self, disk: FoundDisk) -> FoundDisk:
        """Give a disk its size: what the header says where the tables agree, or up to the last cluster that is used."""
        coverage = self.geometry.l2_coverage_bits
        end = self._mapped_end(disk)
        header = self.header
        agrees = end <= header.size and self.geometry.l1_entries(header.size) <= max(len(disk.l1), header.l1_size)
        if self._believed.size_is_known and (agrees or disk.l1_lost):
            disk.size, disk.size_evidence = header.size, "the header"
            return disk
        if self._believed.size_is_known:
            self.doubts.append(f"size {header.size}, which the tables contradict")
            likely = [header.size ^ 1 << bit for bit in range(9, 63)]
            likely = [size for size in likely if size >= end and self.geometry.l1_entries(size) == header.l1_size]
            if likely:
                disk.size, disk.size_evidence = min(likely), "the header, but for one bit"
                return disk
        sizes = {other.size for other in self.snapshots if end <= other.size <= len(disk.l1) << coverage}
        if sizes:
            disk.size, disk.size_evidence = max(sizes), "a snapshot's record"
        else:
            disk.size, disk.size_evidence = end, "the last cluster that a table names: the disk may be larger"
            disk.size_is_known = False
        return disk

    def _mapped_end(self, disk: FoundDisk) -> int:
        used = np.flatnonzero(disk.l1)
        if not len(used):
            return 0
        index = int(used[-1])
        table = read_l2(self._found.store, int(disk.l1[index]), self.geometry)
        present = table.entries != 0
        if table.bitmaps is not None:
            present |= table.bitmaps != 0
        rows = np.flatnonzero(present & ~table.broken)
        inside = int(rows[-1]) + 1 if len(rows) else 0
        return (index << self.geometry.l2_coverage_bits) + (inside << self.geometry.cluster_bits)
