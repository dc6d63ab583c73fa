"""Refcount blocks and a refcount table in free space: those that an image will have after a change of it as a whole.

They are written where nothing names them; the caller names the table. Spec: "Host cluster management".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.atomic.free_space import FreeSpace
from qcow2c.atomic.refcounts import RefcountChange, ReferenceDelta, block_of
from qcow2c.constants import ENTRY_BYTES
from qcow2c.format.header import Header
from qcow2c.format.refcounts import require_table
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.walk import BATCH_BYTES
from qcow2c.storage.store import Buffer

if TYPE_CHECKING:
    from qcow2c.format.array_types import U64Array


class NewRefcounts:
    """The refcounts of one change, on their way to the file."""

    def __init__(
        self,
        header: Header,
        present: StoredRefcounts,
        new: RefcountChange,
        delta: ReferenceDelta,
        free: FreeSpace,
        write: Callable[[Sequence[Buffer], int], None],
    ) -> None:
        """`write` takes buffers and the cluster from which on they are to lie."""
        self._header = header
        self._geometry = header.geometry
        self._bits = header.cluster_bits
        self._present = present
        self._new = new
        self._delta = delta
        self._free = free
        self._write = write

    def build(self, *, anew: bool) -> dict[str, int]:
        """Place the refcount blocks that change, and a refcount table that names them: they count themselves, too.

        With `anew` all are. Return the header fields that name them. Which blocks change depends on which clusters are
        free, so that their number is known only when all are placed. Raises StoreError, LimitExceeded, CorruptMetadata.
        """
        table = np.zeros(0, dtype=np.uint64) if anew else self._present.table.copy()
        self._drop_blocks(self._present.table if anew else table[:0])
        self._delta.add_run(self._header.refcount_table_offset >> self._bits, self._header.refcount_table_clusters, -1)
        places: dict[int, int] = {}
        table_at, table_clusters = 0, 0
        while True:
            needed = self._new.changed_blocks(anew=anew)
            lacking = [index for index in needed if index not in places]
            entries = max(len(table), needed[-1] + 1 if needed else 1)
            is_short = entries > table_clusters * self._geometry.words_per_cluster
            if not lacking and not is_short:
                break
            if is_short:
                self._delta.add_run(table_at, table_clusters, -1)
                table_at, table_clusters = self._place_table(entries + 1)
            for index, cluster in self._place_blocks(lacking):
                places[index] = cluster
                self._drop_blocks(table[index : index + 1])
        behind = table_clusters * self._geometry.words_per_cluster - len(table)
        table = np.concatenate((table, np.zeros(behind, dtype=np.uint64)))
        self._write_blocks(places)
        table[list(places)] = np.array(list(places.values()), dtype=np.uint64) << np.uint64(self._bits)
        self._write([table.astype(">u8").tobytes()], table_at)
        return {"refcount_table_offset": table_at << self._bits, "refcount_table_clusters": table_clusters}

    def _place_table(self, entries: int) -> tuple[int, int]:
        """Take room for a refcount table; return its first cluster and their number. Raises LimitExceeded."""
        require_table(entries)
        clusters = self._geometry.clusters(entries * ENTRY_BYTES)
        first = self._free.take(clusters)
        self._delta.add_run(first, clusters, 1)
        return first, clusters

    def _place_blocks(self, indexes: list[int]) -> Iterator[tuple[int, int]]:
        """Take room for refcount blocks; yield index and cluster of each."""
        done = 0
        while done < len(indexes):
            first, count = self._free.take_some(len(indexes) - done)
            self._delta.add_run(first, count, 1)
            yield from zip(indexes[done : done + count], range(first, first + count), strict=True)
            done += count

    def _drop_blocks(self, offsets: U64Array) -> None:
        for offset in offsets[offsets != 0].tolist():
            self._delta.add_run(offset >> self._bits, 1, -1)

    def _write_blocks(self, places: dict[int, int]) -> None:
        pending: list[bytes] = []
        start = -1
        for index, cluster in places.items():
            if pending and (cluster != start + len(pending) or len(pending) << self._bits >= BATCH_BYTES):
                self._write(pending, start)
                pending = []
            start = cluster if not pending else start
            new = self._new.counts(index << self._new.block_bits, 1 << self._new.block_bits)
            pending.append(block_of(new, self._new.order))
        if pending:
            self._write(pending, start)
