"""A small image proved clean, entry by entry in plain integers: importing numpy would take longer than all of this.

It only ever says that nothing at all is wrong or unusual, and then what the entries add up to. Whatever else is so,
and every image that is not small, is left to `counts.py`, which finds the same sums where nothing is wrong: a
property holds the two equal. Here every refcount is the number of references, every copied bit is right, no rule is
broken and nothing overlaps, beyond what QEMU's check asks for. Spec: "Host cluster management".
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator

from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE
from qcow2c.format import layout, rules
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapDirectory, SnapshotTable
from qcow2c.format.refcounts import BLOCK_OFFSET, native_block, word_code
from qcow2c.format.table_rules import (
    BITMAP_TABLE_RULES,
    L1_RULES,
    REFCOUNT_TABLE_RULES,
    EntryRule,
    broken_rules,
    l2_rules,
    without_place,
)
from qcow2c.format.tables import (
    BITMAP_OFFSET,
    L1_COPIED,
    L1_OFFSET,
    L2_COMPRESSED,
    L2_COPIED,
    L2_OFFSET,
    L2_ZERO,
    compressed_masks,
    entries_alike,
)
from qcow2c.light import NamedTuple
from qcow2c.storage.store import Store

MAX_WORDS = 1 << 21
"""Words of L1, L2, bitmap and refcount tables; also the clusters of the file. An image with more is not small."""

MAX_STEPS = 1 << 14
"""Table entries, runs of clusters, and compressed ones, that are looked at: for more of them arrays are quicker."""


class Clean(NamedTuple):
    """What the entries of a clean image add up to: the names are those of a check's result."""

    image_end_offset: int
    allocated_clusters: int
    fragmented_clusters: int
    compressed_clusters: int


class _Unusual(Exception):
    """The full check has to look at the image."""


def proved_clean(store: Store, header: Header, snapshots: SnapshotTable, bitmaps: BitmapDirectory) -> Clean | None:
    """Return the sums of an image that is small and clean, None if it is not both. The header was judged before."""
    if snapshots.broken is not None or bitmaps.broken is not None or (snapshots.records and header.external_data):
        return None
    if len(snapshots.records) + len(bitmaps.records) > MAX_STEPS:
        return None
    for record in snapshots.records:
        if any(rules.snapshot_findings(header, record)):
            return None
    for bitmap in bitmaps.records:
        if any(rules.bitmap_findings(header, bitmap)):
            return None
    try:
        return _Proof(store, header).of(snapshots, bitmaps)
    except _Unusual:
        return None


def _require(condition: object) -> None:
    if not condition:
        raise _Unusual


