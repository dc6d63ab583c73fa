"""The engine: one qcow2 image that is written. It maps, allocates, copies on write, compresses, and frees.

It is the only writer of an open image, and is made of parts, each with one business:

    reader      what each guest byte is now, in this layer and below it         layers/reader.py
    mapping     which L2 table maps a guest offset, and who owns its cluster    writer/mapping.py
    allocator   free host clusters, and new refcount blocks                     writer/allocation.py
    cow         what must be copied around new data, and what entries then say  writer/cow.py
    cache       tables and refcounts in memory; `commit`, the order             writer/cache.py
    session     the first change, bitmaps, the header, the clean end            writer/session.py

A write finds the L2 table of its guest offset (`mapping.writable_table`: a new one, or a copy, where it is missing or
shared). Where the cluster has refcount 1 the data overwrites it in place; else new clusters are allocated, and what the
old ones held around the data is written with it. Then the entries change, in memory. Guest data goes to the file at
once, where nothing in the file names it yet or where it may be overwritten; all else waits for the commit:

    1  guest data           2  new refcount blocks, a longer refcount table    3  raised refcounts, new L2 tables
    4  L2 and L1 entries    5  lowered refcounts of what the entries no longer name; only now can it be allocated again

each durable before the next. A crash leaks clusters at most, and loses nothing that an earlier `flush` covered. An
error of ours (`Qcow2Error`) leaves each part in a state that may be committed. Any other exception inside a change, an
interrupt above all, may come between two steps: then nothing more is written, and each later call says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qcow2c.bitmaps.edit import BitmapEdit
from qcow2c.constants import ENTRY_BYTES
from qcow2c.errors import CorruptMetadata, Qcow2Error, Span, UsageError
from qcow2c.format import codecs
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange
from qcow2c.format.metadata_spans import metadata_spans
from qcow2c.format.records import SnapshotTable, read_snapshots
from qcow2c.format.tables import L2_COMPRESSED, Table
from qcow2c.layers.guest_data import require_key
from qcow2c.layers.layer import Layer
from qcow2c.layers.reader import Reader
from qcow2c.layers.state import LoadedState, active_state
from qcow2c.light import replace
from qcow2c.references.admission import Admission, trusted
from qcow2c.storage.medium import Medium
from qcow2c.storage.zeros import zeros
from qcow2c.writer import cow
from qcow2c.writer.allocation import Allocator
from qcow2c.writer.cache import MetadataCache
from qcow2c.writer.mapping import Mapping
from qcow2c.writer.session import Session

_COPY_BYTES = 1 << 20
"""Zeros that are written at once where the format has no zero clusters."""


class Engine:
    """One state of an image, the active one, read and written. Calls from several threads take turns."""

    def __init__(self, reader: Reader, admission: Admission, media: tuple[Medium, Medium] | None = None) -> None:
        """The reader's turn is a lock that one thread may take again. `admission` is what was found when the image was
        let in; `media` are those of another engine of the same image. Raises CorruptMetadata, MissingKey, StoreError.
        """
        self.reader = reader
        self.turn = reader.turn
        if media is None:
            medium = Medium(reader.store, reader.geometry.cluster_size)
            media = medium, medium if reader.data_store is reader.store else Medium(reader.data_store)
        self.medium, self.data = media
        self._ended = False
        self._compose(admission)

    def _compose(self, admission: Admission) -> None:
        """Make the parts, for the state that the reader shows."""
        reader = self.reader
        require_key(reader)
        if len(reader.l1_table) != reader.l1_entries:
            where = Span(reader.l1_offset, reader.l1_entries * ENTRY_BYTES)
            raise CorruptMetadata("the L1 table leaves the file: run check -r first", where=where, spec="Header")
        if admission.verified:  # Nothing overlaps, and the refcount table may leave its place.
            reader.ignore_overlaps()
        guard = None if admission.verified else admission.metadata
        l1 = Table(reader.l1_table, reader.l1_offset)
        self.cache = MetadataCache(self.medium, self.data, reader.header, l1, reader.l2_tables)
        self.allocator = Allocator(self.cache, forbidden=guard)
        self.mapping = Mapping(reader, self.cache, self.allocator, guard)
        self.session = Session(reader, self.cache, self.allocator, admission)
        self._cluster_bits = self.geometry.cluster_bits
        self._cluster_mask = self.geometry.cluster_size - 1
        self._raw_data = reader.header.external_data and reader.header.data_file_raw
        self._data_end = reader.data_store.size()
        """Where the external data file was never written: it reads as zeros from there on."""

    @property
    def geometry(self) -> Geometry:
        return self.reader.geometry

    @property
    def disk_size(self) -> int:
        """Length of the virtual disk in bytes."""
        return self.reader.disk_size

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the image for one change. What is not an error of ours may come between two of its steps."""
        with self.turn:
            if self._ended:  # A call of another thread was on its way when the image was closed.
                raise UsageError(f"{self.medium.store.name!r} was closed meanwhile")
            self.require_sound()
            try:
                yield
            except Qcow2Error:
                raise
            except BaseException as exc:
                self.give_up(exc, f"a change of {self.medium.store.name!r} was interrupted")
                raise

    def give_up(self, cause: BaseException, reason: str) -> None:
        """Write nothing more from now on, and say why."""
        for medium in (self.medium, self.data):
            medium.give_up(cause, reason)

    # --- writing ---

    def write(self, data: memoryview, guest_offset: int) -> None:
        """Write guest bytes within the disk.

        Durable order: data, with the copies around it, at once; refcounts, L2, L1 at the next commit. A crash before
        the commit leaves in each sector the old bytes, or, where they are overwritten in place, old or new ones; and
        clusters that leak. Raises StoreError, CorruptMetadata, CorruptData, LimitExceeded: the mapping is unchanged.
        """
        with self.changing():
            self._note(guest_offset, len(data))
            self._write(data, guest_offset)

    def _note(self, guest_offset: int, length: int) -> None:
        """Prepare for a change of guest bytes; called before it is made."""
        if guest_offset + length > self.disk_size:  # It has become smaller meanwhile.
            raise UsageError(f"{length} bytes at offset {guest_offset} leave the disk of {self.disk_size} bytes")
        self.session.note(guest_offset, length)

    def _write(self, data: memoryview, guest_offset: int) -> None:
        mapping = self.mapping
        data, guest_offset = cow.whole_sectors(self.reader, data, guest_offset)
        host_offset = self.reader.locate(guest_offset, len(data))
        if host_offset >= 0 and mapping.is_own(host_offset >> self._cluster_bits):  # As most small ones are.
            self.data.write((data,), host_offset)
            return
        for start, end in mapping.by_table(guest_offset, guest_offset + len(data)):
            mapping.make_room()
            table = mapping.writable_table(start)
            self._write_below(table, data[start - guest_offset : end - guest_offset], start)

    def _write_below(self, table: Table, data: memoryview, guest_offset: int) -> None:
        """Write guest bytes that one L2 table maps."""
        done = 0
        while (start := guest_offset + done) < guest_offset + len(data):
            stop, host_offset = self.mapping.stretch(table, start, guest_offset + len(data))
            part = data[done : stop - guest_offset]
            if host_offset is not None:
                self._overwrite(table, part, start, host_offset)
                done += len(part)
            else:
                done += self._write_new(table, part, start)

    def _overwrite(self, table: Table, data: memoryview, guest_offset: int, host_offset: int) -> None:
        """Write over clusters that are the image's own; in an external data file, also over ones not yet in use."""
        fresh = self.geometry.external_data and host_offset >= self._data_end
        pieces = cow.pieces(self.reader, table, guest_offset, data, in_place=True, fresh=fresh)
        self._put(pieces, guest_offset & ~self._cluster_mask, host_offset)
        self.mapping.point(table, guest_offset, guest_offset + len(data), host_offset)

    def _write_new(self, table: Table, data: memoryview, guest_offset: int) -> int:
        """Write to new clusters, as many as lie together; return how many bytes of the data they took."""
        inside = guest_offset & self._cluster_mask
        extent = self.allocator.allocate(self.geometry.clusters(inside + len(data)))
        data = data[: (extent.clusters << self._cluster_bits) - inside]
        host_offset = extent.first << self._cluster_bits
        try:
            pieces = cow.pieces(self.reader, table, guest_offset, data, in_place=False, fresh=extent.fresh)
            self._put(pieces, guest_offset - inside, host_offset)
        except BaseException:
            self.allocator.give_back(extent)
            raise
        self.mapping.move(table, guest_offset, guest_offset + len(data), host_offset)
        return len(data)

    def _put(self, pieces: list[cow.GuestBytes], guest_cluster: int, host_offset: int) -> None:
        """Write pieces of guest data to host clusters: those that lie together in one go."""
        for run in cow.together(pieces):
            at = host_offset + run[0].guest_offset - guest_cluster
            buffers = cow.stored(self.reader.cipher, run, at)
            if self._raw_data:  # Its size is the disk's: no zeros behind that.
                buffers = cow.cut(buffers, self.disk_size - at)
            self.data.write(buffers, at)
            if self.geometry.external_data:
                end = at + sum(map(len, buffers))
                self._data_end = max(self._data_end, -(-end >> self._cluster_bits) << self._cluster_bits)

    # --- zeros ---

    def write_zeroes(self, guest_offset: int, length: int, *, unmap: bool) -> None:
        """Make guest bytes read as zeros; `unmap` releases their host clusters.

        Durable order and crashes as of `write`: the entries change at the next commit, and what they release is
        free only then.
        """
        unit = self.geometry.subcluster_size
        end = guest_offset + length
        with self.changing():
            self._note(guest_offset, length)
            first = min(end, -(-guest_offset // unit) * unit)
            last = end if end == self.disk_size else max(first, end // unit * unit)
            self._write_zero_bytes(guest_offset, first)
            for start, stop in self.mapping.by_table(first, last):
                self._zero(start, stop, unmap=unmap)
            self._write_zero_bytes(last, end)

    def discard(self, guest_offset: int, length: int) -> None:
        """Release whole clusters; they read as zeros. Parts of clusters are left as they are.

        In version 2 over a backing file nothing changes: there are no zero clusters that would hide it.
        """
        size = self.geometry.cluster_size
        end = guest_offset + length
        with self.changing():
            first = -(-guest_offset // size) * size
            last = end if end == self.disk_size else end // size * size
            if first >= last or not (self.mapping.can_zero or self.reader.backing is None):
                return
            self._note(first, last - first)
            for start, stop in self.mapping.by_table(first, last):
                self._zero(start, stop, unmap=True)

    def _write_zero_bytes(self, start: int, end: int) -> None:
        if start < end and not cow.reads_as_zeros(self.reader, start, end - start):
            for part in range(start, end, _COPY_BYTES):
                self._write(zeros(min(end - part, _COPY_BYTES)), part)

    def _zero(self, start: int, end: int, *, unmap: bool) -> None:
        """Zero whole subclusters below one L2 table."""
        if self._raw_data:
            self.data.write_zeroes(start, end - start)
        if self.reader.table(start) is None and not self.mapping.shows_backing(start):
            return
        size = self.geometry.cluster_size
        aligned = not (start & self._cluster_mask or end & self._cluster_mask)
        if aligned and self.mapping.can_zero and self.mapping.shows_backing(start):
            self.mapping.make_room()
            if self.mapping.hide_backing(self.mapping.writable_table(start), start, end - start):
                return
        for base in range(start & ~self._cluster_mask, end, size):
            self.mapping.make_room()
            first, stop = max(start, base), min(end, base + size)
            whole = first == base and (stop == base + size or stop == self.disk_size)
            table = self.reader.table(first)
            entry = self.mapping.entry(table, first)
            hidden = self.mapping.can_zero or not self.mapping.shows_backing(first)
            if not hidden or (entry & L2_COMPRESSED and not whole):
                self._write_zero_bytes(first, stop)
            elif not self.mapping.is_plain_zero(table, first, stop, unmap=unmap):
                self.mapping.zero(self.mapping.writable_table(first), first, stop, unmap=unmap, whole=whole)

    # --- compression ---

    def write_compressed(self, data: memoryview, guest_offset: int, level: int | None = None) -> None:
        """Write whole clusters, compressed where that makes them smaller; the disk may end within the last one.

        Durable order and crashes as of `write`. Raises UsageError too, where the image can hold no compressed data.
        """
        if self.geometry.external_data:
            raise UsageError("an image with an external data file cannot hold compressed clusters")
        size = self.geometry.cluster_size
        compress = codecs.compressor(self.reader.header.compression_type, level)
        with self.changing():
            self._note(guest_offset, len(data))
            for start in range(0, len(data), size):
                cluster = data[start : start + size]
                packed = compress(bytes(cluster).ljust(size, b"\0"))
                if len(packed) < size:
                    self.mapping.make_room()
                    self._write_packed(packed, guest_offset + start)
                else:
                    self._write(cluster, guest_offset + start)

    def _write_packed(self, packed: bytes, guest_offset: int) -> None:
        table = self.mapping.writable_table(guest_offset)
        self.mapping.own_cluster(table, guest_offset)  # Judges the entry.
        at = self.allocator.allocate_bytes(len(packed))
        try:
            self.data.write([packed], at)
        except BaseException:
            self.allocator.abandon_bytes(at, len(packed))
            raise
        self.mapping.point_compressed(table, guest_offset, at, len(packed))

    # --- what is not guest data ---

    @contextmanager
    def changing_bitmaps(self) -> Iterator[BitmapEdit]:
        """Give out the bitmaps to be changed; in the end the image has the new ones, unless the block raises.

        Durable order: everything pending, the bits that were recorded; new data, tables, directory and their refcounts,
        where nothing refers to them; the header; what was released. A crash leaves the old bitmaps or the new ones.
        Raises CorruptMetadata where the bitmaps are broken, UsageError where the header has no room, StoreError.
        """
        with self.turn:
            with self.changing():
                edit = self.session.edit_bitmaps(self.place)
            try:
                yield edit
            except BaseException:
                self.session.drop_bitmaps(edit)
                raise
            with self.changing():
                self.session.name_bitmaps(edit)

    def place(self, data: bytes) -> int:
        """Store clusters that are no guest data; return their host offset. See `Session.place`."""
        with self.changing():
            self.session.begin()
            return self.session.place(data)

    def change_header(self, change: HeaderChange) -> None:
        """Change the header: by `fields` nothing that the tables depend on. See `Session.change_header`."""
        with self.changing():
            self.session.change_header(change)

    # --- the end of changes ---

    def flush(self) -> None:
        """Make everything written so far durable, in the order above. Raises StoreError; see `MetadataCache.commit`."""
        with self.changing():
            self.cache.commit()

    def finish(self) -> None:
        """Make everything durable, and the image cleanly closed; nothing changes afterwards. See `Session.finish`."""
        with self.turn:
            try:
                with self.changing():
                    self.session.finish()
            finally:
                self._ended = True

    def require_sound(self) -> None:
        """Raise StoreError where the image can no longer be written, and in a child process."""
        self.medium.require_sound()
        self.data.require_sound()

    @property
    def sound(self) -> bool:
        """Whether the image can still be written: no flush has failed, no change was interrupted."""
        return self.medium.sound and self.data.sound

    # --- the image changed as a whole ---

    def settle(self) -> Admission:
        """Make everything durable, as if the image was closed and opened again; return what is known of its refcounts.

        Durable order as of `finish`. Raises StoreError.
        """
        with self.changing():
            return self.session.settle()

    def reload(self) -> SnapshotTable:
        """Take up the state that the file has, after `settle` and a change of the whole image; return its snapshots.

        What was changed is durable then. Raises CorruptMetadata, StoreError, also after a flush that has failed: then
        nobody knows what the image is, and it is not to be used any more.
        """
        with self.turn:
            self.medium.flush()
            store = self.reader.store
            header = Header.load(store)
            snapshots = read_snapshots(store, header)
            admission = self.session.admission
            if not admission.verified:
                admission = trusted(store, header, snapshots)
            if not header.dirty:  # Then the change has counted anew.
                admission = replace(admission, undercounted=[])
            self.reader.show(active_state(store, header), tuple(metadata_spans(header)))
            self._compose(admission)
            return snapshots

    def of_state(self, state: LoadedState, backing: Layer | None) -> Engine:
        """Return an engine of another state of this image, which is at rest, over another layer.

        Nothing may be done with this one until the other has ended with `settle`. Raises CorruptMetadata, StoreError.
        """
        reader = Reader(
            self.reader.store,
            state,
            data_store=self.reader.data_store,
            cipher=self.reader.cipher,
            backing=backing,
            metadata=self.reader.metadata,
            turn=self.turn,
        )
        return Engine(reader, self.session.admission, (self.medium, self.data))
