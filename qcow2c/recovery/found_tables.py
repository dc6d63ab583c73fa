"""The tables of a damaged image, found by their structure: L2 tables, L1 tables as runs, snapshot records.

What it finds is a candidate: `found_states.py` decides what it belongs to. Reads only; memory follows the number of
tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import Limit
from qcow2c.format.derived import SNAPSHOT_HEADER
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header, aligned
from qcow2c.format.records import SnapshotRecord, read_snapshots
from qcow2c.format.table_rules import l2_rules
from qcow2c.format.tables import L1_COPIED, L1_OFFSET, L2_COMPRESSED, L2_COPIED, L2_OFFSET
from qcow2c.light import NamedTuple, replace
from qcow2c.recovery.table_scan import TableScan, read_words
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import I64Array, U64Array

_SHARE_OF_L2 = 0.5
"""Of the tables that an L1 table names, and that are in the file, so many look like L2 tables, at least."""
_MOST_RECORDS = 65536


class L2Table(NamedTuple):
    """An L2 table in memory: descriptors and, where entries are extended, bitmaps; each of shape (entries,)."""

    entries: U64Array
    bitmaps: U64Array | None
    broken: NDArray[np.bool_]
    """Which entries break a rule."""
    blank: NDArray[np.bool_]
    """Which entries lie in a sector that is all zeros."""


class L1Run(NamedTuple):
    """Adjacent clusters that look like an L1 table."""

    offset: int
    words: U64Array
    """Whole clusters of them."""
    certain_start: bool
    """Whether the first word is surely the table's first one."""
    is_split: bool
    """Whether it follows another run, for it names the same tables."""


def read_l2(store: Store, offset: int, geometry: Geometry) -> L2Table:
    """Return an L2 table; what the file does not have is zeros. Raises StoreError."""
    return l2_table(read_words(store, offset, geometry.words_per_cluster), geometry)