class _Proof:
    def __init__(self, store: Store, header: Header) -> None:
        self._store = store
        self._header = header
        self._geometry = header.geometry
        self._words = self._steps = 0
        self._end = self._geometry.clusters(-(-store.size() // SECTOR_SIZE) * SECTOR_SIZE)
        _require(self._end <= MAX_WORDS)
        self._changes: defaultdict[int, int] = defaultdict(int)
        """By how much each cluster has more references than the one before it."""
        self._owned: list[tuple[int, int, int]] = []
        """Clusters of metadata, as (first, end, references): there may be no others to them."""
        self._judged: set[tuple[int, int]] = set()
        """What entries that break no rule look like, with their subcluster bitmaps."""
        self._rules = l2_rules(self._geometry)
        self._masks = compressed_masks(self._geometry.cluster_bits)
        self._allocated = self._fragmented = self._compressed = 0

    def of(self, snapshots: SnapshotTable, bitmaps: BitmapDirectory) -> Clean:
        header = self._header
        self._own(0, self._geometry.cluster_size)
        self._own(header.snapshots_offset, snapshots.size)
        if header.encryption_header is not None:
            self._own(header.encryption_header.offset, header.encryption_header.length)
        self._refcounts = self._read_refcounts()
        self._count_bitmaps(bitmaps)
        named = self._l2_tables(snapshots)
        _require(len(named) * self._geometry.words_per_cluster <= MAX_WORDS)
        for offset, (active, every) in named.items():
            self._own(offset, self._geometry.cluster_size, every)
            self._count_table(self._table(offset, self._geometry.words_per_cluster), active, every)
        return Clean(self._compare(), self._allocated, self._fragmented, self._compressed)

    # --- references ---

    def _refer(self, offset: int, length: int, times: int) -> tuple[int, int]:
        """Count references to all clusters that bytes of the file touch; return which these are."""
        first, end = offset >> self._geometry.cluster_bits, self._geometry.clusters(offset + length)
        _require(end <= self._end)
        self._changes[first] += times
        self._changes[end] -= times
        return first, end

    def _own(self, offset: int, length: int, times: int = 1) -> None:
        """Count metadata."""
        if length:
            self._owned.append((*self._refer(offset, length, times), times))

    def _table(self, offset: int, entries: int) -> array[int]:
        """Return the words of a table that was counted, zeros past the end of the file."""
        if not entries:
            return array("Q")  # Nothing was counted: the offset may be anything.
        self._words += entries
        _require(self._words <= MAX_WORDS)
        return layout.table_words(self._store.pread(entries * ENTRY_BYTES, offset), entries)

    def _sound(self, words: array[int], entry_rules: tuple[EntryRule, ...]) -> Iterator[tuple[int, int]]:
        """Yield index and word of the entries of a table that are not 0; each must break no rule."""
        for index, word in enumerate(words):
            if word:
                self._take_step()
                _require(not any(broken_rules(entry_rules, word, 0, self._geometry)))
                yield index, word

    def _read_refcounts(self) -> array[int]:
        """Return the refcounts of all clusters of the file, and count the refcount table and its blocks."""
        header, geometry = self._header, self._geometry
        entries = header.refcount_table_clusters * geometry.words_per_cluster
        self._own(header.refcount_table_offset, entries * ENTRY_BYTES)
        found = array(word_code(geometry.refcount_order))
        per_block = 1 << geometry.refcount_block_bits
        for index, word in self._sound(self._table(header.refcount_table_offset, entries), REFCOUNT_TABLE_RULES):
            self._own(word & BLOCK_OFFSET, geometry.cluster_size)
            first = index * per_block
            if first < self._end:
                length = -(-(min(per_block, self._end - first) << geometry.refcount_order) >> 3)
                block = self._store.pread(length, word & BLOCK_OFFSET).ljust(length, b"\0")
                found.frombytes(bytes((first - len(found)) * found.itemsize))
                found += native_block(block, geometry.refcount_order)
        found.frombytes(bytes(max(0, self._end - len(found)) * found.itemsize))
        return found[: self._end]

    def _count_bitmaps(self, bitmaps: BitmapDirectory) -> None:
        extension = self._header.bitmaps
        if extension is None or not self._header.bitmaps_consistent:
            return
        self._own(extension.bitmap_directory_offset, extension.bitmap_directory_size)
        for record in bitmaps.records:
            self._own(record.bitmap_table_offset, record.bitmap_table_size * ENTRY_BYTES)
            words = self._table(record.bitmap_table_offset, record.bitmap_table_size)
            for _, word in self._sound(words, BITMAP_TABLE_RULES):
                if word & BITMAP_OFFSET:
                    self._own(word & BITMAP_OFFSET, self._geometry.cluster_size)

    def _l2_tables(self, snapshots: SnapshotTable) -> dict[int, tuple[int, int]]:
        """Return for each L2 table how many entries of the active L1 table, and of all, name it; count L1 tables."""
        header = self._header
        active: Counter[int] = Counter()
        every: Counter[int] = Counter()
        places = [(record.l1_table_offset, record.l1_size) for record in snapshots.records]
        for position, (at, entries) in enumerate([(header.l1_table_offset, header.l1_size), *places]):
            self._own(at, entries * ENTRY_BYTES)
            for _, word in self._sound(self._table(at, entries), L1_RULES):
                offset = word & L1_OFFSET
                _require(offset and offset >> self._geometry.cluster_bits < self._end)
                every[offset] += 1
                if not position:
                    active[offset] += 1
                    refcount = self._refcounts[offset >> self._geometry.cluster_bits]
                    _require((refcount == 1) == bool(word & L1_COPIED))
        return {offset: (active[offset], times) for offset, times in sorted(every.items())}

    # --- L2 entries ---

    def _count_table(self, table: array[int], active: int, every: int) -> None:
        """Count what the entries of an L2 table refer to, `every` times, and sum up `active` tables."""
        geometry, expected = self._geometry, -1
        for entry, count in self._runs(table):
            offset, copied = entry & L2_OFFSET, bool(entry & L2_COPIED)
            if entry & L2_COMPRESSED:
                self._count_compressed(entry, active, every)
                continue
            if geometry.external_data:
                # The first cluster of a data file has the offset 0, and the copied bit alone.
                if not offset and not (copied and not (geometry.has_zero_bit and entry & L2_ZERO)):
                    continue
                _require(copied or not active)
            elif offset:
                first, end = self._refer(offset, count << geometry.cluster_bits, every)
                refcounts = self._refcounts[first:end]
                _require(not active or (_all_are(refcounts, 1) if copied else 1 not in refcounts))
            else:
                continue
            self._allocated += active * count
            self._fragmented += active if expected not in (-1, offset) else 0
            expected = offset + (count << geometry.cluster_bits)

    def _runs(self, table: array[int]) -> Iterator[tuple[int, int]]:
        """Yield the entries of a table that are not 0, judged, with how many consecutive ones begin there."""
        size, step = self._geometry.cluster_size, self._geometry.l2_entry_words
        special = ~(L2_OFFSET & -size | L2_COPIED)
        words, index = table[::step], 0
        while index < len(words):
            entry = words[index]
            end = index + 1 + entries_alike(words, index, len(words), size, special)
            if step > 1:
                for bitmap in set(table[index * step + 1 : end * step : step]):
                    self._judge(entry, bitmap)
            elif entry:
                self._judge(entry, 0)
            if entry:
                self._take_step()
                yield entry, end - index
            index = end

    def _judge(self, entry: int, bitmap: int) -> None:
        look = without_place(entry, self._geometry), bitmap
        if look not in self._judged:
            self._take_step()
            _require(not any(broken_rules(self._rules, *look, self._geometry)))
            self._judged.add(look)

    def _take_step(self) -> None:
        self._steps += 1
        _require(self._steps <= MAX_STEPS)

    def _count_compressed(self, entry: int, active: int, every: int) -> None:
        offset_mask, sectors_mask, sectors_shift = self._masks
        offset = entry & offset_mask
        self._refer(offset, self._geometry.compressed_length(offset, (entry & sectors_mask) >> sectors_shift), every)
        self._allocated += active
        self._fragmented += active
        self._compressed += active

    # --- the comparison ---

    def _compare(self) -> int:
        """Compare all references with the refcounts; return where the last cluster in use ends."""
        starts, ends, counts = [0], [0], [0]
        for at in sorted(self._changes):
            if self._changes[at]:
                ends[-1] = at
                starts.append(at)
                ends.append(self._end)
                counts.append(counts[-1] + self._changes[at])
        for start, end, count in zip(starts, ends, counts, strict=True):
            _require(count <= self._geometry.refcount_max and _all_are(self._refcounts[start:end], count))
        for first, end, times in self._owned:
            position = bisect_right(starts, first) - 1
            _require(counts[position] == times and end <= ends[position])
        return starts[-1] << self._geometry.cluster_bits


def _all_are(words: array[int], value: int) -> bool:
    return words == array(words.typecode, (value,)) * len(words)
