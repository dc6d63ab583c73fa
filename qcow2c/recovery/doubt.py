"""Doubt: may clusters that no table reaches be data all the same, of a table that is lost? Reads, and changes nothing.

A lost table leaves no broken entry behind: an L1 or L2 table of zeros is a valid one. What shows that it was lost are
the clusters with a refcount and with contents that nothing refers to, together with any of these:

    an entry breaks a rule, or leads past the end of the file; a structure overlaps another one
    one host cluster is named for several guest clusters, or one L2 table by several L1 entries
    an L1 table, or an L2 table that is named, holds nothing but zeros
    a structure is said to be where the refcount is 0; a bitmap that was stored whole has entries that name nothing
    a cluster that nothing refers to is itself an L2 table, and names others of its kind
    there is a gap in a table into which the clusters fit: between two neighbours, or a sector of the table long

A record that owns clusters and cannot be read for what it is (`LOST_OWNERS` of `format/rules.py`) is doubt by itself.
Each of them is still there after a repair, so that a second one comes to the same result. What no sign speaks for is
a leak as programs leave it that were killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import SECTOR_SIZE
from qcow2c.format import tables
from qcow2c.format.refcounts import TABLE_RESERVED, refcounts
from qcow2c.format.table_rules import L1_RULES, l2_rules
from qcow2c.recovery.survey import Survey
from qcow2c.references.batches import flat
from qcow2c.references.walk import ACTIVE, BATCH_BYTES, L2Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array


class Doubt:
    """What may be data although nothing refers to it, and why.

    `held` tells for each cluster whether it has contents, a refcount (or, with `rebuild`, none that can be believed)
    and no reference; `reasons` are empty where all of that can be freed.
    """

    def __init__(self, survey: Survey, *, rebuild: bool, damaged: list[str], lost: list[str]) -> None:
        """`damaged` says what a check has found broken, other than refcounts; it counts where clusters are held.

        `lost` says which records that own clusters cannot be read for what they are: doubt in any case. Raises
        LimitExceeded, StoreError.
        """
        self._survey = survey
        self._geometry = survey.geometry
        self._rebuild = rebuild
        self.held: NDArray[np.bool_] = flat(survey.clusters, np.bool_)
        self._loose: NDArray[np.bool_] = flat(survey.clusters, np.bool_)
        """Clusters with a refcount and no reference, whatever they hold."""
        self._names_unnamed = False
        is_shared = self._find_loose()
        for first, end in self._loose_runs():
            self._look_at(first, end)
        self.reasons: list[str] = lost
        leads_away = bool(survey.past_end_count) and bool(self._loose.any())
        if is_shared or leads_away or self.held.any():
            self.reasons = [*lost, *damaged, *broken_tables(survey), *self._reasons()]

    def _find_loose(self) -> bool:
        """Mark what nothing refers to, not even stale bitmaps; tell if anything in use has too high a refcount."""
        survey, is_shared = self._survey, False
        for first, count in survey.chunks():
            old, references = survey.old(first, count), survey.references(first, count)
            counted = old > 0
            if self._rebuild:
                counted |= ~survey.is_believable(first, count)
            loose = counted & (references == 0)
            for start, end in survey.stale:
                loose[max(start - first, 0) : max(end - first, 0)] = False
            if loose.any():
                self._loose[first : first + count] = loose
            is_shared = is_shared or bool(((references > 0) & (old > references)).any())
        return is_shared

    def _loose_runs(self) -> Iterator[tuple[int, int]]:
        """Yield runs of loose clusters, as (first, end), as far as the file holds data there; none is long."""
        survey, bits = self._survey, self._geometry.cluster_bits
        most = max(1, BATCH_BYTES >> bits)
        for first, count in survey.chunks():
            edges = np.flatnonzero(np.diff(np.concatenate(([0], self._loose[first : first + count], [0]))))
            for start, end in (edges + first).reshape(-1, 2).tolist():
                stop = min(end << bits, survey.walk.size)
                for span, is_data in survey.store.extents(start << bits, stop) if start << bits < stop else ():
                    last = self._geometry.clusters(span.end)
                    for at in range(span.offset >> bits, last if is_data else 0, most):
                        yield at, min(at + most, last)

    def _look_at(self, first: int, end: int) -> None:
        """Mark the loose clusters of a run that hold anything, and see whether one is an L2 table."""
        bits = self._geometry.cluster_bits
        data = self._survey.store.pread((end - first) << bits, first << bits).ljust((end - first) << bits, b"\0")
        words = tables.native(data).reshape(end - first, -1)
        held = words.any(axis=1) & self._loose[first:end]
        self.held[first:end] |= held
        if self._names_unnamed:
            return
        # Most of what is no table has reserved bits somewhere.
        per_entry = self._geometry.l2_entry_words
        reserved = np.where(words[:, ::per_entry] & np.uint64(tables.L2_COMPRESSED), 0, tables.L2_RESERVED)
        held &= ((words[:, ::per_entry] & reserved.astype(np.uint64)) == 0).all(axis=1)
        for row in np.flatnonzero(held).tolist():
            bitmaps = words[row, 1::per_entry] if per_entry > 1 else np.zeros(1, dtype=np.uint64)
            if not (self._rebuild and self._is_refcount_table(words[row], first + row)):
                self._names_unnamed |= self._is_table(words[row, ::per_entry], bitmaps, first + row)

    def _is_table(self, entries: U64Array, bitmaps: U64Array, cluster: int) -> bool:
        """Return whether a cluster is an L2 table that names other clusters to which nothing refers."""
        if any(np.any(rule.broken(entries, bitmaps, self._geometry)) for rule in l2_rules(self._geometry)):
            return False
        if not self._survey.inside(entries).all():
            return False
        hosts = entries & np.uint64(tables.L2_OFFSET)
        packed = (entries & np.uint64(tables.L2_COMPRESSED)) != 0
        starts, _ = tables.compressed_extents(entries[packed], self._geometry)
        named = np.concatenate((hosts[~packed & (hosts != 0)], starts)) >> np.uint64(self._geometry.cluster_bits)
        named = named[(named < np.uint64(self._survey.clusters)) & (named != np.uint64(cluster))]
        return bool(self._loose[named.view(np.int64)].any())

    def _is_refcount_table(self, words: U64Array, cluster: int) -> bool:
        """Return whether a cluster is a refcount table that is no longer named: it looks much like an L2 table.

        Then its first block has refcounts for itself and for the table, and its last one none behind the file.
        """
        survey, bits = self._survey, self._geometry.cluster_bits
        named = np.flatnonzero(words)
        within = self._geometry.cluster_size - 1
        if (
            words[0] == 0
            or (words & np.uint64(TABLE_RESERVED | within | tables.L2_COPIED | tables.L2_COMPRESSED)).any()
        ):
            return False
        first, last = (self._counts(int(words[index])) for index in (0, named[-1]))
        needed = np.array([0, cluster, int(words[0]) >> bits])
        behind = survey.clusters - (int(named[-1]) << self._geometry.refcount_block_bits)
        if not (0 < behind < len(last) and needed.max() < len(first)):
            return False
        return bool(first[needed].all() and not last[behind:].any())

    def _counts(self, at: int) -> NDArray[np.unsignedinteger]:
        size = self._geometry.cluster_size
        return refcounts(self._survey.store.pread(size, at).ljust(size, b"\0"), self._geometry.refcount_order)

    # --- signs of a lost table ---

    def _reasons(self) -> Iterator[str]:
        survey = self._survey
        if survey.past_end_count:
            yield f"{survey.past_end_count} references lead past the end of the file"
        if survey.overlap():
            yield survey.overlap()
        yield from self._signs_in_structures()
        if self._names_unnamed:
            yield "what nothing refers to looks like L2 tables that were lost"
        for state in survey.states():
            if not survey.walk.l1_table(state).any():
                name = "the active state" if state.index == ACTIVE else f"snapshot {state.index}"
                yield f"the L1 table of {name} holds nothing but zeros"
        places, several = survey.l1_places()
        if several.any():
            yield f"{np.count_nonzero(several)} L2 tables are named by several L1 entries"
        yield from self._signs_in_tables(places)

    def _signs_in_structures(self) -> Iterator[str]:
        """Structures where the refcounts say that nothing is; bitmaps that were stored whole, and name nothing."""
        survey, walk = self._survey, self._survey.walk
        for part in survey.metadata:
            offsets = part.offsets[(part.lengths > 0) & (part.offsets < np.uint64(walk.size))]
            free = int(np.count_nonzero(survey.refcounts.at(offsets >> np.uint64(survey.bits)) == 0))
            if free and not (self._rebuild or survey.header.dirty):
                name = part.owner.name.lower().replace("_", " ")
                yield f"{free} times a {name} is said to be where the refcount is 0: it may be elsewhere"
        for index, record in enumerate(walk.bitmaps.records):
            if not record.in_use and (walk.words(record.bitmap_table_offset, record.bitmap_table_size) == 0).any():
                yield f"bitmap {index} has table entries that name nothing"

    def _signs_in_tables(self, places: NDArray[np.int64]) -> Iterator[str]:
        walk, geometry = self._survey.walk, self._geometry
        named, found = walk.l2_tables(), walk.stored_tables()
        empty, gaps, crossed = len(named.offsets) - len(found.offsets), 0, 0
        guests = flat(self._survey.clusters, np.int64)
        """For each host cluster the guest cluster that it is for, and 1; 0 for none."""
        for start, end in walk.batches(found):
            batch = walk.batch(found, start, end)
            used = batch.entries != 0 if batch.bitmaps is None else (batch.entries | batch.bitmaps) != 0
            empty += int(np.count_nonzero(~used.any(axis=1)))
            rows, columns = np.nonzero(self._is_plain(batch))
            places_in_file = batch.entries[rows, columns] & np.uint64(tables.L2_OFFSET)
            hosts = (places_in_file >> np.uint64(geometry.cluster_bits)).view(np.int64)
            gaps += self._gaps(used, rows, columns, hosts)
            if not geometry.external_data:
                table_places = places[np.searchsorted(named.offsets, batch.offsets)]
                guest = (table_places[rows] << geometry.l2_bits) + columns + 1
                crossed += int(np.count_nonzero((guests[hosts] != 0) & (guests[hosts] != guest)))
                guests[hosts] = guest
                crossed += int(np.count_nonzero(guests[hosts] != guest))
        if empty:
            yield f"{empty} L2 tables hold nothing but zeros"
        if gaps:
            yield f"{gaps} gaps in L2 tables are as long as what nothing refers to"
        if crossed:
            yield f"{crossed} host clusters are named for several guest clusters"

    def _is_plain(self, batch: L2Batch) -> NDArray[np.bool_]:
        """Return which entries name a host cluster within the file; shape of the entries."""
        entries = batch.entries
        plain: NDArray[np.bool_] = (entries & np.uint64(tables.L2_OFFSET)) != 0
        plain &= (entries & np.uint64(tables.L2_COMPRESSED)) == 0
        limit = np.uint64(self._survey.clusters << self._geometry.cluster_bits)
        return plain & ((entries & np.uint64(tables.L2_OFFSET)) < limit)

    def _gaps(
        self, used: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64], hosts: NDArray[np.int64]
    ) -> int:
        """Return how many gaps there are into which held clusters fit; `used` are entries that are not zero."""
        if self._geometry.external_data or not len(rows):
            return 0
        width = used.shape[1]
        flat_used, at = used.reshape(-1), rows * width + columns
        before = np.concatenate(([0], np.cumsum(flat_used)))
        found = 0
        # Between two neighbours that lie as far apart in the file as on the disk.
        left, right = slice(None, -1), slice(1, None)
        distance = at[right] - at[left]
        fits = (distance > 1) & (hosts[right] - hosts[left] == distance) & (rows[right] == rows[left])
        fits &= before[at[right]] - before[at[left] + 1] == 0
        pairs = np.flatnonzero(fits)
        found += int(np.count_nonzero(self.held[hosts[pairs] + 1] & self.held[hosts[pairs + 1] - 1]))
        # A sector of the table, or more of them, behind or before an entry.
        sector = min(width, SECTOR_SIZE // self._geometry.l2_entry_bytes)
        for step in (1, -1):
            edge = columns + step
            mine = np.flatnonzero((edge % sector == (0 if step > 0 else sector - 1)) & (edge >= 0) & (edge < width))
            start = at[mine] + step if step > 0 else at[mine] - sector
            mine = mine[before[start + sector] - before[start] == 0]
            beside = hosts[mine] + step
            beside = beside[(beside >= 0) & (beside < len(self.held))]
            found += int(np.count_nonzero(self.held[beside]))
        return found


def broken_tables(survey: Survey) -> list[str]:
    """Return which rules entries of L1 and L2 tables break; also those rules that a check does not count."""
    geometry, walk = survey.geometry, survey.walk
    found: dict[str, int] = {}
    for state in survey.states():
        words = walk.l1_table(state)
        for rule in L1_RULES:
            found[rule.rule] = found.get(rule.rule, 0) + int(np.count_nonzero(rule.broken(words, 0, geometry)))
    stored = walk.stored_tables()
    for start, end in walk.batches(stored):
        batch = walk.batch(stored, start, end)
        bitmaps = 0 if batch.bitmaps is None else batch.bitmaps
        for rule in l2_rules(geometry):
            broken = int(np.count_nonzero(rule.broken(batch.entries, bitmaps, geometry)))
            found[rule.rule] = found.get(rule.rule, 0) + broken
    return [f"{count} table entries break the rule {rule}" for rule, count in found.items() if count]
