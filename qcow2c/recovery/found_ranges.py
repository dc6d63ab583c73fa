"""The ranges of a disk that was found: what is where, and how sure that is; and what no state refers to.

An unmapped range is zeros only where nothing speaks against it: while the file holds clusters in use that no table
refers to, what lies in a sector of zeros of a table may have been lost. A host cluster that two entries name, or in
which a table lies, is the data of neither. Reads only; memory: eight bytes for each cluster in use.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE
from qcow2c.errors import Qcow2Error
from qcow2c.format.header import Header
from qcow2c.format.tables import L2_COMPRESSED, L2_OFFSET, Kind, compressed_extents, kinds
from qcow2c.light import NamedTuple
from qcow2c.recovery.found_bitmaps import bitmap_clusters
from qcow2c.recovery.found_refcounts import FoundRefcounts
from qcow2c.recovery.found_states import FoundDisk, FoundStates, Level
from qcow2c.recovery.found_tables import FoundTables, L2Table, read_l2
from qcow2c.references.walk import Owner, Walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import I64Array, U64Array

_L1_SECTOR = SECTOR_SIZE // ENTRY_BYTES
_OTHER_OWNERS = (Owner.BITMAP_DIRECTORY, Owner.BITMAP_TABLE, Owner.BITMAP_DATA, Owner.ENCRYPTION_HEADER)

MAY_BE_LOST = "a sector of zeros in a table, while clusters in use belong to nothing: it may have named some of them"
TABLE_LOST = "the L2 table is lost"
BEYOND = "beyond the end of the file"
BROKEN = "the entry breaks a rule"
BESIDE = "no table names it, but the external data file holds it at its place"
SHARED = "the entry names a cluster that another entry or a table has"

_REASONS = ("", MAY_BE_LOST, SHARED, BROKEN)


class FoundRange(NamedTuple):
    """Guest bytes of one kind: `host` is where plain data begins, or the descriptor of a compressed cluster."""

    guest: int
    length: int
    kind: Kind
    host: int
    level: Level
    reason: str = ""


class Belongings:
    """What each host cluster belongs to, as far as any state says. `orphans`: clusters in use that none refers to."""

    def __init__(self, found: FoundTables, states: FoundStates, refcounts: FoundRefcounts) -> None:
        """Raises StoreError."""
        self._found = found
        self.geometry = states.geometry
        self.refcounts = refcounts
        self.metadata = self._metadata(states)
        data = [self._data(disk) for disk in states.disks() if disk.kind != "stale" or not refcounts.usable]
        self.data, references = np.unique(np.concatenate(data), return_counts=True)
        inside = self.data < found.scan.size >> self.geometry.cluster_bits
        self.undercounted: I64Array = np.zeros(0, dtype=np.int64)
        """Clusters that more refers to than is found."""
        if not (self.geometry.external_data or states.header.dirty):
            self.undercounted = refcounts.excess(self.data[inside], references[inside])
        used = found.scan.used_clusters(self.geometry.cluster_bits)
        loose = used[~np.isin(used, self.metadata)]
        if not self.geometry.external_data:
            loose = loose[~np.isin(loose, self.data)]
        loose = refcounts.counted(loose)
        bitmaps = bitmap_clusters(found.store, self.geometry, loose)
        self.orphans: I64Array = loose[~np.isin(loose, bitmaps)]

    @property
    def lacks_references(self) -> bool:
        """Whether clusters are in use for something that is not there."""
        return bool(len(self.orphans) or len(self.undercounted))

    def _metadata(self, states: FoundStates) -> I64Array:
        bits, size = self.geometry.cluster_bits, self.geometry.cluster_size
        parts = [np.zeros(1, dtype=np.int64), self.refcounts.blocks() >> bits]
        for disk in states.disks():
            if disk.l1_offset:
                end = disk.l1_offset + max(1, len(disk.l1)) * ENTRY_BYTES
                parts.append(np.arange(disk.l1_offset >> bits, -(-end >> bits), dtype=np.int64))
            parts.append((disk.l1[disk.l1 != 0] >> np.uint64(bits)).astype(np.int64))
        for offset, record in states.records:
            parts.append(np.arange(offset >> bits, (record.span.end - 1 >> bits) + 1, dtype=np.int64))
        parts += self._others(states.header)
        found = np.unique(np.concatenate(parts))
        return found[found <= self._found.scan.size // size]

    def _others(self, header: Header) -> list[I64Array]:
        """Return the clusters of bitmaps and key slots, as far as they can be read."""
        bits = self.geometry.cluster_bits
        found: list[I64Array] = []
        try:
            for part in Walk(self._found.store, header).metadata():
                if part.owner in _OTHER_OWNERS:
                    for offset, length in zip(part.offsets.tolist(), part.lengths.tolist(), strict=True):
                        end = min(offset + length, self._found.scan.size)
                        found.append(np.arange(offset >> bits, -(-end >> bits), dtype=np.int64))
        except Qcow2Error:
            return found
        return found

    def _data(self, disk: FoundDisk) -> I64Array:
        """Return the host clusters of a disk's data, compressed or not, as often as they are referred to."""
        bits = self.geometry.cluster_bits
        parts: list[I64Array] = []
        for offset in disk.l1[disk.l1 != 0].tolist():
            table = read_l2(self._found.store, offset, self.geometry)
            plain, packed = _plain(table), table.entries[_packed(table)]
            parts.append(plain >> bits)
            if len(packed):
                starts, lengths = compressed_extents(packed, self.geometry)
                ends = starts + lengths - np.uint64(1)
                first, last = ((edge >> np.uint64(bits)).astype(np.int64) for edge in (starts, ends))
                parts += [first, last[last != first]]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _packed(table: L2Table) -> NDArray[np.bool_]:
    return np.asarray(((table.entries & np.uint64(L2_COMPRESSED)) != 0) & ~table.broken)


