"""A layer that is being written: its tables, who owns a cluster, and how the image begins and ends being written.

It changes tables and refcounts in memory, through `cache.py`, which commits them in order. Whether a cluster may be
overwritten is decided by its refcount, never by the copied bit. Guest data is the business of `engine.py`.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from qcow2c.bitmaps.edit import BitmapEdit
from qcow2c.errors import CorruptMetadata, MissingKey, Span, StoreError, UsageError
from qcow2c.format import layout, rules
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange
from qcow2c.format.records import SnapshotTable, read_snapshots
from qcow2c.format.tables import L1_COPIED, L2_COMPRESSED, L2_OFFSET, Table, compressed_extent
from qcow2c.layers.kept_state import KeptState
from qcow2c.layers.reader import Reader
from qcow2c.references.admission import Admission, trusted
from qcow2c.structs import AUTOCLEAR_FEATURES, INCOMPATIBLE_FEATURES, Version
from qcow2c.writer.allocation import Allocator
from qcow2c.writer.cache import MetadataCache
from qcow2c.writer.dirty_bitmaps import BitmapTracker
from qcow2c.writer.header_update import change_header

MAX_RELEASES = 1 << 16
"""Runs of released clusters that wait in memory before they cause a commit."""

_DIRTY = layout.bits(INCOMPATIBLE_FEATURES)["dirty"].mask

_BITMAPS = layout.bits(AUTOCLEAR_FEATURES)["bitmaps"].mask

_UNKNOWN_AUTOCLEAR = layout.bits(AUTOCLEAR_FEATURES).reserved


class WrittenLayer(Reader):
    """The active state of an image with its cache and its allocator; `lock` is held for each read and each change."""

    def __init__(self, *reader: Any, admission: Admission, **facts: Any) -> None:
        """Arguments as of `Reader`; `admission` says what was found when the image was let in for writing."""
        self.lock = threading.RLock()
        self._load(*reader, admission=admission, **facts)

    def _load(self, *reader: Any, admission: Admission, **facts: Any) -> None:
        super().__init__(*reader, **facts)
        if self.header.encrypted:
            raise MissingKey("the image is encrypted, and no key was given", spec="Data encryption")
        if len(self._l1) != self._l1_entries:
            where = Span(self._l1_offset, self._l1_entries * 8)
            raise CorruptMetadata("the L1 table leaves the file: run check -r first", where=where, spec="Header")
        if admission.verified:
            self.metadata = ()  # Nothing overlaps, and the refcount table may leave its place.
        self.cache = MetadataCache(
            self.store, self.data_store, self.header, Table(self._l1, self._l1_offset), self._l2_tables
        )
        self.data = self.cache.data_medium
        self._admission = admission
        self._guard = None if admission.verified else admission.metadata
        self.allocator = Allocator(self.cache, forbidden=self._guard)
        self._bitmaps = BitmapTracker(self.cache, self.allocator, self.header)
        self._cluster_bits = self.geometry.cluster_bits
        self._raw_data = self.header.external_data and self.header.data_file_raw
        self._data_end = self.data_store.size()
        """Where the external data file was never written: it reads as zeros from there on."""
        self._begun = False

    # --- life ---

    def _change(self, guest_offset: int, length: int) -> None:
        """Prepare for a change of guest bytes; called before it is made."""
        if guest_offset + length > self.disk_size:  # It has become smaller meanwhile.
            raise UsageError(f"{length} bytes at offset {guest_offset} leave the disk of {self.disk_size} bytes")
        self.cache.medium.require_sound()
        self.data.require_sound()
        self.begin()
        self._bitmaps.note(guest_offset, length)

    def begin(self) -> None:
        """Prepare the image for its first change.

        Durable order: header, marks of bitmaps if guest data changes, then anything else. A crash leaves an image
        without bits that were unknown, with bitmaps that count as stale, and, with lazy refcounts, marked dirty,
        although its refcounts are right.
        """
        if self._begun:
            return
        header = self.header
        if header.version >= Version.V3:
            dirty = _DIRTY if header.lazy_refcounts else 0
            incompatible = header.incompatible_features | dirty
            stale = _UNKNOWN_AUTOCLEAR if self._bitmaps.problem is None else _UNKNOWN_AUTOCLEAR | _BITMAPS
            autoclear = header.autoclear_features & ~stale
            if (incompatible, autoclear) != (header.incompatible_features, header.autoclear_features):
                self.cache.set_header(incompatible_features=incompatible, autoclear_features=autoclear)
                self.cache.write_header()
        for cluster, references in self._admission.undercounted:
            self.allocator.raise_refcount(cluster, references)
        self._begun = True

    def place(self, data: bytes) -> int:
        """Store clusters that are no guest data; return their host offset.

        Durable order: the data at once, its refcounts with the next commit. A crash leaves leaked clusters.
        """
        with self.lock:
            self.begin()
            count = self.geometry.clusters(len(data))
            parts = []
            extent = self.allocator.allocate(count)
            while extent.clusters < count:  # A refcount block that is yet to be made may lie between.
                parts.append(extent)
                extent = self.allocator.allocate(count)
            for part in parts:
                self.allocator.abandon(part)
            host_offset = extent.first << self._cluster_bits
            self.cache.medium.write([data.ljust(count << self._cluster_bits, b"\0")], host_offset)
            return host_offset

    def let_go(self, host_offset: int, length: int) -> None:
        """Take a reference away from each cluster of a range that is no guest data, once what is pending is durable."""
        first = host_offset >> self._cluster_bits
        self.cache.release(first, (host_offset + length - 1 >> self._cluster_bits) - first + 1)

    def change_header(self, change: HeaderChange) -> None:
        """Change the header: by `fields` nothing that this layer's tables depend on.

        Durable order: everything pending, the header (see `header_update.change_header`). What was let go of before it
        is counted down at the next commit: let go afterwards. Raises UsageError, StoreError.
        """
        with self.lock:
            self.begin()
            self.cache.commit()
            self.header = change_header(self.cache.medium, Header.load(self.store), change)
            self.cache.reload_header()

    @contextmanager
    def changing_bitmaps(self) -> Iterator[BitmapEdit]:
        """Give out the bitmaps to be changed; in the end the image has the new ones, unless the block raises.

        Durable order: everything pending, the bits that were recorded; new data, tables, directory and their refcounts,
        where nothing refers to them; the header; what was let go of. A crash leaves the old bitmaps or the new ones.
        Raises CorruptMetadata where the bitmaps are broken, UsageError where the header has no room, StoreError.
        """
        with self.lock:
            if self._bitmaps.problem is not None:  # What is broken is left as it is.
                raise self._bitmaps.problem
            self.begin()
            self.cache.commit()
            self._bitmaps.finish()
            edit = BitmapEdit(self.store, Header.load(self.store), self.place)
            named = False
            try:
                yield edit
                if edit.changed:
                    change = edit.header_change()
                    named = True
                    self.change_header(change)
            except BaseException as error:
                if not named or isinstance(error, UsageError):
                    self._let_all_go(edit.placed)
                else:  # The header may have been written all the same: what it does not name leaks.
                    self.header = Header.load(self.store)
                    self.cache.reload_header()
                    self._bitmaps = BitmapTracker(self.cache, self.allocator, self.header)
                raise
            self._let_all_go(edit.released)
            self._bitmaps = BitmapTracker(self.cache, self.allocator, self.header)

    def _let_all_go(self, runs: Iterable[tuple[int, int]]) -> None:
        for host_offset, length in runs:
            self.let_go(host_offset, length)

    def flush(self) -> None:
        """Make everything written so far durable. Raises StoreError; see `MetadataCache.commit`."""
        with self.lock:
            self.cache.commit()

    def finish(self) -> None:
        """Make everything durable, and the image one that was closed cleanly.

        Durable order: all of `flush`, bitmaps, lowered refcounts, the header without the dirty bit. Raises StoreError.
        """
        with self.lock:
            if not self._begun:
                return
            self.cache.commit()
            self._bitmaps.finish()
            self.cache.medium.flush()
            if self.header.lazy_refcounts or self.header.dirty:
                self.cache.set_header(incompatible_features=self.header.incompatible_features & ~_DIRTY)
                self.cache.write_header()

    # --- the image changed as a whole ---

    def settle(self) -> Admission:
        """Make everything durable, as if the image was closed and opened again; return what is known of its refcounts.

        Durable order as of `finish`. Raises StoreError.
        """
        with self.lock:
            self.finish()
            if self._begun:
                self._begun = False
                self._admission = replace(self._admission, undercounted=[])
                self.header = Header.load(self.store)
                self.cache.reload_header()
            return self._admission

    def reload(self) -> SnapshotTable:
        """Take up the state that the file has, after `settle` and a change of the whole image; return its snapshots.

        What was changed is durable before anything is written again, or nothing ever is. Raises CorruptMetadata,
        StoreError: then the layer is not to be used any more.
        """
        with self.lock:
            with suppress(StoreError):  # After a flush that has failed, the store takes no more.
                self.cache.medium.flush()
            header = Header.load(self.store)
            snapshots = read_snapshots(self.store, header)
            admission = self._admission if self._admission.verified else trusted(self.store, header, snapshots)
            if not header.dirty:  # Then the change has counted anew.
                admission = replace(admission, undercounted=[])
            self._load(
                self.store,
                header,
                layout.words(self.store.pread(header.l1_size * 8, header.l1_table_offset)),
                l1_offset=header.l1_table_offset,
                l1_entries=header.l1_size,
                disk_size=header.size,
                data_store=self.data_store,
                backing=self.backing,
                metadata=tuple(rules.metadata_spans(header)),
                admission=admission,
            )
            return snapshots

    # --- reading, in turn with writing ---

    def state(self, l1_offset: int, l1_entries: int, disk_size: int) -> KeptState:
        below = {"data_store": self.data_store, "backing": self.backing, "metadata": self.metadata}
        return KeptState.of_state(self.store, self.header, l1_offset, l1_entries, disk_size, **below)

    def read_into(self, buffer: memoryview, guest_offset: int) -> None:
        with self.lock:
            super().read_into(buffer, guest_offset)

    def read_mapped(self, buffer: memoryview, guest_offset: int) -> None:
        with self.lock:
            super().read_mapped(buffer, guest_offset)

    def _keep(self, l1_index: int, table: Table) -> None:
        """Cache a loaded table; what the file does not have yet stays."""
        if len(self._l2_tables) >= self._l2_limit:
            for index in [index for index, known in self._l2_tables.items() if not known.dirty]:
                del self._l2_tables[index]
        self._l2_tables[l1_index] = table

    def _make_room(self) -> None:
        """Commit where too much waits in memory; called before anything of a change is done."""
        if len(self._l2_tables) >= max(2, self._l2_limit // 2) or self.cache.releases > MAX_RELEASES:
            self.cache.commit()
            for index in list(self._l2_tables)[: -self._l2_limit // 4]:
                del self._l2_tables[index]

    # --- tables and clusters ---

    def _index(self, guest_offset: int) -> int:
        """Return the index in its L2 table of the entry of a guest cluster."""
        return guest_offset >> self._cluster_bits & self._l2_mask

    def _is_own(self, cluster: int) -> bool:
        """Tell whether a host cluster to which a guest cluster maps may be overwritten."""
        return self.cache.refcount(cluster) == 1 and (self._guard is None or cluster not in self._guard)

    def _own_cluster(self, table: Table, guest_offset: int) -> int | None:
        """Return the host cluster of a guest cluster if it may be overwritten. Raises CorruptMetadata."""
        index = self._index(guest_offset)
        entry = table.words[index * self._words]
        if entry & self._special or self.geometry.extended_l2 or self.geometry.external_data:
            bitmap = table.words[index * 2 + 1] if self.geometry.extended_l2 else 0
            self._judge(table, index, entry, bitmap, guest_offset)
            if entry & L2_COMPRESSED:
                return None
        if self.geometry.external_data:
            return guest_offset & ~self._cluster_mask
        host_offset = entry & L2_OFFSET
        if not host_offset:
            return None
        cluster = host_offset >> self._cluster_bits
        if self._is_own(cluster):
            return host_offset
        refcount = self.cache.refcount(cluster)
        if refcount <= 1:
            problem = "overlaps metadata" if refcount else "has refcount 0"
            message = f"L2 entry {entry:#018x}: the host cluster {problem}, so that it is not written: run check -r"
            guest = Span(guest_offset & ~self._cluster_mask, self.geometry.cluster_size)
            where = Span(table.host_offset + index * self._words * 8, self._words * 8)
            raise CorruptMetadata(message, where=where, guest=guest, spec="Cluster mapping")
        return None

    def _writable_table(self, guest_offset: int) -> Table:
        """Return the L2 table of a guest offset: a new one, or a copy of it, where it is missing or shared.

        Durable order, at the next commit: refcount, table, L1 entry; then the refcount of the shared one is lowered.
        """
        table = self._table(guest_offset)
        l1_index = guest_offset >> self.geometry.l2_coverage_bits
        refcount = 0 if table is None else self.cache.refcount(table.host_offset >> self._cluster_bits)
        if table is not None and refcount == 1:
            if not self._l1[l1_index] & L1_COPIED:
                self.cache.l1.set(l1_index, table.host_offset | L1_COPIED)
            return table
        if table is not None and not refcount:
            where = Span(self._l1_offset + l1_index * 8, 8)
            message = f"the L2 table at {table.host_offset:#x} has refcount 0, so that it is not written: run check -r"
            raise CorruptMetadata(message, where=where, spec="Cluster mapping")
        words = array("Q", bytes(self.geometry.cluster_size)) if table is None else table.words[:]
        host_offset = self.allocator.allocate(1).first << self._cluster_bits
        if self._guard is not None:
            self._guard.add(host_offset >> self._cluster_bits)
        if table is not None:
            self.cache.release(table.host_offset >> self._cluster_bits)
        new = self._l2_tables[l1_index] = Table(words, host_offset, reachable=False)
        self.cache.l1.set(l1_index, host_offset | L1_COPIED)
        return new

    def _release(self, entry: int, *, discard: bool = False) -> None:
        """Let go of what an entry, which has just been replaced, refers to."""
        bits = self._cluster_bits
        if entry & L2_COMPRESSED:
            self._clusters.pop(entry, None)
            where = compressed_extent(entry, self.geometry)
            first = where.host_offset >> bits
            self.cache.release(first, (where.host_offset + where.length - 1 >> bits) - first + 1, discard=discard)
        elif entry & L2_OFFSET and not self.geometry.external_data:
            self.cache.release((entry & L2_OFFSET) >> bits, discard=discard)
