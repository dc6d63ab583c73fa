"""The reader: one qcow2 layer, mapped and read. It decides what each guest byte is and fetches it; it never writes.

It holds the L1 table of one state (the active one, or a snapshot's) and a bounded cache of L2 tables, and knows the
layers below only as something that can be read. One entry at a time, with integers; whole tables are swept in
`references/walk.py`. Several threads may call it: stores are positional, and only cache misses take the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from itertools import islice

from qcow2c.errors import CorruptData, CorruptMetadata, Span
from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.format.table_rules import L1_RULES, broken_rules, l2_rules
from qcow2c.format.tables import (
    HAS_HOST_CLUSTER,
    L1_OFFSET,
    L2_COMPRESSED,
    L2_COPIED,
    L2_OFFSET,
    Kind,
    Table,
    entries_alike,
    equal_subclusters,
    kind_of,
)
from qcow2c.layers.decompressed import DecompressedClusters
from qcow2c.layers.direct import locator
from qcow2c.layers.guest_data import fetch_data, require_key, require_uncut
from qcow2c.layers.layer import Layer, Run
from qcow2c.layers.refcount_places import refcount_places
from qcow2c.layers.state import LoadedState, load_state
from qcow2c.layers.turn import AT_ONCE
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.sources import Store
from qcow2c.storage.thread_locks import fork_safe
from qcow2c.storage.zeros import fill_zeros

if TYPE_CHECKING:
    from qcow2c.crypto.guest_cipher import GuestCipher

L2_CACHE_BYTES = 64 << 20
"""Bound of the cached L2 tables of one reader: enough for 512 GiB of guest data with 64 KiB clusters."""

SalvageLog = Callable[[Span, Exception], None]
"""Told each guest range that reads as zeros because it cannot be read, and why."""


class Reader:
    """One state of one image. Reads never fail silently: they raise, or, with a salvage log, zero and tell."""

    image_format = "qcow2"

    def __init__(
        self,
        store: Store,
        state: LoadedState,
        *,
        data_store: Store | None = None,
        cipher: GuestCipher | None = None,
        backing: Layer | None = None,
        metadata: Sequence[tuple[str, Span]] = (),
        salvage: SalvageLog | None = None,
        turn: AbstractContextManager[object] = AT_ONCE,
    ) -> None:
        """`data_store` is the external data file; no L2 table may overlap the places that `metadata` names.
        `cipher` is that of an encrypted image, None without a key: then it shows its tables, and no guest data.
        `turn` is held for each read of guest data: the lock of a writer, or what raises once the state is gone.
        """
        self.store = store
        self.data_store = data_store or store
        self.cipher = cipher
        self.backing = backing
        self.salvage = salvage
        self.l2_tables: dict[int, Table] = {}
        """The loaded L2 tables by their L1 index; a writer changes them, and those that are dirty stay."""
        self.turn = turn
        self._lock = fork_safe(threading.Lock())
        self.show(state, metadata)

    def show(self, state: LoadedState, metadata: Sequence[tuple[str, Span]] = ()) -> None:
        """Read another state of the image from now on; whatever was cached is forgotten."""
        self.header = state.header
        self.geometry = geometry = state.header.geometry
        self.disk_size = state.disk_size
        self.metadata = metadata
        self._refcount_places = lru_cache(1)(partial(refcount_places, self.store, state.header))
        self.l1_table = state.l1_table
        """The L1 entries; fewer than are declared where the file ends a cluster or more before the table does."""
        self.l1_offset = state.l1_offset
        self.l1_entries = state.l1_entries
        """How many L1 entries are declared."""
        self.l2_tables.clear()
        self.l2_tables_limit = max(2, L2_CACHE_BYTES >> geometry.cluster_bits)
        self.decompressed = DecompressedClusters(self.store, state.header)
        self._rules = l2_rules(geometry)
        self._words = geometry.l2_entry_words
        self._file_end = 0
        # What somebody else cuts off of a file is lost, and no zeros; a writer makes its file shorter itself.
        reads = self.turn is AT_ONCE
        self._known_sizes = (self.store.size(), self.data_store.size()) if reads else (0, 0)
        self._cluster_bits = geometry.cluster_bits
        self._cluster_mask = geometry.cluster_size - 1
        self._l2_mask = geometry.l2_entries - 1
        self._every_entry_counts = geometry.extended_l2 or geometry.external_data
        self.unusual_bits = ~(L2_OFFSET & ~self._cluster_mask | L2_COPIED)
        """A plain data cluster has nothing but a cluster-aligned offset and the copied bit."""
        self.locate = locator(state.l1_table, self.l2_tables, state.header, lies_on_nothing=self.backing is None)

    def ignore_overlaps(self) -> None:
        """Believe that no L2 table overlaps other metadata: the admission has looked."""
        self.metadata = ()

    def renew_header(self, header: Header) -> None:
        """Take up a header in which nothing has changed that the tables depend on."""
        self.header = header

    def state(
        self, l1_offset: int, l1_entries: int, disk_size: int, turn: AbstractContextManager[object] = AT_ONCE
    ) -> Reader:
        """Return the reader of another state of the same image, over the same layers: a snapshot's."""
        return Reader(
            self.store,
            load_state(self.store, self.header, l1_offset, l1_entries, disk_size),
            data_store=self.data_store,
            cipher=self.cipher,
            backing=self.backing,
            metadata=self.metadata,
            salvage=self.salvage,
            turn=turn,
        )

    @property
    def encrypted(self) -> bool:
        return self.header.encrypted

    @property
    def needs_key(self) -> bool:
        return self.header.encrypted and self.cipher is None

    # --- mapping ---

    def table_entries(self, start: int, end: int) -> int:
        """Return how many L1 entries a guest range has, and entries of L2 tables, subclusters counted."""
        geometry = self.geometry
        words = self.l1_table[start >> geometry.l2_coverage_bits : geometry.l1_entries(end)]
        return len(words) + (len(words) - words.count(0)) * geometry.l2_entries * geometry.subclusters

    def entry(self, guest_offset: int) -> int:
        """Return the L2 descriptor of a guest cluster, not judged; 0 where there is none. Raises CorruptMetadata."""
        table = self.table(guest_offset)
        return 0 if table is None else table.words[(guest_offset >> self._cluster_bits & self._l2_mask) * self._words]

    def runs(self, guest_offset: int, length: int) -> Iterator[Run]:
        """Yield what `length` bytes at `guest_offset` are, in order and without gaps.

        Raises CorruptMetadata, with both places, at the first entry that breaks a rule.
        """
        end = guest_offset + length
        while guest_offset < end:
            run = self.run_at(guest_offset, end - guest_offset)
            yield run
            guest_offset += run.length

    def run_at(self, guest_offset: int, length: int) -> Run:
        """Return the longest run at `guest_offset` within one L2 table, at most `length` bytes."""
        geometry = self.geometry
        coverage = 1 << geometry.l2_coverage_bits
        length = min(length, coverage - (guest_offset & (coverage - 1)))
        table = self.table(guest_offset)
        if table is None:
            return Run(Kind.UNALLOCATED, guest_offset, length, 0)
        index = guest_offset >> geometry.cluster_bits & self._l2_mask
        inside = guest_offset & self._cluster_mask
        first = inside // geometry.subcluster_size
        kind, count = self._subclusters(table, index, first, guest_offset)
        found = (first + count) * geometry.subcluster_size - inside
        host_offset = 0
        if kind is Kind.COMPRESSED:
            return Run(kind, guest_offset, min(found, length), table.words[index * self._words])
        next_host = 0
        if kind in HAS_HOST_CLUSTER:
            host_offset = (table.words[index * self._words] & L2_OFFSET) + inside
            next_host = host_offset - inside + geometry.cluster_size
        if not self._every_entry_counts and found < length:
            most = -(-(length - found) >> geometry.cluster_bits)
            more = entries_alike(table.words, index, most, geometry.cluster_size, self.unusual_bits)
            index, found = index + more, found + (more << geometry.cluster_bits)
            next_host += more << geometry.cluster_bits if next_host else 0
        # Go on over whole clusters, as long as the last one ended with this kind.
        while found < length and first + count == geometry.subclusters:
            index, first = index + 1, 0
            entry = table.words[index * self._words]
            if next_host and entry & L2_OFFSET != next_host:
                break
            try:
                following, count = self._subclusters(table, index, 0, guest_offset + found)
            except CorruptMetadata:
                break  # What is sound is not lost for what follows it: the next run begins there, and says so.
            if following is not kind:
                break
            found += count * geometry.subcluster_size
            next_host += geometry.cluster_size if next_host else 0
        return Run(kind, guest_offset, min(found, length), host_offset)

    def _subclusters(self, table: Table, index: int, first: int, guest_offset: int) -> tuple[Kind, int]:
        """Return the kind of subcluster `first` of an entry, and how many from there on share it."""
        entry = table.words[index * self._words]
        geometry = self.geometry
        if not geometry.extended_l2:
            if entry & self.unusual_bits or geometry.external_data:
                self.judge(table, index, entry, 0, guest_offset)
            elif entry & L2_OFFSET:
                return Kind.DATA, 1
            return kind_of(entry, 0, 0, geometry), 1
        bitmap = table.words[index * 2 + 1]
        self.judge(table, index, entry, bitmap, guest_offset)
        kind = kind_of(entry, bitmap, first, geometry)
        if kind is Kind.COMPRESSED:
            return kind, geometry.subclusters - first
        return kind, equal_subclusters(bitmap, first, kind)

    def judge(self, table: Table, index: int, entry: int, bitmap: int, guest_offset: int) -> None:
        """Raise the first rule that an entry breaks; or what it reserves past the end of the file, as no writer does.

        Plain data is not judged here: a read of it fails by itself.
        """
        geometry = self.geometry
        where = Span(table.host_offset + index * geometry.l2_entry_bytes, geometry.l2_entry_bytes)
        guest = Span(guest_offset & ~self._cluster_mask, geometry.cluster_size)
        for rule in broken_rules(self._rules, entry, bitmap, geometry):
            raise CorruptMetadata(f"L2 entry {entry:#018x}: {rule.message}", where=where, guest=guest, spec=rule.spec)
        if not geometry.external_data and not entry & L2_COMPRESSED and self._is_past_end(entry & L2_OFFSET):
            message = f"L2 entry {entry:#018x}: the host cluster is past the end of the file at {self.store.size():#x}"
            raise CorruptMetadata(message, where=where, guest=guest, spec="Cluster mapping")
        if geometry.external_data and kind_of(entry, bitmap, 0, geometry) in HAS_HOST_CLUSTER:
            host = entry & L2_OFFSET
            if host != guest.offset:
                message = f"L2 entry {entry:#018x}: offset {host:#x} in the external data file is not the guest's"
                raise CorruptMetadata(message, where=where, guest=guest, spec="Header")

    def _is_past_end(self, host_offset: int) -> bool:
        """Return whether the file has nothing of a host cluster; its size is asked only behind the end known so far."""
        if host_offset >= self._file_end:
            self._file_end = self.store.size()
        return host_offset >= self._file_end

    def table(self, guest_offset: int) -> Table | None:
        """Return the L2 table of a guest offset, from the cache or the file; None where there is none."""
        l1_index = guest_offset >> self.geometry.l2_coverage_bits
        table = self.l2_tables.get(l1_index)
        if table is not None:
            return table
        if l1_index >= len(self.l1_table):
            self._require_no_entry(l1_index)
            return None
        table = self._load_table(l1_index)
        if table is None:
            return None
        self._keep(l1_index, table)
        return table

    def _keep(self, l1_index: int, table: Table) -> None:
        """Cache a loaded table, in place of the oldest ones where there are too many; what is not stored yet stays."""
        with self._lock:
            excess = len(self.l2_tables) - self.l2_tables_limit + 1
            if excess > 0:
                clean = (index for index, known in self.l2_tables.items() if not known.dirty)
                for index in list(islice(clean, excess)):
                    del self.l2_tables[index]
            self.l2_tables[l1_index] = table

    def _require_no_entry(self, l1_index: int) -> None:
        if l1_index < self.l1_entries:
            guest = Span(l1_index << self.geometry.l2_coverage_bits, 1 << self.geometry.l2_coverage_bits)
            message = f"L1 entry {l1_index} is past the end of the file at {self.store.size():#x}"
            raise CorruptMetadata(message, where=layout.word_span(self.l1_offset, l1_index), guest=guest, spec="Header")

    def _overlapped(self, at: int) -> str | None:
        """Return what an L2 table would overlap, None for nothing that is known without much reading."""
        for name, span in self.metadata:
            if at < span.end and span.offset < at + self.geometry.cluster_size:
                return f"the {name}"
        return "a refcount block" if at in self.refcount_blocks() else None

    def refcount_blocks(self) -> frozenset[int]:
        """Return host offsets of refcount blocks that are known cheaply; none where a writer may have others."""
        return self._refcount_places() if self.metadata and not self.store.writable else frozenset()

    def _load_table(self, l1_index: int) -> Table | None:
        entry, geometry = self.l1_table[l1_index], self.geometry
        if not entry:
            return None
        at = entry & L1_OFFSET
        where = layout.word_span(self.l1_offset, l1_index)
        guest = Span(l1_index << geometry.l2_coverage_bits, 1 << geometry.l2_coverage_bits)
        for rule in broken_rules(L1_RULES, entry, 0, geometry):
            raise CorruptMetadata(f"L1 entry {entry:#018x}: {rule.message}", where=where, guest=guest, spec=rule.spec)
        if not at:
            return None
        overlapped, data, problem = self._overlapped(at), self.store.pread(geometry.cluster_size, at), ""
        if overlapped:
            problem = f"overlaps {overlapped}"
        elif not data:
            problem = f"is past the end of the file at {self.store.size():#x}"
        elif len(data) < geometry.cluster_size and self.store.size() < self._known_sizes[0]:
            problem = f"was cut off since {self.store.name!r} was opened"
        if problem:
            message = f"L1 entry {entry:#018x}: the L2 table {problem}"
            raise CorruptMetadata(message, where=where, guest=guest, spec="Cluster mapping")
        # The last cluster of a file may be cut short where the rest of it is zeros.
        return Table(layout.words(data.ljust(geometry.cluster_size, b"\0")), at)

    # --- reading ---

    def read_into(self, buffer: memoryview, guest_offset: int) -> None:
        """Fill `buffer` from the virtual disk, with zeros beyond its end.

        Raises MissingKey, CorruptMetadata, CorruptData, StoreError; with a salvage log zeros what cannot be read.
        """
        with self.turn:
            inside = max(0, min(len(buffer), self.disk_size - guest_offset))
            fill_zeros(buffer[inside:])
            self._read(buffer[:inside], guest_offset)

    def read_mapped(self, buffer: memoryview, guest_offset: int) -> None:
        """Fill `buffer` with whatever is mapped at `guest_offset`, beyond the end of the disk too: the VM state.

        Raises as `read_into`.
        """
        with self.turn:
            self._read(buffer, guest_offset)

    def _read(self, buffer: memoryview, guest_offset: int) -> None:
        start = guest_offset
        end = guest_offset + len(buffer)
        if self.needs_key and buffer:
            require_key(self, Span(guest_offset, len(buffer)))
        while guest_offset < end:
            remaining = end - guest_offset
            try:
                run = self.run_at(guest_offset, remaining)
            except CorruptMetadata as exc:
                run = self._salvaged_run(exc, guest_offset, remaining)
            part = buffer[guest_offset - start : guest_offset - start + run.length]
            self._fetch(part, run)
            guest_offset += run.length

    def _salvaged_run(self, exc: CorruptMetadata, guest_offset: int, remaining: int) -> Run:
        """Return the unreadable guest range of an error as zeros, or raise the error again."""
        if self.salvage is None or exc.guest is None:
            raise exc
        length = min(exc.guest.end - guest_offset, remaining)
        self.salvage(Span(guest_offset, length), exc)
        return Run(Kind.ZERO, guest_offset, length, 0)

    def _fetch(self, buffer: memoryview, run: Run) -> None:
        if run.kind in (Kind.ZERO, Kind.ZERO_ALLOCATED):
            fill_zeros(buffer)
        elif run.kind in (Kind.UNALLOCATED, Kind.UNALLOCATED_IN_CLUSTER):
            if self.backing is None or run.guest_offset >= self.disk_size:
                fill_zeros(buffer)
            else:
                self.backing.read_into(buffer, run.guest_offset)
        elif run.kind is Kind.DATA:
            self._fetch_data(buffer, run)
        else:
            self._fetch_compressed(buffer, run)

    def require_whole(self) -> None:
        """Raise StoreError where the file of its data was cut off since it was opened, unless that is salvaged."""
        if self.salvage is None:
            require_uncut(self.data_store, self._known_sizes[1])

    def _fetch_data(self, buffer: memoryview, run: Run) -> None:
        lost = fetch_data(self.data_store, self.geometry, self.cipher, buffer, run, known_size=self._known_sizes[1])
        if lost is not None:
            self._lose(lost)

    def _fetch_compressed(self, buffer: memoryview, run: Run) -> None:
        inside = run.guest_offset & self._cluster_mask
        try:
            cluster = self.decompressed.read(run.host_offset, run.guest_offset - inside)
            buffer[:] = cluster[inside : inside + len(buffer)]
        except CorruptData as exc:
            self._lose(exc)
            fill_zeros(buffer)

    def _lose(self, error: CorruptData) -> None:
        if self.salvage is None or error.guest is None:
            raise error
        self.salvage(error.guest, error)
