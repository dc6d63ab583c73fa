"""A compact copy of an image: what its tables need, in the order of the file, and tables that name the new places.

Host clusters that several states share are copied once. Data that is all zeros becomes a zero cluster, or no cluster
at all where nothing lies below. No other file is opened: what lies below, or in an external data file, stays there.
What is encrypted by its place in the file (LUKS) is decrypted, and encrypted for its new place; legacy AES, which
counts sectors of the disk, is copied as it lies there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c.builder.census import Census, PackedPlan, needs_cluster
from qcow2c.builder.cluster_file import ClusterFile, Packer
from qcow2c.constants import ExtensionType, Version
from qcow2c.errors import CorruptMetadata
from qcow2c.format import layout, tables
from qcow2c.format.codecs import Compressor
from qcow2c.format.derived import (
    AUTOCLEAR_FEATURES,
    BITMAP_DIRECTORY_HEADER,
    BITMAPS_EXTENSION,
    ENCRYPTION_HEADER_POINTER,
    INCOMPATIBLE_FEATURES,
    SNAPSHOT_HEADER,
)
from qcow2c.format.header import Header, aligned
from qcow2c.format.header_writer import HeaderChange, changed_header, with_extension
from qcow2c.format.records import SnapshotTable
from qcow2c.references.walk import ACTIVE, L2Batch, State, Walk
from qcow2c.storage.store import Progress, Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.crypto.guest_cipher import GuestCipher
    from qcow2c.format.array_types import U64Array

_READ_BYTES = 512 << 10
"""Bytes of data that are read, searched and written at a time, while they are in the processor's cache."""

_WINDOW = 1 << 20
"""Clusters of the file that are looked through at a time for those that are needed."""

_ZEROS = tables.L2_ZERO
"""Stands for the new place of a cluster whose data turned out to be zeros: no place has this bit."""


