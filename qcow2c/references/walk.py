"""The walk: every reference from metadata to host clusters, with its owner, as arrays.

Each L1 table and each L2 table is read once, however often it is referenced; a reference carries the number of times
it counts. `check` counts the references, `dump` sorts them by host offset. Tables in holes of the file, or past its
end, are all zeros and are not read. It judges nothing and writes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c.constants import ENTRY_BYTES, Limit
from qcow2c.errors import LimitExceeded, Span
from qcow2c.format import tables
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapDirectory, SnapshotTable, read_bitmaps, read_snapshots
from qcow2c.format.refcounts import BLOCK_OFFSET
from qcow2c.storage.sources import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

ACTIVE = -1
"""The index of the active state; snapshots count from 0."""

BATCH_BYTES = 2 << 20
"""Bytes of L2 tables that are read and handled together: big enough for I/O, small enough for the caches."""

MAX_L2_TABLES = 1 << 23
"""Bound of distinct L2 tables, twice what the largest L1 table can name."""

_MAX_EXTENTS = 1 << 20


class Owner(enum.IntEnum):
    """What refers to, or rather what lies in, a host cluster."""

    NONE = 0
    HEADER = 1
    REFCOUNT_TABLE = 2
    REFCOUNT_BLOCK = 3
    L1_TABLE = 4
    L2_TABLE = 5
    SNAPSHOT_TABLE = 6
    SNAPSHOT_L1_TABLE = 7
    SNAPSHOT_L2_TABLE = 8
    """An L2 table that no longer belongs to the active state."""
    DATA = 9
    SNAPSHOT_DATA = 10
    COMPRESSED = 11
    SNAPSHOT_COMPRESSED = 12
    BITMAP_DIRECTORY = 13
    BITMAP_TABLE = 14
    BITMAP_DATA = 15
    ENCRYPTION_HEADER = 16


@dataclass(frozen=True, slots=True)
class References:
    """References of one owner: host byte offsets, lengths in bytes, and how often each counts; shapes (n,).

    Snapshots' L1 tables come in the order of their states; `index` is the bitmap's for what belongs to a bitmap.
    """

    owner: Owner
    offsets: U64Array
    lengths: U64Array
    weights: U64Array
    index: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """The active disk or a snapshot: where its L1 table is. `walkable` is false where the table cannot be believed."""

    index: int
    l1_offset: int
    l1_entries: int
    disk_size: int
    walkable: bool = True


@dataclass(frozen=True, slots=True)
class L2Tables:
    """The distinct L2 tables by host offset, ascending, and how many L1 entries name each; shapes (n,)."""

    offsets: U64Array
    active: U64Array
    snapshot: U64Array


@dataclass(frozen=True, slots=True)
class L2Batch:
    """Adjacent rows of L2Tables with their entries, shape (n, entries of a table), native uint64.

    `bitmaps` has the same shape with extended L2 entries, and is None without.
    """

    offsets: U64Array
    active: U64Array
    snapshot: U64Array
    entries: U64Array
    bitmaps: U64Array | None


class Walk:
    """The walk over one image. `snapshots` and `bitmaps` may be given where they were read already."""

    def __init__(
        self,
        store: Store,
        header: Header,
        snapshots: SnapshotTable | None = None,
        bitmaps: BitmapDirectory | None = None,
    ) -> None:
        self.store = store
        self.header = header
        self.geometry: Geometry = header.geometry
        self.size = store.size()
        self.snapshots = read_snapshots(store, header) if snapshots is None else snapshots
        self.bitmaps = read_bitmaps(store, header) if bitmaps is None else bitmaps
        self._l2_tables: L2Tables | None = None
        self._states: list[State] | None = None

    # --- states and L1 tables ---

    def states(self) -> list[State]:
        """Return the active state and each snapshot, in order."""
        if self._states is not None:
            return self._states
        header = self.header
        found = [State(ACTIVE, header.l1_table_offset, header.l1_size, header.size)]
        for index, record in enumerate(self.snapshots.records):
            aligned = record.l1_table_offset % self.geometry.cluster_size == 0
            believable = aligned and record.l1_size <= Limit.L1_ENTRIES
            found.append(State(index, record.l1_table_offset, record.l1_size, record.disk_size, believable))
        self._states = found
        return found

    def l1_table(self, state: State) -> U64Array:
        """Return the entries of a state's L1 table, with zeros for what the file does not hold."""
        return self.words(state.l1_offset, state.l1_entries)

    def words(self, at: int, entries: int) -> U64Array:
        """Return `entries` words at byte `at`, zeros past the end of the file."""
        found = np.zeros(entries, dtype=np.uint64)
        if at < self.size:
            buffer = memoryview(found.data).cast("B")
            done = self.store.readinto_at(buffer[: max(0, self.size - at)], at)
            found[-(-done // ENTRY_BYTES) :] = 0  # A torn last word ends in zeros.
            if np.little_endian:
                found.byteswap(inplace=True)
        return found

    # --- L2 tables ---

    def l2_tables(self) -> L2Tables:
        """Return the distinct L2 tables. Raises LimitExceeded where there are more than can be."""
        if self._l2_tables is None:
            self._l2_tables = self._collect_l2_tables()
        return self._l2_tables

    def _collect_l2_tables(self) -> L2Tables:
        parts: list[tuple[U64Array, U64Array, U64Array]] = []
        pending = 0
        # Snapshots that share one L1 table, or name it again, are walked once.
        weights: dict[tuple[int, int], tuple[int, int]] = {}
        for state in self.states():
            if state.walkable and state.l1_entries:
                key = state.l1_offset, state.l1_entries
                active, snapshot = weights.get(key, (0, 0))
                is_active = state.index == ACTIVE
                weights[key] = active + is_active, snapshot + (not is_active)
        self._bound_tables(sum(entries * ENTRY_BYTES for _, entries in weights), "L1")
        for (offset, entries), (active, snapshot) in weights.items():
            named, times = distinct_tables(self.words(offset, entries))
            parts.append((named, _times(times, active), _times(times, snapshot)))
            pending += len(named)
            if pending > MAX_L2_TABLES:
                parts = [_merged(parts)]
                pending = len(parts[0][0])
                if pending > MAX_L2_TABLES:
                    raise LimitExceeded(f"more than {MAX_L2_TABLES} distinct L2 tables", spec="Cluster mapping")
        found = L2Tables(*_merged(parts))
        torn = found.offsets % np.uint64(self.geometry.cluster_size) != 0
        self._bound_tables(int(np.count_nonzero(torn)) << self.geometry.cluster_bits, "misaligned L2")
        return found

    def _bound_tables(self, size: int, what: str) -> None:
        """Tables that do not overlap fit into the file: refuse to walk, again and again, over ones that do."""
        limit = 2 * self.size + (64 << 20)
        if size > limit:
            message = f"the {what} tables overlap: {size} bytes in a file of {self.size}"
            raise LimitExceeded(message, where=Span(0, self.size), spec="Cluster mapping")

    def batches(self, found: L2Tables | None = None) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows of `l2_tables()` for `batch`; their tables are together about BATCH_BYTES."""
        found = self.l2_tables() if found is None else found
        step = max(1, BATCH_BYTES >> self.geometry.cluster_bits)
        for start in range(0, len(found.offsets), step):
            yield start, min(start + step, len(found.offsets))

    def stored_tables(self) -> L2Tables:
        """Return the L2 tables that may hold anything but zeros: not those in holes and past the end."""
        found = self.l2_tables()
        keep = self.stored(found.offsets)
        return found if keep.all() else L2Tables(found.offsets[keep], found.active[keep], found.snapshot[keep])

    def stored(self, offsets: U64Array) -> NDArray[np.bool_]:
        """Return which clusters at `offsets` may hold anything but zeros; their order is free, shape (n,)."""
        keep: NDArray[np.bool_] = offsets < np.uint64(self.size)
        allocated = self.store.allocated_size()
        if allocated is not None and len(offsets) << self.geometry.cluster_bits > allocated:
            keep &= self._in_data(offsets)
        return keep

    def _in_data(self, offsets: U64Array) -> NDArray[np.bool_]:
        """Return which of the clusters at `offsets` touch data of the file, as far as its holes are known."""
        spans = []
        for span, is_data in self.store.extents(int(offsets.min()), int(offsets.max()) + self.geometry.cluster_size):
            if is_data:
                spans.append((span.offset, span.end))
            if len(spans) > _MAX_EXTENTS:
                return np.ones(len(offsets), dtype=bool)
        starts = np.array([start for start, _ in spans], dtype=np.uint64)
        ends = np.array([end for _, end in spans] + [0], dtype=np.uint64)
        # The last extent that starts before the table's end: does it reach into the table?
        last = np.searchsorted(starts, offsets + np.uint64(self.geometry.cluster_size), side="left") - 1
        reaches: NDArray[np.bool_] = (last >= 0) & (ends[last] > offsets)
        return reaches

    def batch(self, found: L2Tables, start: int, end: int) -> L2Batch:
        """Read the tables of rows `start` to `end` of `found`."""
        geometry = self.geometry
        offsets = found.offsets[start:end]
        size = geometry.cluster_size
        raw = np.empty(((end - start), geometry.words_per_cluster), dtype=np.uint64)
        buffer = memoryview(raw.data).cast("B")
        breaks = np.flatnonzero(np.diff(offsets) != np.uint64(size)) + 1
        edges = [0, *breaks.tolist(), end - start]
        for first, last in pairwise(edges):
            part = buffer[first * size : last * size]
            done = self.store.readinto_at(part, int(offsets[first]))
            if done < len(part):
                part[done:] = bytes(len(part) - done)  # A file may end within its last cluster.
        if np.little_endian:
            raw.byteswap(inplace=True)
        entries, bitmaps = (raw[:, 0::2], raw[:, 1::2]) if geometry.extended_l2 else (raw, None)
        return L2Batch(offsets, found.active[start:end], found.snapshot[start:end], entries, bitmaps)

    # --- references ---

    def metadata(self) -> Iterator[References]:
        """Yield what the header, the snapshot table and the bitmap directory name, and the L2 tables."""
        header, geometry = self.header, self.geometry
        yield _one(Owner.HEADER, 0, geometry.cluster_size)
        walkable = [state for state in self.states() if state.walkable and state.l1_entries]
        for owner, chosen in (
            (Owner.L1_TABLE, [state for state in walkable if state.index == ACTIVE]),
            (Owner.SNAPSHOT_L1_TABLE, [state for state in walkable if state.index != ACTIVE]),
        ):
            offsets = np.array([state.l1_offset for state in chosen], dtype=np.uint64)
            lengths = np.array([state.l1_entries * ENTRY_BYTES for state in chosen], dtype=np.uint64)
            yield References(owner, offsets, lengths, _filled(len(chosen), 1))
        if self.snapshots.size:
            yield _one(Owner.SNAPSHOT_TABLE, header.snapshots_offset, self.snapshots.size)
        if header.refcount_table_clusters:
            size = header.refcount_table_clusters * geometry.cluster_size
            yield _one(Owner.REFCOUNT_TABLE, header.refcount_table_offset, size)
        if header.encryption_header is not None and header.encryption_header.length:
            yield _one(Owner.ENCRYPTION_HEADER, header.encryption_header.offset, header.encryption_header.length)
        yield from self._bitmap_references()
        found = self.l2_tables()
        for owner, rows in ((Owner.L2_TABLE, found.active > 0), (Owner.SNAPSHOT_L2_TABLE, found.active == 0)):
            offsets, weights = found.offsets, found.active if owner is Owner.L2_TABLE else found.snapshot
            if owner is Owner.L2_TABLE and found.snapshot.any():
                weights = found.active + found.snapshot
            if not rows.all():
                offsets, weights = offsets[rows], weights[rows]
            yield References(owner, offsets, _filled(len(offsets), geometry.cluster_size), weights)

    def _bitmap_references(self) -> Iterator[References]:
        extension = self.header.bitmaps
        if extension is None or not self.header.bitmaps_consistent:
            return
        yield _one(Owner.BITMAP_DIRECTORY, extension.bitmap_directory_offset, extension.bitmap_directory_size)
        tables_seen: dict[tuple[int, int], list[int]] = {}
        for index, record in enumerate(self.bitmaps.records):
            tables_seen.setdefault((record.bitmap_table_offset, record.bitmap_table_size), []).append(index)
        for (at, declared), users in tables_seen.items():
            entries = min(declared, Limit.BITMAP_BYTES >> self.geometry.cluster_bits)
            if not entries:
                continue
            weight = _filled(1, len(users))
            yield References(Owner.BITMAP_TABLE, _filled(1, at), _filled(1, declared * ENTRY_BYTES), weight, users[0])
            offsets = self.words(at, entries) & np.uint64(tables.BITMAP_OFFSET)
            offsets = offsets[offsets != 0]
            lengths, weights = _filled(len(offsets), self.geometry.cluster_size), _filled(len(offsets), len(users))
            yield References(Owner.BITMAP_DATA, offsets, lengths, weights, index=users[0])

    def refcount_table(self) -> U64Array:
        """Return the entries of the refcount table, zeros for what the file does not hold."""
        header = self.header
        entries = header.refcount_table_clusters * self.geometry.words_per_cluster
        return self.words(header.refcount_table_offset, min(entries, Limit.REFCOUNT_TABLE_BYTES // ENTRY_BYTES))

    def refcount_blocks(self) -> References:
        """Return the references of the refcount table, one for each entry that names a block."""
        offsets = self.refcount_table() & np.uint64(BLOCK_OFFSET)
        offsets = offsets[offsets != 0]
        lengths, weights = _filled(len(offsets), self.geometry.cluster_size), _filled(len(offsets), 1)
        return References(Owner.REFCOUNT_BLOCK, offsets, lengths, weights)

    def data(self, batch: L2Batch) -> Iterator[References]:
        """Yield the references of a batch of L2 tables to the image file: host clusters and compressed extents.

        Preallocated zero clusters count; nothing does that lies in an external data file.
        """
        entries = batch.entries.reshape(-1)
        per_table = batch.entries.shape[1]
        compressed = (entries & np.uint64(tables.L2_COMPRESSED)) != 0
        with_cluster = ~compressed & ((entries & np.uint64(tables.L2_OFFSET)) != 0)
        if self.geometry.external_data:
            with_cluster[:] = False
            compressed[:] = False
        for is_active, plain, packed in (
            (True, Owner.DATA, Owner.COMPRESSED),
            (False, Owner.SNAPSHOT_DATA, Owner.SNAPSHOT_COMPRESSED),
        ):
            chosen = np.repeat((batch.active > 0) == is_active, per_table)
            weights = np.repeat(batch.active + batch.snapshot, per_table)
            mine = chosen & with_cluster
            if mine.any():
                offsets = entries[mine] & np.uint64(tables.L2_OFFSET)
                lengths = _filled(len(offsets), self.geometry.cluster_size)
                yield References(plain, offsets, lengths, weights[mine])
            mine = chosen & compressed
            if mine.any():
                offsets, lengths = tables.compressed_extents(entries[mine], self.geometry)
                yield References(packed, offsets, lengths, weights[mine])

    def __iter__(self) -> Iterator[References]:
        """Yield every reference of the image."""
        yield from self.metadata()
        yield self.refcount_blocks()
        found = self.stored_tables()
        for start, end in self.batches(found):
            yield from self.data(self.batch(found, start, end))


def _times(counts: U64Array, factor: int) -> U64Array:
    """Multiply, without another array where that can be."""
    if factor == 1:
        return counts
    return counts * np.uint64(factor) if factor else _filled(len(counts), 0)


def distinct_tables(words: U64Array) -> tuple[U64Array, U64Array]:
    """Return the distinct L2 table offsets of L1 entries, ascending, and how many entries name each."""
    words = words[words != 0]
    words &= np.uint64(tables.L1_OFFSET)
    words.sort()
    starts = np.flatnonzero(np.concatenate((np.ones(min(1, len(words)), dtype=bool), words[1:] != words[:-1])))
    times = np.diff(starts, append=len(words)).view(np.uint64)
    return words[starts], times


def _merged(parts: list[tuple[U64Array, U64Array, U64Array]]) -> tuple[U64Array, U64Array, U64Array]:
    """Add up the counts of equal offsets."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        empty = np.zeros(0, dtype=np.uint64)
        return empty, empty, empty
    offsets, inverse = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    sums = []
    for column in (1, 2):
        total = np.zeros(len(offsets), dtype=np.uint64)
        np.add.at(total, inverse.reshape(-1), np.concatenate([part[column] for part in parts]))
        sums.append(total)
    return offsets, sums[0], sums[1]


def _one(owner: Owner, offset: int, length: int, **of: Any) -> References:
    # Offsets of a header reach 2**64, lengths not 2**40: the sum is for the caller, in Python's integers if need be.
    return References(owner, _filled(1, offset), _filled(1, length), _filled(1, 1), **of)


def _filled(count: int, value: int) -> U64Array:
    """Return the same value many times, in the memory of one."""
    return np.broadcast_to(np.uint64(value), count)
