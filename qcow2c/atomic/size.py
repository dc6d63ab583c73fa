"""A disk of another size: cut off where it is to end, or was to end, and continued with zeros.

All of it is one write of the header (see `successor.py`): the image has its old size with what it held, or its new one.
Clusters, tables and VM state behind the cut are released; what is left of the last cluster is followed by zeros, also
where it cannot be seen yet. Spec: "Header", "Cluster mapping".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.atomic.successor import Successor, stored_words
from qcow2c.bitmaps.edit import resized
from qcow2c.constants import Limit
from qcow2c.errors import LimitExceeded, UnsupportedFeature
from qcow2c.format.tables import (
    L1_COPIED,
    L1_OFFSET,
    L2_COMPRESSED,
    L2_COPIED,
    L2_OFFSET,
    L2_ZERO,
    SUBCLUSTERS_ALLOCATED,
    SUBCLUSTERS_ZERO_SHIFT,
)
from qcow2c.layers.reader import Reader
from qcow2c.references.batches import SCAN_CLUSTERS
from qcow2c.references.walk import BATCH_BYTES
from qcow2c.storage.medium import Medium
from qcow2c.storage.preallocation import Preallocation, extend
from qcow2c.storage.trailing_data import trailing_data
from qcow2c.storage.zeros import fill_zeros

if TYPE_CHECKING:
    from qcow2c.format.array_types import U64Array

_HOLES, _HOLES_SHARE = 16, 4
"""Clusters of the file, and share of those in use, that may be free after a disk was made smaller."""


class Resizing:
    """One change of size; the layer is at rest."""

    def __init__(
        self,
        image: Successor,
        layer: Reader,
        data: Medium,
        size: int,
        preallocation: Preallocation,
        *,
        moves: bool = False,
        drop_trailing: bool = False,
    ) -> None:
        """`data` holds the layer's guest data. `moves`: the size is this one already, and what the cut goes through is
        to lie somewhere else. `drop_trailing` gives up what lies in an external data file behind the disk.
        """
        self._drop_trailing = drop_trailing
        self._moves = moves
        self._image = image
        self._layer = layer
        self._data = data
        self._geometry = image.geometry
        self._size = size
        self._cut = min(size, image.header.size)
        self._grows = size > image.header.size
        below = layer.backing
        self._hides = self._grows and below is not None and below.disk_size > self._cut
        """The backing file would show in what is new."""
        self._zeros_are_data = layer.cipher is None
        """Whether zeros in the file are zeros of the disk."""
        raw = image.header.external_data and image.header.data_file_raw
        # A raw data file is the disk only if all clusters are in it.
        self._preallocation = "metadata" if raw and self._grows and preallocation == "off" else preallocation
        self._hides |= self._preallocation != "off" and not self._zeros_are_data

    def run(self) -> None:
        geometry, image = self._geometry, self._image
        self._change_bitmaps()
        first, end = geometry.clusters(self._cut), geometry.clusters(self._size)
        as_data = self._preallocation in ("falloc", "full") and self._zeros_are_data
        whole = self._hides and first < end and not as_data
        if whole and not (geometry.has_zero_bit or geometry.extended_l2):
            raise UnsupportedFeature("Failed to zero out new clusters: Operation not supported")
        if geometry.external_data and self._grows:
            extend(self._data.store, self._cut, self._size, self._preallocation, self._data.flush_directly)
        old = image.active_l1()
        words = np.zeros(geometry.l1_entries(self._size), dtype=np.uint64)
        kept = geometry.l1_entries(self._cut)
        words[:kept] = old[:kept]
        image.add_references(old[kept:], -1)
        host = self._data_clusters(end - first)
        filled = self._preallocation != "off" or self._hides
        if self._cut >> geometry.l2_coverage_bits < kept:  # The cut goes through a table.
            words[kept - 1] = self._cut_table(int(words[kept - 1]), first, min(end, kept << geometry.l2_bits), host)
        if filled:
            self._add_tables(words, kept << geometry.l2_bits, end, first, host)
        image.set_active(words)
        image.set_fields(size=self._size)
        image.switch(discard=True, shorten=True)
        if geometry.external_data and not self._grows and self._data.store.size() > self._size:
            self._shorten_data_file()

    def _shorten_data_file(self) -> None:
        """Cut the external data file off where the disk ends, or zero it where something lies behind the disk."""
        store, geometry = self._data.store, self._geometry
        old_end = geometry.clusters(self._image.header.size) << geometry.cluster_bits
        if not self._drop_trailing and trailing_data(store, old_end) is not None:
            self._data.write_zeroes(self._size, old_end - self._size)
        else:
            store.truncate(self._size)
        self._data.flush_directly()

    def move(self) -> None:
        """Place tables, refcounts and what the cut goes through anew, where they lie behind holes that hold them."""
        image, size = self._image, self._geometry.clusters(self._image.walk.size)
        steps = range(0, size, SCAN_CLUSTERS)
        used = sum(int(np.count_nonzero(image.refcounts(at, min(SCAN_CLUSTERS, size - at)))) for at in steps)
        holes = size - used - image.kept_clusters
        if holes <= used // _HOLES_SHARE + _HOLES and not self._is_behind_holes(size, holes):
            return
        words = image.active_l1()
        if self._cut >> self._geometry.l2_coverage_bits < len(words) and int(words[-1]) & L1_COPIED:
            words[-1] = self._cut_table(int(words[-1]), 0, 0, 0)
        if np.array_equal(image.set_active(words), image.active_l1()):
            image.count(image.header.l1_table_offset, words.nbytes, -1)
            image.set_fields(l1_table_offset=image.place(stored_words(words)))
        image.renew_refcounts()
        image.switch(discard=True, shorten=True)

    def _is_behind_holes(self, end: int, holes: int) -> bool:
        """Return whether the file, of `end` clusters with so many holes, is short if what can move goes into them."""
        image, bits = self._image, self._geometry.cluster_bits
        movable = image.refcount_clusters()
        words = image.active_l1()
        first = image.header.l1_table_offset >> bits
        movable.update(range(first, first + self._geometry.clusters(words.nbytes)))
        if len(words):
            movable.add((int(words[-1]) & L1_OFFSET) >> bits)
        if len(movable) > holes:
            return False
        behind = end
        while behind - 1 in movable or not int(image.refcounts(behind - 1, 1)[0]):
            behind -= 1
        return behind < end

    # --- space ---

    def _data_clusters(self, clusters: int) -> int:
        """Return the host offset of clusters for what is new, which hold zeros; 0 where it needs none."""
        if self._geometry.external_data or self._preallocation == "off" or not clusters:
            return 0
        if clusters > Limit.CHECKED_CLUSTERS:
            raise LimitExceeded(f"{clusters} clusters are more than a file may have, {Limit.CHECKED_CLUSTERS}")
        length = clusters << self._geometry.cluster_bits
        image = self._image.medium
        host = self._image.append(length)
        self._image.count(host, length, 1)
        extend(image.store, host, host + length, self._preallocation, image.flush_directly)
        return host

    # --- tables ---

    def _cut_table(self, l1_word: int, first: int, end: int, host: int) -> int:
        """Return the L1 entry of the table through which the cut goes.

        `first` is the first guest cluster behind the cut, `end` the end of those that the table is to map.
        """
        geometry, image = self._geometry, self._image
        at, words_each = l1_word & L1_OFFSET, geometry.l2_entry_words
        old = image.walk.words(at, geometry.words_per_cluster) if at else np.zeros(geometry.words_per_cluster, "u8")
        new = old.copy()
        inside = (self._cut >> geometry.cluster_bits) & (geometry.l2_entries - 1)
        if self._cut & (geometry.cluster_size - 1):
            self._cut_cluster(new[inside * words_each : (inside + 1) * words_each])
            inside += 1
        new[inside * words_each :] = 0
        counted = new.copy()
        if self._preallocation != "off" or self._hides:
            new[inside * words_each : (inside + end - first) * words_each] = self._entries(first, end, first, host)
        if np.array_equal(old, new) and not self._moves:
            return l1_word
        if at:
            image.add_entries(old, -1)
        image.add_entries(counted, 1)
        if image.in_place is not None and l1_word & L1_COPIED:
            image.in_place.overwrite(at, stored_words(new))
            return l1_word
        if at:
            image.count(at, geometry.cluster_size, -1)
        return image.place(stored_words(new)) | L1_COPIED

    def _cut_cluster(self, entry: U64Array) -> None:
        """Change the entry of the cluster through which the cut goes so that zeros follow."""
        geometry, header = self._geometry, self._image.header
        descriptor = int(entry[0])
        if not self._grows and (geometry.external_data or not descriptor & (L2_OFFSET | L2_COMPRESSED)):
            return  # A data file is made short; what the backing file would show is hidden when the disk grows.
        start = self._cut & -geometry.cluster_size
        content = bytearray(geometry.cluster_size)
        future = self._layer.state(header.l1_table_offset, header.l1_size, start + geometry.cluster_size)
        future.read_into(memoryview(content), start)
        tail = memoryview(content)[self._cut - start :]
        reserves = self._preallocation != "off" and not descriptor & L2_COPIED
        own = descriptor & (L2_COPIED | L2_COMPRESSED | L2_ZERO) == L2_COPIED
        moves = self._moves and own and all(entry[1:] == SUBCLUSTERS_ALLOCATED)
        if not (reserves or moves or content.count(0, self._cut - start) < len(tail)):
            if own:
                self._reserve((descriptor & L2_OFFSET) + self._cut - start, len(tail))
            return
        fill_zeros(tail)
        if self._image.in_place is not None and own:
            host, kept = descriptor & L2_OFFSET, self._cut - start
            self._image.in_place.overwrite(host + kept, bytes(self._stored(content, host, start)[kept:]))
            return
        if geometry.external_data:
            self._data.write((memoryview(self._stored(content, start, start))[: self._size - start],), start)
            self._data.flush()
            host = start
        else:
            host = self._image.place_by(len(content), lambda host_offset: self._stored(content, host_offset, start), 0)
            self._reserve(host, len(content))
        entry[0] = host | L2_COPIED
        entry[1:] = SUBCLUSTERS_ALLOCATED

    def _reserve(self, host_offset: int, length: int) -> None:
        """Let what is written later into a cluster of the image have its space, where space is preallocated."""
        if self._preallocation in ("falloc", "full") and not self._geometry.external_data:
            self._image.medium.store.allocate(host_offset, length)

    def _stored(self, content: bytearray, host_offset: int, guest_offset: int) -> bytearray:
        """Return a cluster as it is in the file."""
        cipher = self._layer.cipher
        return content if cipher is None else cipher.encrypted(content, host_offset, guest_offset)

    def _add_tables(self, l1_words: U64Array, start: int, end: int, first: int, host: int) -> None:
        """Place tables for the guest clusters `start` to `end`, which no table maps, and enter them."""
        geometry, size = self._geometry, self._geometry.cluster_size
        step = max(1, BATCH_BYTES // size) << geometry.l2_bits
        for part in range(start, end, step):
            stop = min(end, part + step)
            at = self._image.place(stored_words(self._entries(part, stop, first, host)))
            tables = -(-(stop - part) >> geometry.l2_bits)
            places = np.arange(at, at + tables * size, size, dtype=np.uint64) | np.uint64(L1_COPIED)
            l1_words[part >> geometry.l2_bits : (part >> geometry.l2_bits) + tables] = places

    def _entries(self, start: int, end: int, first: int, host: int) -> U64Array:
        """Return the words of the entries of new guest clusters; that of `first` is at `host`."""
        geometry = self._geometry
        count = max(0, end - start)
        found = np.zeros((count, geometry.l2_entry_words), dtype=np.uint64)
        if self._preallocation != "off":
            base = start if geometry.external_data else (host >> geometry.cluster_bits) + start - first
            clusters = np.arange(base, base + count, dtype=np.uint64)
            found[:, 0] = clusters << np.uint64(geometry.cluster_bits) | np.uint64(L2_COPIED)
        if self._hides:
            as_data = self._preallocation in ("falloc", "full") and self._zeros_are_data
            if geometry.extended_l2:
                found[:, 1] = SUBCLUSTERS_ALLOCATED if as_data else SUBCLUSTERS_ALLOCATED << SUBCLUSTERS_ZERO_SHIFT
            elif not as_data:
                found[:, 0] |= np.uint64(L2_ZERO)
        return found.reshape(-1)

    # --- bitmaps ---

    def _change_bitmaps(self) -> None:
        image = self._image
        edit = resized(image.medium.store, image.header, image.place, self._size)
        if edit.changed:
            image.set_extensions(edit.header_change())
            for offset, length in edit.released:
                image.count(offset, length, -1)
