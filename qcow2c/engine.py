"""The engine: one qcow2 layer that is written. It allocates, copies on write, compresses, and lets go.

It is the only writer of an open image. Guest data goes to the file at once, where nothing in the file refers to it yet
or where it may be overwritten in place; tables and refcounts change in memory, and `cache.py` commits them in order.
Whether a cluster may be overwritten is decided by its refcount, never by the copied bit. Each method says what a crash
leaves; with none of them does the image lose what an earlier `flush` covered.
"""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.errors import UsageError
from qcow2c.format import codecs
from qcow2c.format.tables import L2_COMPRESSED, L2_ZERO, Table, compressed_entry
from qcow2c.storage.zeros import zeros
from qcow2c.writer import cow
from qcow2c.writer.session import WrittenLayer


class Engine(WrittenLayer):
    """The active state of an image, read and written. Calls from several threads take turns."""

    # --- writing ---

    def write(self, data: memoryview, guest_offset: int) -> None:
        """Write guest bytes within the disk.

        Durable order: data, with the copies around it, at once; refcounts, L2, L1 at the next commit. A crash before
        the commit leaves in each sector the old bytes, or, where they are overwritten in place, old or new ones; and
        clusters that leak. Raises StoreError, CorruptMetadata, CorruptData, LimitExceeded: the mapping is unchanged.
        """
        with self.lock:
            self._change(guest_offset, len(data))
            host_offset = self.locate(guest_offset, len(data))
            if host_offset >= 0 and self._is_own(host_offset >> self._cluster_bits):
                self.data.write((data,), host_offset)
                return
            for start, end in self._by_table(guest_offset, guest_offset + len(data)):
                self._make_room()
                self._write_below(self._writable_table(start), data[start - guest_offset : end - guest_offset], start)

    def _write_below(self, table: Table, data: memoryview, guest_offset: int) -> None:
        """Write guest bytes that one L2 table maps."""
        done = 0
        while done < len(data):
            start = guest_offset + done
            stop, host_offset = self._stretch(table, start, guest_offset + len(data))
            part = data[done : stop - guest_offset]
            if host_offset is not None:
                self._overwrite(table, part, start, host_offset)
                done += len(part)
            else:
                done += self._write_new(table, part, start)

    def _by_table(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a guest range that one L2 table each maps."""
        coverage = 1 << self.geometry.l2_coverage_bits
        while start < end:
            stop = min(end, (start | (coverage - 1)) + 1)
            yield start, stop
            start = stop

    def _stretch(self, table: Table, start: int, end: int) -> tuple[int, int | None]:
        """Return up to where guest bytes can be treated alike, and where they may be written; None: in new clusters."""
        size = self.geometry.cluster_size
        stop = (start | (size - 1)) + 1
        host_offset = self._own_cluster(table, start)
        expected = host_offset
        while stop < end:
            expected = None if expected is None else expected + size
            if self._own_cluster(table, stop) != expected:
                break
            stop += size
        return min(stop, end), host_offset

    def _overwrite(self, table: Table, data: memoryview, guest_offset: int, host_offset: int) -> None:
        """Write over clusters that are the image's own; in an external data file, also over ones not yet in use."""
        fresh = self.geometry.external_data and host_offset >= self._data_end
        pieces = cow.pieces(self, table, guest_offset, data, in_place=True, fresh=fresh)
        self._put(pieces, guest_offset & ~self._cluster_mask, host_offset)
        cow.point(self, table, guest_offset, guest_offset + len(data), host_offset)

    def _write_new(self, table: Table, data: memoryview, guest_offset: int) -> int:
        """Write to new clusters, as many as lie together; return how many bytes of the data they took."""
        inside = guest_offset & self._cluster_mask
        extent = self.allocator.allocate(self.geometry.clusters(inside + len(data)))
        data = data[: (extent.clusters << self._cluster_bits) - inside]
        host_offset = extent.first << self._cluster_bits
        try:
            pieces = cow.pieces(self, table, guest_offset, data, in_place=False, fresh=extent.fresh)
            self._put(pieces, guest_offset - inside, host_offset)
        except BaseException:
            self.allocator.abandon(extent)
            raise
        replaced = self._entries(table, guest_offset - inside, guest_offset + len(data))
        cow.point(self, table, guest_offset, guest_offset + len(data), host_offset)
        for entry in replaced:
            self._release(entry)
        return len(data)

    def _put(self, pieces: list[cow.Piece], guest_cluster: int, host_offset: int) -> None:
        """Write pieces of guest data to host clusters: those that lie together in one go."""
        for run in cow.together(pieces):
            at = host_offset + run[0].guest_offset - guest_cluster
            buffers = [piece.data for piece in run]
            if self._raw_data:  # Its size is the disk's: no zeros behind that.
                buffers = cow.cut(buffers, self.disk_size - at)
            self.data.write(buffers, at)
            if self.geometry.external_data:
                end = at + sum(map(len, buffers))
                self._data_end = max(self._data_end, -(-end >> self._cluster_bits) << self._cluster_bits)

    def _entries(self, table: Table, start: int, end: int) -> list[int]:
        first, last = self._index(start), self._index(end - 1)
        return table.words[first * self._words : (last + 1) * self._words : self._words].tolist()

    # --- zeros ---

    def write_zeroes(self, guest_offset: int, length: int, *, unmap: bool) -> None:
        """Make guest bytes read as zeros; `unmap` lets go of their host clusters.

        Durable order and crashes as of `write`: the entries change at the next commit, and what they let go of is
        free only then.
        """
        unit = self.geometry.subcluster_size
        end = guest_offset + length
        with self.lock:
            self._change(guest_offset, length)
            first = min(end, -(-guest_offset // unit) * unit)
            last = end if end == self.disk_size else max(first, end // unit * unit)
            self._write_zero_bytes(guest_offset, first)
            for start, stop in self._by_table(first, last):
                self._zero(start, stop, unmap=unmap)
            self._write_zero_bytes(last, end)

    def discard(self, guest_offset: int, length: int) -> None:
        """Let go of whole clusters; they read as zeros. Parts of clusters are left as they are.

        In version 2 over a backing file nothing changes: there are no zero clusters that would hide it.
        """
        size = self.geometry.cluster_size
        end = guest_offset + length
        with self.lock:
            first = -(-guest_offset // size) * size
            last = end if end == self.disk_size else end // size * size
            if first >= last or not (self._can_zero or self.backing is None):
                return
            self._change(first, last - first)
            for start, stop in self._by_table(first, last):
                self._zero(start, stop, unmap=True)

    @property
    def _can_zero(self) -> bool:
        return self.geometry.extended_l2 or self.geometry.has_zero_bit

    def _shows_backing(self, guest_offset: int) -> bool:
        """Tell whether an unallocated cluster would show anything but zeros."""
        return self.backing is not None and guest_offset < self.backing.disk_size

    def _write_zero_bytes(self, start: int, end: int) -> None:
        if start < end and not cow.reads_as_zeros(self, start, end - start):
            for part in range(start, end, 1 << 20):
                self.write(zeros(min(end - part, 1 << 20)), part)

    def _zero(self, start: int, end: int, *, unmap: bool) -> None:
        """Zero whole subclusters below one L2 table."""
        if self._raw_data:
            self.data.write_zeroes(start, end - start)
        if self._table(start) is None and not self._shows_backing(start):
            return
        size = self.geometry.cluster_size
        aligned = not (start & self._cluster_mask or end & self._cluster_mask)
        if aligned and self._can_zero and self._shows_backing(start):
            self._make_room()
            if cow.hide_backing(self._writable_table(start), self.geometry, self._index(start), end - start):
                return
        for base in range(start & ~self._cluster_mask, end, size):
            self._make_room()
            first, stop = max(start, base), min(end, base + size)
            whole = first == base and (stop == base + size or stop == self.disk_size)
            table = self._table(first)
            entry = table.words[self._index(first) * self._words] if table is not None else 0
            hidden = self._can_zero or not self._shows_backing(first)
            if not hidden or (entry & L2_COMPRESSED and not whole):
                self._write_zero_bytes(first, stop)
            elif not cow.is_plain_zero(self, table, first, stop, unmap=unmap):
                self._zero_cluster(self._writable_table(first), first, stop, unmap=unmap, whole=whole)

    def _zero_cluster(self, table: Table, start: int, stop: int, *, unmap: bool, whole: bool) -> None:
        index = self._index(start)
        self._own_cluster(table, start)  # Judges the entry.
        entry = table.words[index * self._words]
        drop = whole and (unmap or bool(entry & L2_COMPRESSED) or not self._can_zero)
        kept = 0 if drop else entry
        if self.geometry.extended_l2:
            cow.zero_subclusters(self, table, index, kept, start, stop, whole=whole)
        else:
            table.set(index, kept | L2_ZERO if self._can_zero else 0)
        if drop:
            self._release(entry, discard=unmap)

    # --- compression ---

    def write_compressed(self, data: memoryview, guest_offset: int, level: int | None = None) -> None:
        """Write whole clusters, compressed where that makes them smaller; the disk may end within the last one.

        Durable order and crashes as of `write`. Raises UsageError too, where the image can hold no compressed data.
        """
        if self.geometry.external_data:
            raise UsageError("an image with an external data file cannot hold compressed clusters")
        size = self.geometry.cluster_size
        compress = codecs.compressor(self.header.compression_type, level)
        with self.lock:
            self._change(guest_offset, len(data))
            for start in range(0, len(data), size):
                cluster = data[start : start + size]
                packed = compress(bytes(cluster).ljust(size, b"\0"))
                if len(packed) < size:
                    self._make_room()
                    self._write_packed(packed, guest_offset + start)
                else:
                    self.write(cluster, guest_offset + start)

    def _write_packed(self, packed: bytes, guest_offset: int) -> None:
        table, index = self._writable_table(guest_offset), self._index(guest_offset)
        self._own_cluster(table, guest_offset)  # Judges the entry.
        at = self.allocator.allocate_bytes(len(packed))
        try:
            self.data.write([packed], at)
        except BaseException:
            self.allocator.abandon_bytes(at, len(packed))
            raise
        replaced = table.words[index * self._words]
        table.set(index * self._words, compressed_entry(at, len(packed), self.geometry))
        if self.geometry.extended_l2:
            table.set(index * 2 + 1, 0)
        self._release(replaced)
