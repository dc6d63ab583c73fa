"""One sweep over a batch of L2 tables: what the entries refer to, add up to, and say of the refcounts; by arrays.

Also what a sweep adds to: the tally of entries, and the window of reference counts. Reads no file, judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c.format import tables
from qcow2c.format.geometry import Geometry
from qcow2c.format.table_rules import EntryRule, suspects
from qcow2c.references.walk import L2Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array


@dataclass
class Tally:
    """Sums over L2 entries. Tables count as often as the active L1 table, or all L1 tables, name them."""

    allocated: int = 0
    """Clusters of the active state with a host cluster or compressed data."""
    compressed: int = 0
    fragmented: int = 0
    """Clusters that do not lie behind the one before them, and all compressed ones."""
    broken: dict[str, int] = field(default_factory=dict)
    """For each rule that QEMU's check counts: entries of all states that break it."""
    copied: int = 0
    """Entries of the active state whose copied bit contradicts the refcount."""
    past_end: int = 0
    """References, of all owners, to what lies past the end of the file."""

    def add(self, other: Tally) -> None:
        self.allocated += other.allocated
        self.compressed += other.compressed
        self.fragmented += other.fragmented
        self.copied += other.copied
        self.past_end += other.past_end
        for rule, count in other.broken.items():
            self.broken[rule] = self.broken.get(rule, 0) + count


@dataclass
class Window:
    """Host clusters `first` to `end`: their refcounts and counted references, shape (end - first,)."""

    first: int
    end: int
    refcounts: NDArray[np.unsignedinteger[Any]]
    references: NDArray[np.unsignedinteger[Any]]

    def count_run(self, first: int, end: int, weight: int) -> None:
        """Add a reference of a weight to clusters `first` to `end`, as far as they are in the window."""
        start, stop = max(first, self.first) - self.first, min(end, self.end) - self.first
        if start < stop:
            self.references[start:stop] += self.references.dtype.type(weight)

    def count(self, clusters: NDArray[np.int64], weights: U64Array) -> None:
        """Add references to clusters of any order, each with its weight, as far as they are in the window."""
        inside = (clusters >= self.first) & (clusters < self.end)
        amounts = weights[inside].astype(self.references.dtype)
        np.add.at(self.references, clusters[inside] - self.first, amounts)

    def count_sweep(self, sweep: Sweep) -> None:
        """Add the references of aligned host clusters: run by run where they are mostly consecutive."""
        weight = sweep.uniform_weight
        if weight is None or not sweep.in_runs:
            self.count(sweep.clusters(), sweep.weights())
            return
        for first, end in sweep.runs:
            self.count_run(first, end, weight)