def l2_table(words: U64Array, geometry: Geometry) -> L2Table:
    """Return the L2 table that words are."""
    step = geometry.l2_entry_words
    entries = words[::step]
    bitmaps = words[1::step] if geometry.extended_l2 else None
    broken = np.zeros(len(entries), dtype=bool)
    none = np.zeros_like(entries) if bitmaps is None else bitmaps
    for rule in l2_rules(geometry):
        broken |= np.asarray(rule.broken(entries, none, geometry), dtype=bool)
    blank = ~words.reshape(-1, 64).any(axis=1)
    return L2Table(entries, bitmaps, broken, np.repeat(blank, 64 // step))


class FoundTables:
    """Candidates by their place: host offsets, ascending, int64."""

    def __init__(self, store: Store, scan: TableScan, geometry: Geometry) -> None:
        """Raises StoreError."""
        self.store, self.scan, self.geometry = store, scan, geometry
        self.l2, self._pointers = self._candidates()
        """`l2`: clusters that are whole L2 tables, and name something."""

    def _candidates(self) -> tuple[I64Array, list[tuple[int, U64Array]]]:
        geometry = self.geometry
        tables: list[int] = []
        pointers: list[tuple[int, U64Array]] = []
        reach = np.uint64(self.scan.reach)
        for cluster in np.unique(self.scan.tables >> geometry.cluster_bits).tolist():
            offset = cluster << geometry.cluster_bits
            words = read_words(self.store, offset, geometry.words_per_cluster)
            if self._is_pointers(words):
                pointers.append((offset, words))
            table = l2_table(words, geometry)
            named = table.entries & np.uint64(L2_OFFSET)
            packed = (table.entries & np.uint64(L2_COMPRESSED)) != 0
            present = (named != 0) | ((table.entries & np.uint64(L2_COPIED)) != 0)
            if present.any() and not table.broken.any() and not ((named >= reach) & ~packed).any():
                tables.append(offset)
        return np.array(tables, dtype=np.int64), pointers

    def _is_pointers(self, words: U64Array) -> bool:
        inside = np.uint64(L1_OFFSET & -self.geometry.cluster_size & (self.scan.reach - 1))
        return bool(words.any()) and not bool((words & ~(inside | np.uint64(L1_COPIED))).any())

    def is_l2(self, offsets: U64Array) -> NDArray[np.bool_]:
        """Return which offsets are those of L2 tables found; same shape."""
        return np.isin(offsets.astype(np.int64), self.l2)

    def names_l2(self, words: U64Array) -> bool:
        """Return whether words name L2 tables, most of them found."""
        offsets = words & np.uint64(L1_OFFSET)
        offsets = offsets[(offsets != 0) & (offsets < np.uint64(max(1, self.scan.size)))]
        is_table = self.is_l2(offsets)
        found = int(is_table.sum())
        if not found or found >= _SHARE_OF_L2 * len(offsets):
            return found > 0
        return found >= _SHARE_OF_L2 * (found + self._with_content(offsets[~is_table]))

    def may_be_l1(self, words: U64Array) -> bool:
        """Return whether words could be an L1 table of which the L2 tables are lost: what they name is zeros now."""
        if not self._is_pointers(words):
            return False
        offsets = words & np.uint64(L1_OFFSET)
        offsets = offsets[(offsets != 0) & (offsets < np.uint64(max(1, self.scan.size)))]
        others = offsets[~self.is_l2(offsets)]
        return self._with_content(others) <= len(offsets) * _SHARE_OF_L2

    def _with_content(self, offsets: U64Array) -> int:
        """Return how many clusters hold anything but zeros."""
        size = self.geometry.cluster_size
        return sum(self.scan.used(offset, offset + size) for offset in offsets.tolist())

    def l1_runs(self, starts: set[int]) -> list[L1Run]:
        """Return the L1 tables found. `starts` are offsets where another table is known to begin: a run ends there."""
        size = self.geometry.cluster_size
        like = {offset: words for offset, words in self._pointers if self.names_l2(words)}
        named = [words & np.uint64(L1_OFFSET) for words in like.values()]
        targets = set(np.concatenate(named).tolist()) if named else set()
        inner = {offset for offset in like if offset in targets}
        if len(inner) < len(like):
            like = {offset: words for offset, words in like.items() if offset not in inner}
        runs: list[L1Run] = []
        part: list[U64Array] = []
        begin = 0
        seen: set[int] = set()
        split = False
        for offset in sorted(like):
            mine = {int(word) for word in like[offset] & np.uint64(L1_OFFSET) if word}
            follows = bool(part) and offset == begin + len(part) * size and offset not in starts
            repeats = bool(mine & seen)
            if not follows or repeats:
                self._add(runs, begin, part, split=split)
                part, begin, seen, split = [], offset, set(), follows and repeats
            part.append(like[offset])
            seen |= mine
        self._add(runs, begin, part, split=split)
        return runs

    def other_pointers(self) -> list[tuple[int, int]]:
        """Return adjacent clusters of words that name clusters, but no L2 tables: as offset and clusters."""
        size = self.geometry.cluster_size
        found: list[tuple[int, int]] = []
        for offset, words in self._pointers:
            if (words & np.uint64(L1_COPIED)).any() or self.names_l2(words):
                continue
            if found and found[-1][0] + found[-1][1] * size == offset:
                found[-1] = found[-1][0], found[-1][1] + 1
            else:
                found.append((offset, 1))
        return found

    def _add(self, runs: list[L1Run], begin: int, part: list[U64Array], *, split: bool) -> None:
        if part:
            words = np.concatenate(part)
            before = begin - self.geometry.cluster_size
            known = before <= 0 or self.scan.used(before, begin)
            runs.append(L1Run(begin, words, bool(words[0]) and known and not split, split))

    # --- snapshot records ---

    def record_tables(self, header: Header) -> list[tuple[int, list[SnapshotRecord]]]:
        """Return what look like snapshot tables, as offset and records. `header` has the geometry. Raises StoreError.

        A record is one whose L1 table lies in the file and names L2 tables, or nothing.
        """
        found: list[tuple[int, list[SnapshotRecord]]] = []
        for offset in self.scan.records.tolist():
            if offset % self.geometry.cluster_size == 0:
                records = self._records_at(offset, header)
                if records:
                    found.append((offset, records))
        return found

    def _records_at(self, offset: int, header: Header) -> list[SnapshotRecord]:
        end, count = offset, 0
        while count < _MOST_RECORDS:
            end = aligned(end)
            data = self.store.pread(SNAPSHOT_HEADER.size, end)
            if len(data) < SNAPSHOT_HEADER.size:
                break
            known = SNAPSHOT_HEADER.values(data)
            sizes = known["id_str_size"], known["name_size"], known["extra_data_size"]
            if not sizes[0] or sizes[2] > Limit.SNAPSHOT_EXTRA_BYTES or not self._is_l1(known):
                break
            text = self.store.pread(sizes[0] + sizes[1], end + SNAPSHOT_HEADER.size + sizes[2])
            if not _is_text(text) or len(text) < sizes[0] + sizes[1]:
                break
            end += SNAPSHOT_HEADER.size + sum(sizes)
            count += 1
        if not count:
            return []
        table = read_snapshots(self.store, replace(header, snapshots_offset=offset, nb_snapshots=count))
        return list(table.records)

    def _is_l1(self, known: dict[str, int]) -> bool:
        offset, entries = known["l1_table_offset"], known["l1_size"]
        if not offset or offset % self.geometry.cluster_size or not 0 < entries <= Limit.L1_ENTRIES:
            return False
        words = read_words(self.store, offset, min(entries, self.scan.size // 8 + 1))
        return self.names_l2(words) or (not words.any() and offset < self.scan.size)


def _is_text(data: bytes) -> bool:
    try:
        return data.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False
