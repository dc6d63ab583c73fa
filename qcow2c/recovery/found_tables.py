"""The tables of a damaged image, found by their structure: L2 tables, L1 tables as runs, snapshot records.

What it finds is a candidate: `found_states.py` decides what it belongs to. Reads only; memory follows the number of
tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
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
_WIDEST_GAP = 4096
"""Clusters of zeros within an L1 table."""
LARGE_DISK = 1 << 42
"""Bytes of a disk that is taken for impossible if nothing but a cluster beside another one speaks for it."""


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
    is_whole: bool
    """Whether it is surely one table, and not several side by side."""


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
            fits = not table.broken.any() and not ((named >= reach) & ~packed).any()
            if present.any() and fits and not _repeats(named[~packed & (named != 0)]):
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

    def l1_runs(self, starts: set[int], in_use: Callable[[int], int | None], *, may_share: bool) -> list[L1Run]:
        """Return the L1 tables found. `starts` are offsets where another table is known to begin: a run ends there.

        `in_use` returns the refcount of the cluster at an offset. Clusters of zeros between two parts of a table belong
        to it where they are in use, and no entry names them.

        With `may_share` there may be snapshots, whose tables may lie side by side. What two tables share has one index
        in both, and says where the second one begins.
        """
        size = self.geometry.cluster_size
        like = {offset: words for offset, words in self._pointers if self.names_l2(words)}
        named = [words & np.uint64(L1_OFFSET) for words in like.values()]
        targets = set(np.concatenate(named).tolist()) if named else set()
        inner = {offset for offset in like if offset in targets}
        if len(inner) < len(like):
            like = {offset: words for offset, words in like.items() if offset not in inner}
        is_large = self.geometry.words_per_cluster << self.geometry.l2_coverage_bits >= LARGE_DISK
        stretches: list[tuple[int, list[U64Array]]] = []
        for offset in sorted(like):
            last = stretches[-1] if stretches else None
            gap = None if last is None else range(last[0] + len(last[1]) * size, offset, size)
            apart = gap is None or starts.intersection([*gap[:_WIDEST_GAP], offset]) or (is_large and may_share)
            if last is None or gap is None or apart or not self._is_table_of_zeros(gap, in_use):
                stretches.append((offset, [like[offset]]))
            else:
                last[1].extend([np.zeros(self.geometry.words_per_cluster, dtype=np.uint64)] * len(gap))
                last[1].append(like[offset])
        runs: list[L1Run] = []
        for begin, part in stretches:
            edges = self._edges(part) if may_share and len(part) > 1 else []
            for first, end in itertools.pairwise([0, *edges, len(part)]):
                self._add(runs, begin + first * size, part[first:end], may_share=may_share)
        return runs

    def _is_table_of_zeros(self, gap: range, in_use: Callable[[int], int | None]) -> bool:
        """Return whether clusters can only be the part of a table that names nothing; there may be none of them."""
        if not gap:
            return True
        if len(gap) > _WIDEST_GAP or self.scan.used(gap.start, gap.stop) or gap.stop > self.scan.size:
            return False
        if not all(in_use(offset) == 1 for offset in gap):
            return False
        bits = self.geometry.cluster_bits
        return not any(self._names(table, gap.start >> bits, gap.stop >> bits) for table in self.l2.tolist())

    def _names(self, table: int, first: int, end: int) -> bool:
        """Return whether an L2 table names one of some clusters."""
        found = read_l2(self.store, table, self.geometry).entries & np.uint64(L2_OFFSET)
        clusters = found >> np.uint64(self.geometry.cluster_bits)
        return bool(((clusters >= np.uint64(first)) & (clusters < np.uint64(end))).any())

    def _edges(self, part: list[U64Array]) -> list[int]:
        """Return the clusters of a stretch where another table begins: what it shares with one before says so."""
        words = self.geometry.words_per_cluster
        edges: set[int] = set()
        places: dict[tuple[int, int], int] = {}
        for at, word in enumerate(np.concatenate(part).tolist()):
            if not word & L1_OFFSET:
                continue
            for key in [(word & L1_OFFSET, -1), *self.keys(word & L1_OFFSET)]:
                other = places.setdefault(key, at)
                begin = at - other + max((edge * words for edge in edges if edge * words <= other), default=0)
                if other != at and begin % words == 0 and 0 < begin <= at:
                    edges.add(begin // words)
        return sorted(edges)

    def keys(self, at: int) -> list[tuple[int, int]]:
        """Return what an L2 table names, each as descriptor and entry: what two states share, both have there."""
        entries = read_l2(self.store, at, self.geometry).entries
        packed = (entries & np.uint64(L2_COMPRESSED)) != 0
        place = np.where(packed, entries, entries & np.uint64(L2_OFFSET))
        rows = np.flatnonzero(place)
        return list(zip(place[rows].tolist(), rows.tolist(), strict=True))

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

    def _add(self, runs: list[L1Run], begin: int, part: list[U64Array], *, may_share: bool) -> None:
        words = np.concatenate(part)
        before = begin - self.geometry.cluster_size
        known = before <= 0 or self.scan.used(before, begin)
        seams = [bool(after[0]) and not one[-1] for one, after in itertools.pairwise(part)]
        is_whole = not (may_share and any(seams))
        runs.append(L1Run(begin, words, known and is_whole, is_whole))

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


def _repeats(offsets: U64Array) -> bool:
    """Return whether words name few places many times, as no table does: they are refcounts."""
    return len(np.unique(offsets)) * 2 < len(offsets)


def _is_text(data: bytes) -> bool:
    try:
        return data.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False