class Sweep:
    """One pass over a batch of L2 tables: what its entries refer to, with as few looks at each as can be.

    Most tables hold nothing but plain clusters, in long runs: then five passes over the words are all. `packed` are
    the compressed descriptors.
    """

    def __init__(self, batch: L2Batch, geometry: Geometry) -> None:
        self._batch = batch
        self._geometry = geometry
        self._flat = batch.entries.reshape(-1)
        self._per_table = batch.entries.shape[1]
        self._seen = int(np.bitwise_or.reduce(self._flat)) if len(self._flat) else 0
        self._common = int(np.bitwise_and.reduce(self._flat)) if len(self._flat) else 0
        self.misaligned = bool(self._seen & tables.L2_OFFSET & (geometry.cluster_size - 1))
        self.rows: NDArray[np.int64] | None = None
        """Which entries have a host cluster; None: all."""
        self._packed_rows = np.zeros(0, dtype=np.int64)
        self._breaks = self._breaks_between(self._flat) if self._all_alike() else self._breaks_between(self._flat[:0])
        if not self._all_alike() or not self._starts().all():
            self._select()
            self._breaks = self._breaks_between(self.offsets)
        self.packed = self._flat[self._packed_rows]
        # QEMU compares no copied bits of a table at offset 0, which no table can be at.
        self._compared = np.where(batch.offsets != 0, batch.active, np.uint64(0))
        total = self._totals = batch.active + batch.snapshot
        self.uniform_weight = int(total[0]) if len(total) and (total == total[0]).all() else None

    def _all_alike(self) -> bool:
        """Whether all entries are plain, and differ in nothing but the host cluster offset."""
        offset = tables.L2_OFFSET
        return not (self._seen & ~(offset | tables.L2_COPIED) or (self._seen ^ self._common) & ~offset)

    def _starts(self) -> U64Array:
        """Return the first host cluster offset of each run, if all entries are alike: only there it may be 0."""
        edges = np.concatenate((np.zeros(1, dtype=np.int64), self._breaks + 1))
        return self._flat[edges[: len(self._flat)]] & np.uint64(tables.L2_OFFSET)

    def _breaks_between(self, words: U64Array) -> NDArray[np.int64]:
        """Return after which words the next is not one cluster further; equal flags cancel out."""
        return np.flatnonzero(words[1:] - words[:-1] != np.uint64(self._geometry.cluster_size))

    def _select(self) -> None:
        """Find the entries that have a host cluster, and the compressed ones that count."""
        flat, geometry = self._flat, self._geometry
        present = (flat & np.uint64(tables.L2_OFFSET)) != 0
        if geometry.external_data:
            copied = (flat & np.uint64(tables.L2_COPIED)) != 0
            present |= copied & ((flat & np.uint64(tables.L2_ZERO)) == 0) if geometry.has_zero_bit else copied
        if self._seen & tables.L2_COMPRESSED:
            packed = (flat & np.uint64(tables.L2_COMPRESSED)) != 0
            present &= ~packed
            if self._batch.bitmaps is not None:
                packed &= self._batch.bitmaps.reshape(-1) == 0
            if not geometry.external_data:
                self._packed_rows = np.flatnonzero(packed)
        if not present.all():
            self.rows = np.flatnonzero(present)

    @cached_property
    def offsets(self) -> U64Array:
        """The host cluster offsets of plain and zero entries in the order of the tables, shape (n,)."""
        words = self._flat if self.rows is None else self._flat[self.rows]
        return words & np.uint64(tables.L2_OFFSET)

    @property
    def count(self) -> int:
        """How many entries have a host cluster."""
        return len(self._flat) if self.rows is None else len(self.rows)

    @property
    def end(self) -> int:
        """Where the last host cluster ends, 0 without any."""
        if not self.count:
            return 0
        if not self.in_runs:
            return int(self.offsets.max()) + self._geometry.cluster_size
        return max(end for _, end in self.runs) << self._geometry.cluster_bits

    @cached_property
    def in_runs(self) -> bool:
        """Whether the host clusters are aligned and mostly consecutive."""
        return not self.misaligned and len(self._breaks) * 32 <= self.count

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """First and end of each run of consecutive host clusters."""
        if not self.count:
            return []
        edges = np.concatenate(([0], self._breaks + 1))
        words = self._flat[edges if self.rows is None else self.rows[edges]]
        firsts = (words & np.uint64(tables.L2_OFFSET)) >> np.uint64(self._geometry.cluster_bits)
        lengths = np.diff(np.concatenate((edges, [self.count])))
        return [(first, first + length) for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True)]

    def clusters(self) -> NDArray[np.int64]:
        """Return the host clusters of `offsets`."""
        return (self.offsets >> np.uint64(self._geometry.cluster_bits)).view(np.int64)

    def weights(self) -> U64Array:
        """Return how often each of `offsets` is referenced."""
        return self._totals[self._tables(self.rows)]

    def packed_weights(self) -> U64Array:
        """Return how often each of `packed` is referenced."""
        return self._totals[self._tables(self._packed_rows)]

    def _tables(self, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
        every: NDArray[np.int64] = np.arange(len(self._flat)) if rows is None else rows
        found: NDArray[np.int64] = every // self._per_table
        return found

    def add_to(self, tally: Tally, rules: tuple[EntryRule, ...]) -> None:
        """Add allocation, fragmentation and broken rules of the batch."""
        batch = self._batch
        per_table = (
            np.bincount(self._tables(self.rows), minlength=len(batch.offsets))
            if self.rows is not None
            else (np.full(len(batch.offsets), self._per_table))
        )
        packed = np.bincount(self._tables(self._packed_rows), minlength=len(batch.offsets))
        active = batch.active.astype(np.int64)
        compressed = int(packed @ active)
        tally.compressed += compressed
        tally.allocated += int(per_table @ active) + compressed
        before, after = self._tables_at(self._breaks), self._tables_at(self._breaks + 1)
        inside = after[before == after]
        tally.fragmented += int(np.bincount(inside, minlength=len(batch.offsets)) @ active) + compressed
        for rule in suspects(rules, self._seen, self._geometry):
            if rule.counted:
                self._add_broken(tally, rule)

    def _tables_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the table of each position in `offsets`."""
        return self._tables(positions if self.rows is None else self.rows[positions])

    def _add_broken(self, tally: Tally, rule: EntryRule) -> None:
        batch = self._batch
        bitmaps = 0 if batch.bitmaps is None else batch.bitmaps
        broken = rule.broken(batch.entries, bitmaps, self._geometry)
        if np.any(broken):
            times = np.count_nonzero(broken, axis=1) @ (batch.active + batch.snapshot).astype(np.int64)
            tally.broken[rule.rule] = tally.broken.get(rule.rule, 0) + int(times)

    # --- copied bits ---

    def copied_mismatches(self, window: Window) -> int:
        """Return how many active entries have a copied bit that contradicts the refcounts in the window."""
        if not self.count or not self._compared.any():
            return 0
        if self._geometry.external_data:
            return 0 if window.first else self.mismatches(np.arange(self.count), np.True_)
        copied = self._uniform_copied()
        if copied is not None and self.in_runs and self._runs_agree(window, copied=copied):
            return 0
        clusters = self.clusters()
        inside = np.flatnonzero((clusters >= window.first) & (clusters < window.end))
        return self.mismatches(inside, window.refcounts[clusters[inside] - window.first] == 1)

    def _uniform_copied(self) -> bool | None:
        """Return the copied bit that all entries with a host cluster have, None where they differ."""
        seen, common = self._seen, self._common
        if self.rows is not None:
            chosen = self._flat[self.rows]
            seen, common = int(np.bitwise_or.reduce(chosen)), int(np.bitwise_and.reduce(chosen))
        return None if (seen ^ common) & tables.L2_COPIED else bool(common & tables.L2_COPIED)

    def _runs_agree(self, window: Window, *, copied: bool) -> bool:
        for first, end in self.runs:
            start, stop = max(first, window.first) - window.first, min(end, window.end) - window.first
            if start < stop and not ((window.refcounts[start:stop] == 1) == copied).all():
                return False
        return True

    def mismatches(self, positions: NDArray[np.int64], expected: Any) -> int:
        """Return how many active entries at positions of `offsets` have another copied bit than expected."""
        rows = positions if self.rows is None else self.rows[positions]
        copied = (self._flat[rows] & np.uint64(tables.L2_COPIED)) != 0
        wrong = rows[copied != expected] // self._per_table
        return int(self._compared[wrong].sum())

    def reach(self) -> U64Array:
        """Return for each table the first and the last host cluster that it refers to; shape (tables, 2)."""
        count = len(self._batch.offsets)
        found = np.zeros((count, 2), dtype=np.uint64)
        found[:, 0] = np.iinfo(np.uint64).max
        starts, lengths = tables.compressed_extents(self.packed, self._geometry)
        bits = np.uint64(self._geometry.cluster_bits)
        for rows, first, last in (
            (self._tables(self.rows), self.offsets, self.offsets + np.uint64(self._geometry.cluster_size)),
            (self._tables(self._packed_rows), starts, starts + lengths),
        ):
            np.minimum.at(found[:, 0], rows, first >> bits)
            np.maximum.at(found[:, 1], rows, last >> bits)
        return found
