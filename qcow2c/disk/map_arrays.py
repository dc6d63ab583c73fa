"""The map of a disk by arrays: windows of the disk, the L2 tables of each layer read in one go, no loop over entries.

It gives the same runs as `map.plain_columns`; a property holds them equal. What breaks a rule is left to the
reader to say, when all before it has been told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qcow2c.disk.map_layers import BELOW, DATA, OFFSET, ZERO, Columns, MappedLayer
from qcow2c.errors import LimitExceeded, Span
from qcow2c.format import tables
from qcow2c.format.records import BitmapDirectory, SnapshotTable
from qcow2c.format.table_rules import L1_RULES, EntryRule, l2_rules, suspects
from qcow2c.format.tables import HAS_HOST_CLUSTER, Kind
from qcow2c.layers.layer import Run
from qcow2c.layers.reader import Reader
from qcow2c.references.walk import L2Tables, Walk
from qcow2c.storage.sources import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

    Ints = NDArray[np.int64]
    Bytes = NDArray[np.uint8]
    Bools = NDArray[np.bool_]

BROKEN = BELOW << 1
"""The flag of a run whose entry breaks a rule."""

WINDOW_ENTRIES = 1 << 17
"""How many entries, subclusters counted, a window has room for in each layer.

Arrays of that size lie in memory that is used again; larger ones are given back, and faulted in anew, each time.
"""

MAX_REPEATED_BYTES = 2 << 20
"""Bytes of L2 tables that an L1 table may name again. A sound one names each once; a hostile one, millions of times."""

_MAX_HOLES = 1 << 20


class Runs(NamedTuple):
    """Runs that cover a range without gaps; shapes (n,). `depths` is one number where they are of one layer."""

    starts: Ints
    flags: Bytes
    depths: Bytes
    offsets: Ints
    end: int

    def rows(self, first: int, last: int) -> Runs:
        """Return some of the runs, in a row."""
        end = int(self.starts[last]) if last < len(self.starts) else self.end
        part = slice(first, last)
        return Runs(self.starts[part], self.flags[part], self.depths[part], self.offsets[part], end)


class _PreparedLayer:
    """One layer, prepared: its L1 table, and the holes of its file where they matter."""

    def __init__(self, mapped: MappedLayer, depth: int) -> None:
        self.mapped = mapped
        self._depth = depth
        self.flags = np.array([*mapped.flags, BROKEN], dtype=np.uint8)
        self.unit = 0
        # Only tables can be read as arrays; a layer without any is asked for its runs.
        self._reader = mapped.layer if isinstance(mapped.layer, Reader) else None
        if self._reader is not None:
            self._prepare(self._reader)

    def _prepare(self, reader: Reader) -> None:
        self.geometry = reader.geometry
        self.unit = reader.geometry.subcluster_size
        empty = SnapshotTable((), 0, None), BitmapDirectory((), None)
        self.walk = Walk(reader.store, reader.header, *empty)
        self.l1_table: U64Array = np.array(reader.l1_table, dtype=np.uint64)
        named = self.l1_table[self.l1_table != 0] & np.uint64(tables.L1_OFFSET)
        named.sort()  # np.unique takes ten times as long.
        repeated = int(np.count_nonzero(named[1:] == named[:-1])) << reader.geometry.cluster_bits
        if repeated > MAX_REPEATED_BYTES:
            message = f"the L1 table names the same L2 tables again and again: {repeated} bytes of them"
            where = Span(reader.header.l1_table_offset, self.l1_table.nbytes)
            raise LimitExceeded(message, where=where, spec="Cluster mapping")
        self.holes = _holes(reader.data_store) if self.mapped.preallocated else None
        self._table_holes = _holes(reader.store)

    # --- one window of one layer ---

    def runs(self, start: int, end: int) -> Runs:
        """Return the runs of this layer alone: BELOW where it says nothing, BROKEN where it must not be believed."""
        reader = self._reader
        if reader is None:
            return self._of_runs(list(self.mapped.layer.runs(start, end - start)), end)
        coverage_bits = self.geometry.l2_coverage_bits
        first, last = start >> coverage_bits, ((end - 1) >> coverage_bits) + 1
        l1 = self.l1_table[first:last]
        missing = last - first - len(l1)
        broken = self._broken_l1(reader, l1)
        # A table in a hole of the file is all zeros, as if it were not there: no need to read millions of them.
        present = ((l1 & np.uint64(tables.L1_OFFSET)) != 0) & ~broken & ~self._in_holes(l1)
        kinds = np.where(broken, np.uint8(len(Kind)), np.uint8(Kind.UNALLOCATED))
        rows = np.flatnonzero(present)
        # L1 entries without a table are runs themselves.
        index = np.flatnonzero(~present)
        parts = [(((index + first) << coverage_bits).astype(np.int64), kinds[index], np.zeros(len(index), np.int64))]
        if missing:  # The reader raises for an entry that should be there.
            at = np.array([(first + len(l1)) << coverage_bits], dtype=np.int64)
            is_declared = first + len(l1) < reader.l1_entries
            kind = np.array([len(Kind) if is_declared else Kind.UNALLOCATED], dtype=np.uint8)
            parts.append((at, kind, np.zeros(1, np.int64)))
        if len(rows):
            parts.append(self._tables(l1[rows], rows + first))
        starts, found_kinds, offsets = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(starts, kind="stable")
        runs = self._runs(starts[order], self.flags[found_kinds[order]], offsets[order], end)
        return self._with_holes(_cut(runs, start))

    def _of_runs(self, found: list[Run], end: int) -> Runs:
        starts = np.array([run.guest_offset for run in found], dtype=np.int64)
        flags = self.flags[np.array([run.kind for run in found], dtype=np.uint8)]
        offsets = np.array([run.host_offset for run in found], dtype=np.int64)
        return self._runs(starts, flags, offsets, end)

    def _runs(self, starts: Ints, flags: Bytes, offsets: Ints, end: int) -> Runs:
        return Runs(starts, flags, np.full(len(starts), self._depth, dtype=np.uint8), offsets, end)

    def _broken_l1(self, reader: Reader, l1: U64Array) -> Bools:
        """Return the entries at which the reader has an objection, or may have one."""
        broken = np.zeros(len(l1), dtype=bool)
        seen = int(np.bitwise_or.reduce(l1)) if len(l1) else 0
        for rule in suspects(L1_RULES, seen, self.geometry):
            broken |= rule.broken(l1, 0, self.geometry)
        at = l1 & np.uint64(tables.L1_OFFSET)
        named = at != 0
        broken |= named & (at >= np.uint64(self.walk.size))
        for _, span in reader.metadata:
            after = max(0, span.offset - self.geometry.cluster_size + 1)
            broken |= named & (at >= np.uint64(after)) & (at < np.uint64(span.end))
        blocks = reader.refcount_blocks() if named.any() else ()
        if blocks:
            broken |= named & np.isin(at, np.array(sorted(blocks), dtype=np.uint64))
        return broken

    def _in_holes(self, l1: U64Array) -> Bools:
        """Return which entries name an L2 table that lies in a hole as a whole."""
        if self._table_holes is None:
            return np.zeros(len(l1), dtype=bool)
        edges, is_hole = self._table_holes
        at = (l1 & np.uint64(tables.L1_OFFSET)).view(np.int64)
        index = np.searchsorted(edges, at, side="right") - 1
        ends = np.append(edges[1:], np.iinfo(np.int64).max)
        found: Bools = is_hole[index] & (at + self.geometry.cluster_size <= ends[index])
        return found

    def _tables(self, l1: U64Array, rows: NDArray[np.intp]) -> tuple[Ints, Bytes, Ints]:
        """Return starts, kinds (len(Kind) for broken entries) and host offsets of the runs of some L2 tables."""
        geometry = self.geometry
        found = L2Tables(l1 & np.uint64(tables.L1_OFFSET), l1, l1)
        batch = self.walk.batch(found, 0, len(l1))
        entries = batch.entries.reshape(-1)
        bitmaps = None if batch.bitmaps is None else batch.bitmaps.reshape(-1)
        suspected = suspects(l2_rules(geometry), int(np.bitwise_or.reduce(entries)), geometry)
        plain = not suspected and bitmaps is None and not geometry.external_data
        chosen = self._firsts(entries) if plain else np.arange(len(entries))
        entries = entries[chosen]
        kinds = tables.kinds(entries, bitmaps, geometry)
        hosts = (entries & np.uint64(tables.L2_OFFSET)).view(np.int64)
        index = chosen & (geometry.l2_entries - 1)
        guests = (
            (rows.astype(np.int64)[chosen >> geometry.l2_bits] << geometry.l2_bits) + index
        ) << geometry.cluster_bits
        broken = self._broken_l2(suspected, entries, bitmaps, hosts, guests)
        if broken is not None:
            kinds[broken] = len(Kind)
        if bitmaps is not None:
            inside = np.arange(geometry.subclusters, dtype=np.int64) * geometry.subcluster_size
            hosts, guests = (hosts[:, None] + inside).reshape(-1), (guests[:, None] + inside).reshape(-1)
            kinds = kinds.reshape(-1)
        # What is in the file goes on where guest and host move together; the rest, where the kind is the same.
        distance = np.where(_HAS_HOST[kinds], hosts - guests, 0)
        changes = (kinds[1:] != kinds[:-1]) | (distance[1:] != distance[:-1])
        # Behind a table that is missing, and where only firsts are left, all begins anew; it is joined later.
        changes |= guests[1:] - guests[:-1] != geometry.subcluster_size
        firsts = np.concatenate(([0], np.flatnonzero(changes) + 1))
        kinds = kinds[firsts]
        return guests[firsts], kinds, np.where(_HAS_HOST[kinds], hosts[firsts], 0)

    def _firsts(self, entries: U64Array) -> NDArray[np.intp]:
        """Return where runs may begin in tables of nothing but offsets and copied bits, which no rule suspects.

        Most tables of big images are such, and most of their entries are the last one's successor, or nothing at all.
        """
        is_none = entries == 0
        goes_on = entries[1:] - entries[:-1] == np.uint64(self.geometry.cluster_size)
        goes_on &= (entries[:-1] & np.uint64(tables.L2_OFFSET)) != 0
        goes_on |= is_none[1:] & is_none[:-1]
        begins = np.ones(len(entries), dtype=bool)
        np.logical_not(goes_on, out=begins[1:])
        begins[:: self.geometry.l2_entries] = True
        return np.flatnonzero(begins)

    def _broken_l2(
        self,
        suspected: tuple[EntryRule, ...],
        entries: U64Array,
        bitmaps: U64Array | None,
        hosts: Ints,
        guests: Ints,
    ) -> Bools | None:
        """Return which entries break one of the suspected rules, or None where none can."""
        geometry = self.geometry
        if not suspected and not geometry.external_data:
            return None
        broken = np.zeros(len(entries), dtype=bool)
        for rule in suspected:
            broken |= rule.broken(entries, 0 if bitmaps is None else bitmaps, geometry)
        if not geometry.external_data:
            special = np.uint64(tables.L2_ZERO) if bitmaps is None else ~np.uint64(0)
            packed = (entries & np.uint64(tables.L2_COMPRESSED)) != 0
            broken |= ((entries & special) != 0) & ~packed & (hosts >= self.walk.size)
        else:
            first = tables.kinds(entries, bitmaps, geometry)
            broken |= _HAS_HOST[first if bitmaps is None else first[:, 0]] & (hosts != guests)
        return broken

    def _with_holes(self, runs: Runs) -> Runs:
        """Return the runs with data cut where the file has holes, which read as zeros."""
        if self.holes is None:
            return runs
        edges, is_hole = self.holes
        asked = (runs.flags & (DATA | OFFSET)) == DATA | OFFSET
        lengths = _lengths(runs)
        first = np.searchsorted(edges, runs.offsets, side="right") - 1
        last = np.searchsorted(edges, runs.offsets + lengths, side="left") - 1
        pieces = np.where(asked, last - first + 1, 1)
        row = np.repeat(np.arange(len(pieces)), pieces)
        edge = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + first[row]
        edge = np.minimum(edge, len(edges) - 1)
        begin = np.where(asked[row], np.maximum(edges[edge] - runs.offsets[row], 0), 0)
        flags = np.where(asked[row] & is_hole[edge], runs.flags[row] | np.uint8(ZERO), runs.flags[row])
        placed = (runs.flags[row] & OFFSET) != 0
        offsets = runs.offsets[row] + np.where(placed, begin, 0)
        return Runs(runs.starts[row] + begin, flags, runs.depths[row], offsets, runs.end)


_HAS_HOST = np.array([kind in HAS_HOST_CLUSTER for kind in Kind] + [False])


def _holes(store: Store) -> tuple[Ints, Bools] | None:
    """Return where data and holes of a file begin, and which are holes; None where there are too many."""
    size, edges, is_hole = store.size(), [0], [True]
    for span, is_data in store.extents(0, size):
        edges.append(span.offset)
        is_hole.append(not is_data)
        if len(edges) > _MAX_HOLES:
            return None
    return np.array([*edges, size], dtype=np.int64), np.array([*is_hole, True])


# --- the chain ------------------------------------------------------------------------------------------------------


def columns(
    layers: Sequence[MappedLayer], start: int, end: int, *, window_entries: int = WINDOW_ENTRIES
) -> Iterator[Columns]:
    """Yield the runs of a range in batches. Raises as the reader at the first entry that breaks a rule."""
    plans = [_PreparedLayer(mapped, depth) for depth, mapped in enumerate(layers)]
    pending: Runs | None = None
    while start < end:
        stop = _window_end(plans, start, end, window_entries)
        runs = _composed(plans, start, stop)
        bad = np.flatnonzero(runs.flags & BROKEN)
        if len(bad):
            runs = runs.rows(0, int(bad[0]))
        pending = _merged(runs if pending is None else _joined(pending, runs))
        if len(bad):
            if len(pending.starts):
                yield _columns(pending)
            _complain(layers, pending.end)
        # The last run may go on in the next window.
        if len(pending.starts) > 1:
            last = len(pending.starts) - 1
            yield _columns(pending.rows(0, last))
            pending = pending.rows(last, last + 1)
        start = stop
    if pending is not None:
        yield _columns(pending)


def _window_end(plans: list[_PreparedLayer], start: int, end: int, entries: int) -> int:
    """Return the end of a window in which no layer has more than so many entries."""
    for plan in plans:
        if plan.unit and start < plan.mapped.size:
            end = min(end, start // plan.unit * plan.unit + entries * plan.unit)
    return end


def _composed(plans: list[_PreparedLayer], start: int, end: int) -> Runs:
    """Return the runs of a range with those of the layers below where a layer says nothing; `end` is in the layer."""
    plan, *lower = plans
    mine = plan.runs(start, end)
    open_runs = np.flatnonzero(mine.flags & BELOW)
    if not len(open_runs):
        return mine
    low = int(mine.starts[open_runs[0]])
    final = int(open_runs[-1]) + 1
    high = int(mine.starts[final]) if final < len(mine.starts) else end
    within = min(high, lower[0].mapped.size)
    others = _composed(lower, low, within) if within > low else None
    points = [mine.starts] if others is None else [mine.starts, others.starts, np.array([within], dtype=np.int64)]
    starts = np.unique(np.concatenate(points))
    starts = starts[starts < end]
    own = np.searchsorted(mine.starts, starts, side="right") - 1
    flags, offsets, depths = mine.flags[own], mine.offsets[own] + _moved(mine, own, starts), mine.depths[own]
    opened = (flags & BELOW) != 0
    # Past the end of a short backing file there are zeros.
    flags = np.where(opened, (flags & ~np.uint8(BELOW)) | np.uint8(ZERO), flags)
    if others is not None:
        there = np.clip(np.searchsorted(others.starts, starts, side="right") - 1, 0, None)
        taken = opened & (starts < within)
        flags = np.where(taken, others.flags[there], flags)
        offsets = np.where(taken, others.offsets[there] + _moved(others, there, starts), offsets)
        depths = np.where(taken, others.depths[there], depths)
    return Runs(starts, flags, depths, offsets, end)


def _moved(runs: Runs, index: NDArray[np.intp], starts: Ints) -> Ints:
    """Return how far into its run each start is, where the run has an offset that moves along."""
    moved: Ints = np.where((runs.flags[index] & OFFSET) != 0, starts - runs.starts[index], 0)
    return moved


def _lengths(runs: Runs) -> Ints:
    return np.diff(runs.starts, append=runs.end)


def _cut(runs: Runs, start: int) -> Runs:
    """Return the runs without what lies before `start` or from their end on."""
    first = max(0, int(np.searchsorted(runs.starts, start, side="right")) - 1)
    last = int(np.searchsorted(runs.starts, runs.end, side="left"))
    starts, offsets = runs.starts[first:last].copy(), runs.offsets[first:last].copy()
    before = max(0, start - int(starts[0]))
    starts[0] += before
    if runs.flags[first] & OFFSET:
        offsets[0] += before
    return Runs(starts, runs.flags[first:last], runs.depths[first:last], offsets, runs.end)


def _joined(one: Runs, other: Runs) -> Runs:
    return Runs(
        np.concatenate((one.starts, other.starts)),
        np.concatenate((one.flags, other.flags)),
        np.concatenate((one.depths, other.depths)),
        np.concatenate((one.offsets, other.offsets)),
        other.end,
    )


def _merged(runs: Runs) -> Runs:
    """Join runs that go on in the same way, in the file too."""
    starts, flags, depths, offsets, _ = runs
    goes_on = (flags[1:] == flags[:-1]) & (depths[1:] == depths[:-1])
    goes_on &= ((flags[1:] & OFFSET) == 0) | (offsets[1:] - offsets[:-1] == starts[1:] - starts[:-1])
    firsts = np.concatenate(([0], np.flatnonzero(~goes_on) + 1)) if len(starts) else np.arange(0)
    return Runs(starts[firsts], flags[firsts], depths[firsts], offsets[firsts], runs.end)


def _columns(runs: Runs) -> Columns:
    offsets = np.where((runs.flags & OFFSET) != 0, runs.offsets, 0)
    return Columns(
        runs.starts.tolist(), _lengths(runs).tolist(), runs.depths.tolist(), runs.flags.tolist(), offsets.tolist()
    )


def _complain(layers: Sequence[MappedLayer], guest_offset: int) -> None:
    """Raise the reader's error for an entry that breaks a rule, in whichever layer."""
    for mapped in layers:
        if guest_offset < mapped.size:
            mapped.layer.run_at(guest_offset, 1)
    raise AssertionError(f"no entry is broken at guest offset {guest_offset:#x}")
