"""A new image in one pass: clusters are appended in the order of the disk, tables follow, the header comes last.

What is appended goes to the file in large aligned writes, and tables that are complete follow it, so that memory does
not depend on the size of the image. Nothing in the file is written twice but the magic value: identical input gives
identical bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from qcow2c.builder.appender import WRITE_BYTES, Appender
from qcow2c.builder.final_header import write_final_header
from qcow2c.builder.options import CreateOptions, Places, header_of
from qcow2c.builder.plan import l1_entries_of
from qcow2c.format import layout
from qcow2c.format.refcounts import refcount_room, require_table, stored_block, word_code
from qcow2c.format.tables import (
    L1_COPIED,
    L2_COPIED,
    L2_ZERO,
    SUBCLUSTERS_ALLOCATED,
    SUBCLUSTERS_ZERO_SHIFT,
    compressed_entry,
    require_nameable,
)
from qcow2c.light import replace
from qcow2c.storage.store import Store
from qcow2c.storage.zeros import zeros

_DATA_ALIGNMENT = 2 << 20
"""Where guest data begins in an image that holds much of it, and has so many tables; they have room before it."""


class _GrowingRefcounts:
    """The refcounts of an image that grows: blocks that are complete can be taken out, but for the first ones."""

    def __init__(self, options: CreateOptions, head_clusters: int) -> None:
        geometry = options.geometry
        self._order = geometry.refcount_order
        self._code = word_code(self._order)
        self.per_block = 1 << geometry.refcount_block_bits
        self.head_blocks = -(-head_clusters // self.per_block)
        self._head = array(self._code, bytes(self.head_blocks * self.per_block * array(self._code).itemsize))
        self._tail = array(self._code)
        self._retired = 0

    def set_ones(self, first: int, end: int) -> None:
        """Count clusters once: the next ones, or some of the first ones."""
        split = max(first, min(end, len(self._head)))
        self._head[first:split] = array(self._code, [1]) * (split - first)
        self._tail.extend(array(self._code, [1]) * (end - split))

    def raise_last(self, cluster: int) -> None:
        """Count the newest cluster once more."""
        counts, index = (self._head, cluster) if cluster < len(self._head) else (self._tail, -1)
        counts[index] += 1

    def last(self, cluster: int) -> int:
        """Return the refcount of the newest cluster."""
        return self._head[cluster] if cluster < len(self._head) else self._tail[-1]

    def complete_blocks(self) -> list[bytes]:
        """Take out blocks that cannot change any more. The newest cluster always can."""
        found = []
        while len(self._tail) > self.per_block:
            found.append(stored_block(self._tail[: self.per_block], self._order))
            del self._tail[: self.per_block]
        self._retired += len(found)
        return found

    def first_blocks(self) -> list[bytes]:
        return [self._stored(self._head, block) for block in range(self.head_blocks)]

    def last_blocks(self) -> list[bytes]:
        return [self._stored(self._tail, block) for block in range(-(-len(self._tail) // self.per_block))]

    def _stored(self, counts: array[int], block: int) -> bytes:
        part = counts[block * self.per_block : (block + 1) * self.per_block]
        part.extend(array(self._code, bytes((self.per_block - len(part)) * part.itemsize)))
        return stored_block(part, self._order)


class ImageBuilder:
    """Builds an image in an empty store. Guest offsets only go up; what is left out is not allocated.

    Durable order: guest data, tables, refcounts and a header without magic value; then the magic value. With `durable`
    each of the two is on the medium before the next step; without, only the order of the writes is this.
    """

    def __init__(self, store: Store, options: CreateOptions, *, aligned: bool = False, durable: bool = True) -> None:
        """`aligned`: much data is to come, and begins where large writes are fast. Raises UsageError."""
        options.validate()
        self.options = options
        self.geometry = options.geometry
        self._store = store
        self._durable = durable
        self._size = self.geometry.cluster_size
        self._encryption = None if options.encryption is None else options.encryption.make()
        self._clusters = self._first_data() if aligned else 1
        """Clusters up to the end of what was appended."""
        self._gap = (1, self._clusters)
        """Clusters before the data that are still free."""
        self._refcounts = _GrowingRefcounts(options, self._clusters)
        self._refcounts.set_ones(0, 1)
        self._blocks: list[int | bytes] = []
        """Of each complete refcount block after the first ones its host offset, or what is yet to be placed."""
        self._out = Appender(store, self._clusters * self._size)
        self._room = 0
        """Bytes behind compressed data in its last cluster."""
        self._l1 = layout.zero_words(l1_entries_of(self.geometry, options.disk_size))
        self._l1_index = -1
        self._words = array("Q")
        self._tables: list[tuple[int, bytes]] = []
        self._waiting: list[int] = []
        """Which of the blocks are yet to be placed."""
        self._bitmaps: bytes | None = None

    def _first_data(self) -> int:
        """Return the cluster where much data begins: a power of two that header and L2 tables of the disk would fill.

        Where they turn out to be fewer, what stays free is no more than they would have taken, as `measure` counts.
        """
        l2_tables = -(-self.geometry.clusters(self.options.disk_size) >> self.geometry.l2_bits)
        return 1 << min(1 + l2_tables, max(1, _DATA_ALIGNMENT // self._size)).bit_length() - 1

    # --- the disk, in order ---

    def add_data(self, guest_offset: int, data: memoryview, bitmaps: Sequence[int] | None = None) -> None:
        """Append whole clusters; zeros pad the last one. `data` must not change before `write_data` is called.

        `bitmaps` are those of extended entries; without them all subclusters are allocated. Raises StoreError.
        """
        count = self.geometry.clusters(len(data))
        if self._encryption is not None:
            whole = bytes(data).ljust(count * self._size, b"\0")
            data = memoryview(self._encryption.cipher.encrypted(whole, self._clusters * self._size, guest_offset))
        first = self._append(data, count)
        host_offset = first * self._size | L2_COPIED
        entries = array("Q", range(host_offset, host_offset + count * self._size, self._size))
        self._map(guest_offset, entries, array("Q", bitmaps or [SUBCLUSTERS_ALLOCATED] * count))
        self._write_complete()

    def write_data(self) -> None:
        """Write what was appended, so that its buffers can be used again. Raises StoreError."""
        self._out.flush()

    def add_compressed(self, guest_offset: int, packed: bytes) -> None:
        """Append a compressed cluster, packed behind the one before. Raises LimitExceeded, StoreError."""
        size = self._size
        if self._room and self._refcounts.last(self._clusters - 1) >= self.geometry.refcount_max:
            self._align()
        at = self._clusters * size - self._room
        if self._room:
            self._refcounts.raise_last(self._clusters - 1)
        more = self.geometry.clusters(max(0, len(packed) - self._room))
        self._refcounts.set_ones(self._clusters, self._clusters + more)
        self._clusters += more
        self._room = self._clusters * size - at - len(packed)
        require_nameable(at, len(packed), self.geometry)
        self._out.append(memoryview(packed))
        self._map(guest_offset, array("Q", [compressed_entry(at, len(packed), self.geometry)]), array("Q", [0]))
        self._write_complete()

    def add_zeros(self, guest_offset: int, length: int) -> None:
        """Let whole clusters read as zeros, whatever lies below. Not in version 2. Raises StoreError."""
        for start in range(guest_offset, guest_offset + length, 1 << self.geometry.l2_coverage_bits):
            end = min(guest_offset + length, start + (1 << self.geometry.l2_coverage_bits))
            count = self.geometry.clusters(end - start)
            bitmap = SUBCLUSTERS_ALLOCATED << SUBCLUSTERS_ZERO_SHIFT
            zero = 0 if self.geometry.extended_l2 else L2_ZERO
            self._map(start, array("Q", [zero]) * count, array("Q", [bitmap]) * count)
            self._write_complete()

    def set_bitmaps(self, extension: bytes | None) -> None:
        """Name a bitmap directory, which has been placed, by the data of its header extension."""
        self._bitmaps = extension

    def place(self, data: bytes) -> int:
        """Store clusters that are no guest data, padded; return their host offset. Raises StoreError."""
        count = self.geometry.clusters(len(data))
        data = data.ljust(count * self._size, b"\0")
        first, end = self._gap
        if count <= end - first:
            self._gap = first + count, end
            self._refcounts.set_ones(first, first + count)
            self._store.pwrite(data, first * self._size)
            return first * self._size
        return self._append(memoryview(data), count) * self._size

    def _append(self, data: memoryview, clusters: int) -> int:
        """Append clusters, each with refcount 1; return the first one."""
        self._align()
        first = self._clusters
        self._clusters += clusters
        self._refcounts.set_ones(first, self._clusters)
        self._out.append(data)
        padding = clusters * self._size - len(data)
        if padding:
            self._out.append(zeros(padding))
        return first

    def _align(self) -> None:
        if self._room:
            self._out.append(zeros(self._room))
            self._room = 0

    # --- tables ---

    def _map(self, guest_offset: int, entries: array[int], bitmaps: array[int]) -> None:
        """Set adjacent L2 entries; `bitmaps` count where entries are extended."""
        geometry, done = self.geometry, 0
        while done < len(entries):
            at = guest_offset + (done << geometry.cluster_bits)
            if at >> geometry.l2_coverage_bits != self._l1_index:
                self._end_table()
                self._l1_index = at >> geometry.l2_coverage_bits
                self._words = array("Q", bytes(self._size))
            index = at >> geometry.cluster_bits & (geometry.l2_entries - 1)
            count = min(len(entries) - done, geometry.l2_entries - index)
            part = slice(done, done + count)
            if geometry.extended_l2:
                self._words[2 * index : 2 * (index + count) : 2] = entries[part]
                self._words[2 * index + 1 : 2 * (index + count) : 2] = bitmaps[part]
            else:
                self._words[index : index + count] = entries[part]
            done += count

    def _end_table(self) -> None:
        if self._l1_index >= 0:
            self._tables.append((self._l1_index, layout.stored(self._words)))
            self._l1_index = -1

    def _write_complete(self) -> None:
        """Write tables and refcount blocks that are complete, as soon as they fill one write."""
        if len(self._tables) * self._size >= WRITE_BYTES:
            self._place_tables()
        for block in self._refcounts.complete_blocks():
            self._waiting.append(len(self._blocks))
            self._blocks.append(block)
        if len(self._waiting) * self._size >= WRITE_BYTES:
            self._place_blocks()

    def _l1_of(self, entries: int) -> array[int]:
        """Return the L1 table, of a length."""
        return self._l1[:entries] + layout.zero_words(max(0, entries - len(self._l1)))

    def _place_tables(self) -> None:
        self._l1 = self._l1_of(max(len(self._l1), self._tables[-1][0] + 1))
        first, gap_end = self._gap
        before_data = gap_end - first  # They fill the gap to its end, and only the others follow the data.
        for tables in (self._tables[:before_data], self._tables[before_data:]):
            offset = self.place(b"".join(data for _, data in tables)) if tables else 0
            for number, (index, _) in enumerate(tables):
                self._l1[index] = offset + number * self._size | L1_COPIED
        self._tables.clear()

    def _place_blocks(self) -> None:
        blocks = [self._blocks[index] for index in self._waiting]
        offset = self.place(b"".join(block for block in blocks if isinstance(block, bytes)))
        for number, index in enumerate(self._waiting):
            self._blocks[index] = offset + number * self._size
        self._waiting.clear()

    # --- the end ---

    def finish(self, disk_size: int | None = None) -> None:
        """Write all that is left; the image is complete then, and not before.

        `disk_size` is what the disk turned out to have. Raises UsageError, LimitExceeded, StoreError.
        """
        self._end_table()
        if self._tables:
            self._place_tables()
        if disk_size is not None:
            self.options = replace(self.options, size=disk_size)
            self._l1 = self._l1_of(l1_entries_of(self.geometry, self.options.disk_size))
        l1_table = self.place(layout.stored(self._l1)) if self._l1 else 0
        made = self._encryption
        encryption_header = self.place(made.header.ljust(made.length, b"\0")) if made and made.header else 0
        table, table_clusters = self._finish_refcounts()
        self._out.flush()
        self._store.truncate(self._clusters * self._size)
        places = Places(l1_table, len(self._l1), table, table_clusters, encryption_header)
        header = header_of(self.options, places, self._bitmaps)
        write_final_header(self._store, header, durable=self._durable)

    def _finish_refcounts(self) -> tuple[int, int]:
        """Place the last refcount blocks and the refcount table, which count themselves; return the table's place."""
        counts = self._refcounts
        self._align()
        self._blocks += counts.complete_blocks()
        placed = sum(isinstance(block, int) for block in self._blocks)
        first, gap_end = self._gap
        room = refcount_room(self.geometry, first, kept=placed, reach=self._clusters)
        in_gap = first + room.clusters <= gap_end
        if not in_gap:
            first = self._clusters
            room = refcount_room(self.geometry, first, kept=placed)
        require_table(room.entries)
        counts.set_ones(first, first + room.clusters)
        self._clusters = max(self._clusters, first + room.clusters)
        self._blocks += counts.complete_blocks()
        offset = first * self._size
        entries, parts = array("Q"), []
        for block in [*counts.first_blocks(), *self._blocks, *counts.last_blocks()]:
            if isinstance(block, bytes):
                parts.append(block)
                entries.append(offset)
                offset += self._size
            else:
                entries.append(block)
        parts.append(layout.stored(entries).ljust(room.table_clusters * self._size, b"\0"))
        data = b"".join(parts)
        if in_gap:
            self._store.pwrite(data, first * self._size)
        else:
            self._out.append(memoryview(data))
        return offset, room.table_clusters