class Compaction:
    """One copy. The attributes count clusters, once the copy is made."""

    def __init__(
        self,
        store: Store,
        header: Header,
        snapshots: SnapshotTable,
        *,
        compress: Compressor | None = None,
        cipher: GuestCipher | None = None,
        progress: Progress | None = None,
    ) -> None:
        """The image must have been found sound (see `admission`). `cipher` is that of an image with LUKS.

        Raises CorruptMetadata, LimitExceeded.
        """
        self._store = store
        self._header = header
        geometry = self._geometry = header.geometry
        # What the active L1 table has beyond the disk, of a VM state that was loaded, cannot be read.
        self._l1_entries = min(header.l1_size, geometry.l1_entries(header.size))
        self._walk = Walk(store, replace(header, l1_size=self._l1_entries), snapshots)
        bitmaps = self._walk.bitmaps
        if bitmaps.broken is not None:
            raise CorruptMetadata(bitmaps.broken.message, where=bitmaps.broken.where, spec=bitmaps.broken.spec)
        self._census = Census(self._walk)
        self._progress = progress or (lambda _done, _total: None)
        self._compress = compress
        self._cipher = cipher
        self._has_backing = header.backing_file is not None
        is_readable = not header.encrypted or cipher is not None
        self._finds_zeros = is_readable and (header.version >= Version.V3 or not self._has_backing)
        self._has_holes = self._finds_zeros and cipher is None
        """Whether a hole of the file is zeros of the disk."""
        self._places: U64Array = np.zeros(self._census.clusters, dtype=np.uint64)
        """For each cluster of the old file its new offset, its new descriptor, or _ZEROS; 0: it is not needed."""
        self._packed: U64Array = np.zeros(len(self._census.packed), dtype=np.uint64)
        """The new descriptor of each old one."""
        self.data_clusters = 0
        """Copied as they are."""
        self.zero_clusters = 0
        """Found to hold nothing but zeros."""
        self.compressed_clusters = 0
        """Compressed by this copy."""

    @property
    def snapshots(self) -> int:
        return len(self._walk.snapshots.records)

    @property
    def bitmaps(self) -> int:
        return len(self._walk.bitmaps.records)

    def write(self, target: Store) -> int:
        """Write the copy into an empty store; return its length. Order and crash: see `ClusterFile`.

        Raises CorruptMetadata, LimitExceeded, UsageError, StoreError.
        """
        file = ClusterFile(target, self._geometry)
        self._copy_data(file)
        self._copy_packed(file)
        fields = self._copy_states(file, self._copy_tables(file))
        encryption = self._copy_encryption_header(file)
        extensions = with_extension(self._header, ExtensionType.BITMAPS, self._copy_bitmaps(file))
        extensions = [encryption.get(kind, (kind, data)) for kind, data in extensions]
        fields |= self._features()
        fields["refcount_table_offset"], fields["refcount_table_clusters"] = file.append_refcounts()
        file.finish(changed_header(self._store, self._header, HeaderChange(fields, extensions)))
        return file.length

    # --- data ---

    def _copy_data(self, file: ClusterFile) -> None:
        """Copy the clusters that are needed, in the order of the file."""
        size, needed = self._geometry.cluster_size, self._census.needed
        total = sum(int(np.count_nonzero(needed[at : at + _WINDOW])) for at in range(0, len(needed), _WINDOW)) * size
        packer = Packer(file, self._places)
        done = 0
        self._progress(0, total)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for clusters in self._needed():
                for alike in self._alike(clusters):
                    self._copy_some(file, packer, alike, pool)
                done += len(clusters) * size
                self._progress(done, total)
        self._progress(total, total)
        packer.flush()

    def _needed(self) -> Iterator[NDArray[np.int64]]:
        """Yield the clusters that are needed, ascending, as many as are read at a time."""
        step = max(1, _READ_BYTES >> self._geometry.cluster_bits)
        for first in range(0, self._census.clusters, _WINDOW):
            found = np.flatnonzero(self._census.needed[first : first + _WINDOW]) + first
            if self._has_holes:
                found = self._without_holes(found)
            for start in range(0, len(found), step):
                yield found[start : start + step]

    def _alike(self, clusters: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield clusters apart from those of bitmaps where only guest data is encrypted by its place."""
        if self._cipher is None:
            yield clusters
            return
        plain = np.isin(clusters, self._census.bitmap_clusters)
        yield from (part for part in (clusters[~plain], clusters[plain]) if len(part))

    def _cipher_of(self, clusters: NDArray[np.int64]) -> GuestCipher | None:
        """Return what encrypts clusters that are alike."""
        is_plain = self._cipher is None or bool(np.isin(clusters[:1], self._census.bitmap_clusters).any())
        return None if is_plain else self._cipher

    def _without_holes(self, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which clusters may hold data; the others are holes of the file: zeros that need not be read."""
        stored = self._walk.stored(clusters.view(np.uint64) << np.uint64(self._geometry.cluster_bits))
        holes = clusters[~stored]
        self._places[holes] = _ZEROS
        self.zero_clusters += len(holes)
        return clusters[stored]

    def _copy_some(
        self, file: ClusterFile, packer: Packer, clusters: NDArray[np.int64], pool: ThreadPoolExecutor
    ) -> None:
        cipher = self._cipher_of(clusters)
        data = self._read(clusters, cipher)
        kept = np.ones(len(clusters), dtype=bool)
        if self._finds_zeros:
            kept = ~self._are_zeros(data, clusters)
            self._places[clusters[~kept]] = _ZEROS
            self.zero_clusters += len(clusters) - int(np.count_nonzero(kept))
        counts = self._census.counts
        if self._compress is not None:
            rows = np.flatnonzero(kept & ~self._census.fixed[clusters]).tolist()
            for row, packed in zip(rows, pool.map(self._compress, [data[row].tobytes() for row in rows]), strict=True):
                if len(packed) < self._geometry.cluster_size:
                    cluster = int(clusters[row])
                    packer.add(cluster, packed, int(counts[cluster]))
                    kept[row] = False
                    self.compressed_clusters += 1
        chosen = clusters[kept]
        self.data_clusters += len(chosen)
        if len(chosen):
            whole = np.ascontiguousarray(data if kept.all() else data[kept])
            bytes_of = memoryview(whole.data).cast("B")
            if cipher is not None:
                bytes_of = memoryview(cipher.encrypted(bytes_of, file.length, 0))
            start = file.append(bytes_of, counts[chosen])
            self._places[chosen] = start + np.arange(len(chosen), dtype=np.uint64) * np.uint64(data.shape[1])

    def _read(self, clusters: NDArray[np.int64], cipher: GuestCipher | None) -> NDArray[np.uint8]:
        """Return the contents of ascending clusters, decrypted, shape (n, bytes of a cluster)."""
        size = self._geometry.cluster_size
        data = np.empty((len(clusters), size), dtype=np.uint8)
        buffer = memoryview(data.data).cast("B")
        edges = [0, *(np.flatnonzero(np.diff(clusters) != 1) + 1).tolist(), len(clusters)]
        for first, end in pairwise(edges):
            part = buffer[first * size : end * size]
            if cipher is not None:
                cipher.read_into(self._store, part, int(clusters[first]) * size, 0)
                continue
            done = self._store.readinto_at(part, int(clusters[first]) * size)
            part[done:] = bytes(len(part) - done)  # The last cluster of a file may be cut short.
        return data

    def _are_zeros(self, data: NDArray[np.uint8], clusters: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which clusters hold nothing but zeros, as far as they are needed."""
        parts = data.view(np.uint64).reshape(len(data), self._geometry.subclusters, -1)
        needed = self._census.needed[clusters, None] >> np.arange(parts.shape[1], dtype=self._census.needed.dtype) & 1
        needed = needed.astype(bool)
        # Most data shows in the first word.
        suspects = np.flatnonzero(~((parts[:, :, 0] != 0) & needed).any(axis=1))
        found = np.zeros(len(data), dtype=bool)
        found[suspects] = ~((np.bitwise_or.reduce(parts[suspects], axis=2) != 0) & needed[suspects]).any(axis=1)
        return found

    def _copy_packed(self, file: ClusterFile) -> None:
        """Copy what is compressed already, piece by piece, with the gaps closed."""
        if not len(self._packed):
            return
        plan = PackedPlan(self._census.packed, self._census.packed_counts, self._geometry)
        base = file.length
        tables.require_nameable(base, plan.length, self._geometry)
        offset_mask = np.uint64(tables.compressed_masks(self._geometry.cluster_bits)[0])
        words = plan.words & ~offset_mask | (plan.offsets + base).astype(np.uint64)
        self._packed[np.searchsorted(self._census.packed, plan.words)] = words
        step = max(_READ_BYTES, self._geometry.cluster_size)
        pending = bytearray()
        for start, end in plan.runs:
            for at in range(start, end, step):
                length = min(step, end - at)
                pending += self._store.pread(length, at).ljust(length, b"\0")
                if len(pending) >= step:
                    self._append_packed(file, plan, base, pending, len(pending) >> self._geometry.cluster_bits)
        self._append_packed(file, plan, base, pending, self._geometry.clusters(len(pending)))

    def _append_packed(self, file: ClusterFile, plan: PackedPlan, base: int, pending: bytearray, clusters: int) -> None:
        """Append the first clusters of what waits."""
        length = clusters << self._geometry.cluster_bits
        first = file.length - base >> self._geometry.cluster_bits
        file.append(bytes(pending[:length]), plan.counts[first : first + clusters])
        del pending[:length]

    # --- tables ---

    def _copy_tables(self, file: ClusterFile) -> U64Array:
        """Copy the L2 tables that hold anything; return the new L1 entry of each, 0 for the others."""
        found = self._census.tables
        times = found.active + found.snapshot
        new = np.zeros(len(found.offsets), dtype=np.uint64)
        done = 0
        for batch in self._census.batches():
            words = self._renamed(batch)
            count = len(batch.offsets)
            rows = np.flatnonzero(words.any(axis=1))
            if len(rows):
                start = file.append(_stored(words[rows]), times[done + rows])
                places = start + np.arange(len(rows), dtype=np.uint64) * np.uint64(self._geometry.cluster_size)
                new[done + rows] = places | _copied(times[done + rows])
            done += count
        return new

    def _renamed(self, batch: L2Batch) -> U64Array:
        """Return L2 tables with the new places; shape (tables, words of a table)."""
        geometry = self._geometry
        old, bitmaps = batch.entries, batch.bitmaps
        if geometry.external_data:
            return old if bitmaps is None else np.stack((old, bitmaps), axis=2).reshape(len(old), -1)
        new = np.zeros(old.shape, dtype=np.uint64)
        packed = (old & np.uint64(tables.L2_COMPRESSED)) != 0
        if packed.any():
            new[packed] = self._packed[np.searchsorted(self._census.packed, old[packed])]
        needed = needs_cluster(old, bitmaps)
        clusters = (old[needed] & np.uint64(tables.L2_OFFSET)) >> np.uint64(geometry.cluster_bits)
        places = self._places[clusters]
        plain = (places != _ZEROS) & ((places & np.uint64(tables.L2_COMPRESSED)) == 0)
        copied = np.where(plain, _copied(self._census.counts[clusters]), np.uint64(0))
        new[needed] = np.where(places != _ZEROS, places | copied, np.uint64(0))
        if bitmaps is None:
            if self._has_backing and geometry.has_zero_bit:
                zero = ~packed & ((old & np.uint64(tables.L2_ZERO)) != 0)
                zero |= needed & (new == 0)
                new[zero] = tables.L2_ZERO
            return new
        shift = np.uint64(tables.SUBCLUSTERS_ZERO_SHIFT)
        states = np.where(packed, np.uint64(0), bitmaps)
        states[(new & np.uint64(tables.L2_COMPRESSED)) != 0] = 0
        emptied = needed & (new == 0)
        states[emptied] = states[emptied] >> shift << shift | (states[emptied] & np.uint64(self._census.whole)) << shift
        if not self._has_backing:
            states[new == 0] = 0
        return np.stack((new, states), axis=2).reshape(len(old), -1)

    def _copy_l1(self, file: ClusterFile, state: State, new: U64Array) -> int:
        """Copy the L1 table of a state; return its offset, 0 for a table without entries."""
        if not state.l1_entries:
            return 0
        offsets = self._walk.l1_table(state) & np.uint64(tables.L1_OFFSET)
        known = self._census.tables.offsets
        if len(known):
            rows = np.minimum(np.searchsorted(known, offsets), len(known) - 1)
            words = np.where(known[rows] == offsets, new[rows], np.uint64(0))
            words[offsets == 0] = 0
        else:
            words = np.zeros(len(offsets), dtype=np.uint64)
        return file.append(_stored(words))

    # --- what names the tables ---

    def _copy_states(self, file: ClusterFile, new: U64Array) -> dict[str, int]:
        """Copy the L1 tables and the snapshot table; return the header fields that name them."""
        fields = {"l1_size": self._l1_entries, "nb_snapshots": self.snapshots, "snapshots_offset": 0}
        table = bytearray()
        at = SNAPSHOT_HEADER["l1_table_offset"]
        for state in self._walk.states():
            offset = self._copy_l1(file, state, new)
            if state.index == ACTIVE:
                fields["l1_table_offset"] = offset
                continue
            span = self._walk.snapshots.records[state.index].span
            record = bytearray(self._store.pread(span.length, span.offset).ljust(span.length, b"\0"))
            record[at.offset : at.offset + at.size] = layout.stored_integer(offset, at.size)
            table += record.ljust(aligned(len(record)), b"\0")
        if table:
            fields["snapshots_offset"] = file.append(bytes(table))
        return fields

    def _copy_bitmaps(self, file: ClusterFile) -> bytes | None:
        """Copy bitmap tables and directory; return the data of the extension, None where there are no bitmaps.

        Bitmaps that the header does not vouch for are left out: they may not be used.
        """
        directory = bytearray()
        at = BITMAP_DIRECTORY_HEADER["bitmap_table_offset"]
        for record in self._walk.bitmaps.records:
            words = self._census.bitmap_table(record)
            rows = np.flatnonzero(words & np.uint64(tables.BITMAP_OFFSET))
            places = self._places[words[rows] >> np.uint64(self._geometry.cluster_bits)]
            words[rows] = np.where(places != _ZEROS, places, np.uint64(0))
            offset = file.append(_stored(words))
            span = record.span
            entry = bytearray(self._store.pread(span.length, span.offset).ljust(span.length, b"\0"))
            entry[at.offset : at.offset + at.size] = layout.stored_integer(offset, at.size)
            directory += entry
        if not directory:
            return None
        values = {
            "nb_bitmaps": self.bitmaps,
            "bitmap_directory_size": len(directory),
            "bitmap_directory_offset": file.append(bytes(directory)),
        }
        return BITMAPS_EXTENSION.packed(values)

    def _copy_encryption_header(self, file: ClusterFile) -> dict[int, tuple[int, bytes]]:
        """Copy LUKS header and key material; return the extension that names them, by its type."""
        pointer = self._header.encryption_header
        if pointer is None:
            return {}
        header = self._store.pread(pointer.length, pointer.offset).ljust(pointer.length, b"\0")
        values = {"offset": file.append(header), "length": pointer.length}
        kind = ExtensionType.ENCRYPTION_HEADER
        return {kind: (kind, ENCRYPTION_HEADER_POINTER.packed(values))}

    def _features(self) -> dict[str, int]:
        """Return the feature bits of the copy: refcounts are right, and what is unknown is not vouched for."""
        if self._header.version < Version.V3:
            return {}
        known = AUTOCLEAR_FEATURES.flags(data_file_raw=True, bitmaps=self.bitmaps > 0)
        return {
            "incompatible_features": self._header.incompatible_features & ~INCOMPATIBLE_FEATURES.flags(dirty=True),
            "autoclear_features": self._header.autoclear_features & known,
        }


def _copied(counts: NDArray[np.unsignedinteger[Any]]) -> U64Array:
    """Return the copied bit, which L1 and L2 entries share, for what is referenced once, else 0; shape of `counts`."""
    found: U64Array = np.where(counts == 1, np.uint64(tables.L2_COPIED), np.uint64(0))
    return found


def _stored(words: U64Array) -> memoryview:
    """Return words as they are stored."""
    return memoryview(words.astype(">u8").data).cast("B")
