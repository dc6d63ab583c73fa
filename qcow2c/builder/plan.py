"""Where the metadata of a new image lies, and its contents: all that is known before any guest data is written.

Everything lies together, each with refcount 1: header, refcount table, refcount blocks, L1 table, and, where clusters
are allocated from the start, L2 tables and guest data. It is pure arithmetic, and writes nothing by itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from qcow2c.constants import ENTRY_BYTES, Limit
from qcow2c.errors import UsageError
from qcow2c.format import layout
from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import RefcountRoom, refcount_room, stored_ones
from qcow2c.format.tables import L1_COPIED, L2_COPIED, L2_ZERO
from qcow2c.light import TYPE_CHECKING, frozen, replace

if TYPE_CHECKING:
    from qcow2c.crypto.new_encryption import Encryption

_TOO_LARGE = "The image size is too large for file format 'qcow2' (try using a larger cluster size)"

_TABLES_AT_ONCE = 2 << 20
"""Bytes of tables that are made at a time."""


@frozen
class ImageLayout:
    """Places in clusters; `data_clusters` are allocated in order from guest offset 0 on, and 0 for an empty image."""

    geometry: Geometry
    l1_entries: int
    data_clusters: int
    refcount_table_clusters: int
    refcount_blocks: int
    encryption_clusters: int = 0
    zeros_are_data: bool = True
    """Whether clusters of zeros read as zeros: those of encrypted images do not, and are marked."""

    @property
    def refcount_table(self) -> int:
        return 1

    @property
    def first_refcount_block(self) -> int:
        return self.refcount_table + self.refcount_table_clusters

    @property
    def l1_table(self) -> int:
        return self.first_refcount_block + self.refcount_blocks

    @property
    def encryption_header(self) -> int:
        return self.l1_table + self.geometry.clusters(self.l1_entries * ENTRY_BYTES)

    @property
    def first_l2_table(self) -> int:
        return self.encryption_header + self.encryption_clusters

    @property
    def l2_tables(self) -> int:
        return -(-self.data_clusters >> self.geometry.l2_bits)

    @property
    def first_data(self) -> int:
        """Where guest data begins in the image file; in an external data file it begins at 0."""
        return self.first_l2_table + self.l2_tables

    @property
    def end(self) -> int:
        """The first cluster of the image file that is not in use."""
        return self.first_data + (0 if self.geometry.external_data else self.data_clusters)

    def parts(self) -> Iterator[tuple[int, bytes]]:
        """Yield host offsets and contents of all metadata but the header, in order, in pieces of bounded size."""
        geometry = self.geometry
        size = geometry.cluster_size
        first, last = self.first_refcount_block, self.first_refcount_block + self.refcount_blocks
        blocks = range(first * size, last * size, size)
        yield self.refcount_table * size, self._table(blocks, self.refcount_table_clusters)
        per_block = 1 << geometry.refcount_block_bits
        for block in range(self.refcount_blocks):
            used = min(per_block, self.end - block * per_block)
            yield (first + block) * size, stored_ones(used, geometry.refcount_order).ljust(size, b"\0")
        start = self.first_l2_table * size | L1_COPIED
        entries = range(start, start + self.l2_tables * size, size)
        if self.l1_entries:
            yield self.l1_table * size, self._table(entries, self.encryption_header - self.l1_table)
        yield from self._l2_parts()

    def _table(self, entries: range, clusters: int) -> bytes:
        """Return a table of whole clusters: as large on the disk as QEMU's."""
        return layout.stored(array("Q", entries)).ljust(clusters * self.geometry.cluster_size, b"\0")

    def _l2_parts(self) -> Iterator[tuple[int, bytes]]:
        """Yield the L2 tables: all entries name adjacent clusters, their subclusters are not allocated yet."""
        geometry = self.geometry
        size, words = geometry.cluster_size, geometry.l2_entry_words
        per_part = max(_TABLES_AT_ONCE // size, 1) << geometry.l2_bits
        host = (0 if geometry.external_data else self.first_data * size) | L2_COPIED
        if not self.zeros_are_data and geometry.has_zero_bit:
            host |= L2_ZERO
        for first in range(0, self.data_clusters, per_part):
            count = min(per_part, self.data_clusters - first)
            entries = array("Q", range(host + first * size, host + (first + count) * size, size))
            if words > 1:
                spread = layout.zero_words(words * count)
                spread[::words] = entries
                entries = spread
            table = self.first_l2_table + (first >> geometry.l2_bits)
            whole = -(-count >> geometry.l2_bits) * size
            yield table * size, layout.stored(entries).ljust(whole, b"\0")


def plan(geometry: Geometry, disk_size: int, *, allocated: bool, encryption: Encryption | None = None) -> ImageLayout:
    """Return the layout of an image; `allocated`: with a host cluster for each cluster of the disk.

    Raises UsageError where the format cannot hold a disk of that size.
    """
    l1_entries = l1_entries_of(geometry, disk_size)
    data_clusters = geometry.clusters(disk_size) if allocated else 0
    clusters = 0 if encryption is None else geometry.clusters(encryption.header_bytes)
    planned = ImageLayout(geometry, l1_entries, data_clusters, 0, 0, clusters, encryption is None)
    room = refcounts_of(geometry, planned.end)
    return replace(planned, refcount_table_clusters=room.table_clusters, refcount_blocks=room.blocks)


def refcounts_of(geometry: Geometry, clusters: int) -> RefcountRoom:
    """Return the room of the refcounts of so many other clusters. Raises UsageError where no table can be that long."""
    room = refcount_room(geometry, clusters)
    if room.entries * ENTRY_BYTES > Limit.REFCOUNT_TABLE_BYTES:
        raise UsageError(_TOO_LARGE)
    return room


def l1_entries_of(geometry: Geometry, disk_size: int) -> int:
    """Return the L1 entries of a disk. Raises UsageError where no L1 table can be that long."""
    entries = geometry.l1_entries(disk_size)
    if entries > Limit.L1_ENTRIES:
        raise UsageError(_TOO_LARGE)
    return entries
