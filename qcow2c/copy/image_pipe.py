"""A new image written from its first byte to its last, where seeking is impossible: all metadata comes before the data.

That takes two passes over the disk: `DataSurvey` finds the clusters that hold data, `ImagePipe` writes them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from qcow2c.builder.options import CreateOptions, Places, header_of
from qcow2c.builder.plan import l1_entries_of, refcounts_of
from qcow2c.constants import ENTRY_BYTES
from qcow2c.copy.plan import Slab
from qcow2c.copy.targets import Target, Write
from qcow2c.format import layout
from qcow2c.format.geometry import ByteRange
from qcow2c.format.refcounts import stored_ones
from qcow2c.format.tables import L1_COPIED, L2_COPIED, SUBCLUSTERS_ALLOCATED
from qcow2c.storage.zeros import zeros


class DataSurvey(Target):
    """Remembers which guest clusters hold data: first and end of each range, one after the other."""

    def __init__(self, cluster_size: int, *, find_zeros: bool = True) -> None:
        super().__init__(cluster_size if find_zeros else 0, cluster_size)
        self._cluster_size = cluster_size
        self.edges = array("Q")

    def take(self, slab: Slab, _buffer: memoryview, prepared: list[ByteRange]) -> None:
        for start, end in prepared:
            first, last = (slab.start + start) // self._cluster_size, -(-(slab.start + end) // self._cluster_size)
            if self.edges and self.edges[-1] == first:
                self.edges[-1] = last
            else:
                self.edges.extend((first, last))

    def finish(self, size: int) -> None:
        """There is nothing to complete."""


class ImagePipe(Target):
    """Writes the image whose data clusters a survey has found; guest clusters lie in order."""

    def __init__(self, write: Write, options: CreateOptions, edges: array[int]) -> None:
        """Write all metadata. Raises UsageError, StoreError."""
        options.validate()
        self._geometry = geometry = options.geometry
        super().__init__(0, geometry.cluster_size)
        self._send = write
        self._edges = edges
        self._next = 0
        """Index of the edge behind which the next data lies."""
        size = geometry.cluster_size
        tables = sorted(set(self._table_numbers()))
        data = sum(edges[1::2]) - sum(edges[::2])
        l1_entries = l1_entries_of(geometry, options.disk_size)
        l1_clusters = geometry.clusters(l1_entries * ENTRY_BYTES)
        self._encryption = made = None if options.encryption is None else options.encryption.make()
        secret_clusters = 0 if made is None else geometry.clusters(made.length)
        others = 1 + l1_clusters + len(tables) + secret_clusters + data
        room = refcounts_of(geometry, others)
        total = others + room.clusters
        l1_table = 1 + room.clusters
        first_table = l1_table + l1_clusters
        first_data = first_table + len(tables) + secret_clusters
        secret_offset = (first_data - secret_clusters) * size
        places = Places(l1_table * size, l1_entries, size, room.table_clusters, secret_offset)
        self._host_offset = first_data * size
        """Where the next data goes."""
        self._whole(header_of(options, places))
        first_block = 1 + room.table_clusters
        self._whole(layout.stored(array("Q", range(first_block * size, l1_table * size, size))))
        per_block = 1 << geometry.refcount_block_bits
        for block in range(room.blocks):
            self._whole(stored_ones(min(per_block, total - block * per_block), geometry.refcount_order))
        l1 = layout.zero_words(l1_entries)
        for number, index in enumerate(tables):
            l1[index] = (first_table + number) * size | L1_COPIED
        self._whole(layout.stored(l1))
        for words in self._l2_tables(first_data):
            self._whole(layout.stored(words))
        if made is not None and made.header:
            self._whole(made.header.ljust(made.length, b"\0"))

    def _whole(self, data: bytes) -> None:
        """Write whole clusters."""
        self._send(memoryview(data))
        self._pad(len(data))

    def _pad(self, length: int) -> None:
        padding = -length % self._geometry.cluster_size
        if padding:
            self._send(zeros(padding))

    def _pairs(self) -> Iterator[tuple[int, int]]:
        return zip(self._edges[::2], self._edges[1::2], strict=True)

    def _table_numbers(self) -> Iterator[int]:
        bits = self._geometry.l2_bits
        for first, end in self._pairs():
            yield from range(first >> bits, (end - 1 >> bits) + 1)

    def _l2_tables(self, host_cluster: int) -> Iterator[array[int]]:
        """Yield the L2 tables that are needed, in order; data lies from a host cluster on."""
        geometry = self._geometry
        size, per_word = geometry.cluster_size, geometry.l2_entry_words
        current, words = -1, array("Q")
        for begin, end in self._pairs():
            first = begin
            while first < end:
                index = first >> geometry.l2_bits
                if index != current:
                    if words:
                        yield words
                    current, words = index, array("Q", bytes(size))
                at = first & (geometry.l2_entries - 1)
                count = min(end - first, geometry.l2_entries - at)
                start = host_cluster * size | L2_COPIED
                entries = array("Q", range(start, start + count * size, size))
                words[at * per_word : (at + count) * per_word : per_word] = entries
                if per_word > 1:
                    words[at * 2 + 1 : (at + count) * 2 : 2] = array("Q", [SUBCLUSTERS_ALLOCATED]) * count
                first, host_cluster = first + count, host_cluster + count
        if words:
            yield words

    def take(self, slab: Slab, buffer: memoryview, _prepared: list[ByteRange]) -> None:
        size, edges = self._geometry.cluster_size, self._edges
        while self._next < len(edges) and edges[self._next] * size < slab.end:
            start, end = edges[self._next] * size, edges[self._next + 1] * size
            part = buffer[max(start, slab.start) - slab.start : min(end, slab.end) - slab.start]
            self._data(part, max(start, slab.start))
            if end > slab.end:
                break
            self._next += 2

    def _data(self, part: memoryview, guest_offset: int) -> None:
        """Write guest data and what pads its last cluster."""
        clusters = self._geometry.clusters(len(part))
        if self._encryption is not None:
            whole = bytes(part).ljust(clusters * self._geometry.cluster_size, b"\0")
            part = memoryview(self._encryption.cipher.encrypted(whole, self._host_offset, guest_offset))
        self._send(part)
        self._pad(len(part))
        self._host_offset += clusters * self._geometry.cluster_size

    def finish(self, size: int) -> None:
        """Everything was written."""
