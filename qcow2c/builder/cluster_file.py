"""A new image file, one cluster after another, each with the number of references to it; then refcounts and header.

It knows nothing of what the clusters hold. Memory: the counts, and what waits to be written.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c.builder.appender import WRITE_BYTES, Appender
from qcow2c.builder.final_header import write_final_header
from qcow2c.errors import LimitExceeded
from qcow2c.format import layout
from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import refcount_room, require_table, stored_block, word_code
from qcow2c.format.tables import compressed_entry, require_nameable
from qcow2c.storage.store import Store
from qcow2c.storage.zeros import zeros

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.unsignedinteger[Any]]

_REFCOUNTS_AT_ONCE = 1 << 20
"""How many refcounts are put into blocks at a time, unless one block has more."""

_PACK_CLUSTERS = 64
"""Clusters of compressed data that are written at once, at least: only the last of them may have room left."""


class ClusterFile:
    """Clusters appended to an empty store, behind room for the header.

    Durable order: everything but the header; then the header, as `write_final_header` does it.
    """

    def __init__(self, store: Store, geometry: Geometry) -> None:
        self.geometry = geometry
        self._store = store
        self._out = Appender(store, geometry.cluster_size)
        self.clusters = 1
        self._counts: list[Counts] = [np.ones(1, dtype=np.uint64)]

    @property
    def length(self) -> int:
        """Bytes of the file so far."""
        return self.clusters << self.geometry.cluster_bits

    def append(self, data: memoryview | bytes, counts: Counts | None = None) -> int:
        """Append bytes, padded to whole clusters, with their counts (default: 1 each); return their host offset.

        The data must not change any more. Raises LimitExceeded for a count that no refcount can hold, StoreError.
        """
        clusters = self.geometry.clusters(len(data))
        counts = np.ones(clusters, dtype=np.uint8) if counts is None else counts
        if len(counts) and int(counts.max()) > self.geometry.refcount_max:
            message = f"{int(counts.max())} references to a cluster, more than {self.geometry.refcount_max}"
            raise LimitExceeded(message, spec="Host cluster management")
        offset = self.length
        self._out.append(memoryview(data))
        padding = (clusters << self.geometry.cluster_bits) - len(data)
        if padding:
            self._out.append(zeros(padding))
        self.clusters += clusters
        self._counts.append(counts)
        return offset

    def append_refcounts(self) -> tuple[int, int]:
        """Append refcount table and blocks, which count themselves; return offset and clusters of the table.

        Nothing can be appended after that. Raises LimitExceeded, StoreError.
        """
        geometry = self.geometry
        room = refcount_room(geometry, self.clusters)
        require_table(room.entries)
        table = self.length
        first = table + (room.table_clusters << geometry.cluster_bits)
        entries = array("Q", range(first, first + (room.blocks << geometry.cluster_bits), geometry.cluster_size))
        counts = [*self._counts, np.ones(room.clusters, dtype=np.uint8)]
        self.append(layout.stored(entries).ljust(room.table_clusters << geometry.cluster_bits, b"\0"))
        at_once = max(1, _REFCOUNTS_AT_ONCE >> geometry.refcount_block_bits) << geometry.refcount_block_bits
        code = word_code(geometry.refcount_order)
        for part in _pieces(counts, room.blocks << geometry.refcount_block_bits, at_once, code):
            self.append(stored_block(array(code, part.tobytes()), geometry.refcount_order))
        return table, room.table_clusters

    def finish(self, header: bytes) -> None:
        """Write everything that is left, then the header; the image is complete then. Raises StoreError."""
        self._out.flush()
        write_final_header(self._store, header.ljust(self.geometry.cluster_size, b"\0"))


def _pieces(parts: Sequence[Counts], length: int, size: int, code: str) -> Iterator[Counts]:
    """Yield all parts, consecutively with zeros behind them, in pieces of `size` items up to `length`.

    `code` is the type code of the items.
    """
    room = np.zeros(min(size, length), dtype=code)
    used = done = 0
    for part in parts:
        at = 0
        while at < len(part):
            count = min(len(part) - at, len(room) - used)
            room[used : used + count] = part[at : at + count]
            used, at = used + count, at + count
            if used == len(room):
                yield room
                done += used
                room = np.zeros(min(size, length - done), dtype=code)
                used = 0
    if len(room):
        yield room


class Packer:
    """Compressed clusters, packed consecutively into clusters of a file.

    `entries` receives the descriptor of each at its index when its data is placed.
    """

    def __init__(self, file: ClusterFile, entries: NDArray[np.uint64]) -> None:
        self._file = file
        self._entries = entries
        self._geometry = file.geometry
        self._flush_from = max(WRITE_BYTES, _PACK_CLUSTERS << self._geometry.cluster_bits)
        self._data = bytearray()
        self._waiting: list[tuple[int, int, int]] = []
        self._counts: list[int] = []

    def add(self, index: int, packed: bytes, count: int) -> None:
        """Take a compressed cluster that is referenced `count` times. Raises LimitExceeded, StoreError."""
        bits = self._geometry.cluster_bits
        if len(self._data) % self._geometry.cluster_size and self._counts[-1] + count > self._geometry.refcount_max:
            self._data.extend(bytes(-len(self._data) % self._geometry.cluster_size))
        at = len(self._data)
        self._data += packed
        last = len(self._data) - 1 >> bits
        self._counts += [0] * (last + 1 - len(self._counts))
        for cluster in range(at >> bits, last + 1):
            self._counts[cluster] += count
        self._waiting.append((index, at, len(packed)))
        if len(self._data) >= self._flush_from:
            self.flush()

    def flush(self) -> None:
        """Place all that waits. Raises LimitExceeded, StoreError."""
        if not self._waiting:
            return
        base = self._file.append(bytes(self._data), np.array(self._counts, dtype=np.uint64))
        require_nameable(base, self._file.length - base, self._geometry)
        for index, at, length in self._waiting:
            self._entries[index] = compressed_entry(base + at, length, self._geometry)
        self._data, self._waiting, self._counts = bytearray(), [], []