def _plain(table: L2Table) -> I64Array:
    """Return the host offsets of all plain clusters that a table names."""
    entries = table.entries[~_packed(table) & ~table.broken] & np.uint64(L2_OFFSET)
    found: I64Array = entries[entries != 0].astype(np.int64)
    return found


class DiskRanges:
    """The ranges of one disk, in order, over all of its size."""

    def __init__(self, found: FoundTables, belongings: Belongings, disk: FoundDisk, data_size: int) -> None:
        """`data_size`: of the file with the guest's data. Raises StoreError."""
        self._found, self._belongings, self.disk = found, belongings, disk
        self.geometry = belongings.geometry
        self._data_size = data_size
        self._twice = self._named_twice()
        self._doubtful = belongings.lacks_references

    def _named_twice(self) -> I64Array:
        """Return the host clusters that two entries of the disk name, ascending."""
        parts = [_plain(read_l2(self._found.store, int(at), self.geometry)) for at in self.disk.l1[self.disk.l1 != 0]]
        clusters = np.sort(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))
        return np.unique(clusters[1:][clusters[1:] == clusters[:-1]]) >> self.geometry.cluster_bits

    def __iter__(self) -> Iterator[FoundRange]:
        """Yield adjacent ranges, merged where they can be. Raises StoreError."""
        last: FoundRange | None = None
        for piece in self._pieces():
            if last is not None and _continues(last, piece):
                last = last._replace(length=last.length + piece.length)
                continue
            if last is not None:
                yield last
            last = piece
        if last is not None:
            yield last

    def _pieces(self) -> Iterator[FoundRange]:
        if self.geometry.external_data:
            yield from map(self._beside, self._mapped())
        else:
            yield from self._mapped()

    def _beside(self, found: FoundRange) -> FoundRange:
        """Return a range that no table names as one that is at its place in the external data file."""
        if found.kind is not Kind.UNALLOCATED or found.reason == BEYOND or found.guest >= self._data_size:
            return found
        return found._replace(kind=Kind.DATA, host=found.guest, level=Level.INFERRED, reason=BESIDE)

    def _mapped(self) -> Iterator[FoundRange]:
        size, coverage = self.disk.size, 1 << self.geometry.l2_coverage_bits
        index, end = 0, min(len(self.disk.l1), -(-size // coverage))
        named = np.flatnonzero(self.disk.l1[:end]).tolist()
        for at in [*named, end]:
            for first in range(index, at):
                yield self._unmapped(first, 1, size)
            if at < end:
                yield from self._table(at, min(size, (at + 1) * coverage) - at * coverage)
            index = at + 1
        if end * coverage < size:
            level = Level.LOST if self._doubtful or self.disk.l1_lost else Level.NAMED
            reason = MAY_BE_LOST if level is Level.LOST else ""
            yield FoundRange(end * coverage, size - end * coverage, Kind.UNALLOCATED, 0, level, reason)

    def _unmapped(self, index: int, count: int, size: int) -> FoundRange:
        coverage = 1 << self.geometry.l2_coverage_bits
        start = index * coverage
        length = min(size, start + count * coverage) - start
        if self.disk.l1_lost:
            return FoundRange(start, length, Kind.UNALLOCATED, 0, Level.LOST, "no L1 table says what was here")
        if self._doubtful and index // _L1_SECTOR in self.disk.blank:
            return FoundRange(start, length, Kind.UNALLOCATED, 0, Level.LOST, MAY_BE_LOST)
        return FoundRange(start, length, Kind.UNALLOCATED, 0, self.disk.levels[index])

    def _table(self, index: int, length: int) -> Iterator[FoundRange]:
        """Yield the ranges of one L2 table, of which the disk has `length` bytes."""
        geometry, offset = self.geometry, int(self.disk.l1[index])
        start, level = index << geometry.l2_coverage_bits, self.disk.levels[index]
        if offset % geometry.cluster_size or offset + geometry.cluster_size > self._found.scan.size:
            where = BEYOND if offset % geometry.cluster_size == 0 else "not aligned"
            yield FoundRange(start, length, Kind.UNALLOCATED, 0, Level.LOST, f"the L2 table at {offset:#x} is {where}")
            return
        table = read_l2(self._found.store, offset, geometry)
        if table.blank.all() and self._doubtful:
            yield FoundRange(start, length, Kind.UNALLOCATED, 0, Level.LOST, TABLE_LOST)
            return
        count = -(-length // geometry.cluster_size)
        of_subclusters = kinds(table.entries, table.bitmaps, geometry).reshape(len(table.entries), -1)[:count]
        lost = self._lost(table)[:count]
        mixed = (of_subclusters != of_subclusters[:, :1]).any(axis=1)
        hosts = table.entries[:count] & np.uint64(L2_OFFSET)
        for first, end in itertools.pairwise(_edges(of_subclusters[:, 0], lost, mixed, hosts, geometry.cluster_size)):
            guest = start + (first << geometry.cluster_bits)
            room = min(length, end << geometry.cluster_bits) - (first << geometry.cluster_bits)
            if lost[first]:
                yield FoundRange(guest, room, Kind.UNALLOCATED, 0, Level.LOST, _REASONS[int(lost[first])])
                continue
            entry, step = int(table.entries[first]), geometry.subcluster_size
            if not mixed[first]:
                yield from self._cluster(guest, room, Kind(int(of_subclusters[first, 0])), entry, 0, level)
                continue
            for sub in range(-(-room // step)):
                part, kind = min(step, room - sub * step), Kind(int(of_subclusters[first, sub]))
                yield from self._cluster(guest + sub * step, part, kind, entry, sub * step, level)

    def _cluster(
        self, guest: int, length: int, kind: Kind, entry: int, inside: int, level: Level
    ) -> Iterator[FoundRange]:
        if kind is Kind.INVALID:
            yield FoundRange(guest, length, Kind.UNALLOCATED, 0, Level.LOST, BROKEN)
        elif kind is Kind.COMPRESSED:
            yield FoundRange(guest, length, kind, entry, level)
        elif kind is not Kind.DATA:
            plain = Kind.ZERO if kind is Kind.ZERO_ALLOCATED else kind
            plain = Kind.UNALLOCATED if kind is Kind.UNALLOCATED_IN_CLUSTER else plain
            yield FoundRange(guest, length, plain, 0, level)
        else:
            host = (entry & L2_OFFSET) + inside
            there = max(0, min(length, self._data_size - host)) // SECTOR_SIZE * SECTOR_SIZE
            if there:
                yield FoundRange(guest, there, kind, host, level)
            if there < length:
                yield FoundRange(guest + there, length - there, Kind.UNALLOCATED, 0, Level.LOST, BEYOND)

    def _lost(self, table: L2Table) -> NDArray[np.uint8]:
        """Return for each entry why it cannot be believed, as an index of `_REASONS`; 0 where it can."""
        found = np.zeros(len(table.entries), dtype=np.uint8)
        if self._doubtful:
            found[table.blank] = _REASONS.index(MAY_BE_LOST)
        named = (table.entries & np.uint64(L2_OFFSET)) != 0
        plain = named & ~table.broken & ~_packed(table)
        clusters = ((table.entries & np.uint64(L2_OFFSET)) >> np.uint64(self.geometry.cluster_bits)).astype(np.int64)
        bad = np.isin(clusters, self._twice)
        if not self.geometry.external_data:
            bad |= np.isin(clusters, self._belongings.metadata)
        found[plain & bad] = _REASONS.index(SHARED)
        found[table.broken] = _REASONS.index(BROKEN)
        return found


def _edges(
    kind: NDArray[np.uint8], lost: NDArray[np.uint8], mixed: NDArray[np.bool_], hosts: U64Array, size: int
) -> list[int]:
    """Return where runs of entries begin that are one range, and the end: 0, ..., len(kind)."""
    new = (kind[1:] != kind[:-1]) | (lost[1:] != lost[:-1]) | mixed[1:] | mixed[:-1]
    follows = hosts[1:] == hosts[:-1] + np.uint64(size)
    new |= (kind[1:] == Kind.COMPRESSED) | ((kind[1:] == Kind.DATA) & ~follows)
    return [0, *(np.flatnonzero(new) + 1).tolist(), len(kind)]


def _continues(last: FoundRange, piece: FoundRange) -> bool:
    """Return whether a piece goes on where another one ends, in the guest and in the file."""
    if last.kind is Kind.COMPRESSED or (last.kind, last.level, last.reason) != (piece.kind, piece.level, piece.reason):
        return False
    return piece.host == (last.host + last.length if last.kind is Kind.DATA else last.host)
