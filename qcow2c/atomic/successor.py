"""What an image will be after one write of its first sector: other tables and other refcounts, built in free space.

Bytes 36 to 71 of the header name the L1 table, the refcount table and the snapshot table, and lie with the size of the
disk in one sector, which is never torn. So everything that an operation on a whole image changes is written where
nothing is yet, made durable, and named by one write: the image is wholly what it was, or wholly what it will be, and
its refcounts are exact in both. Spec: "Header", "Host cluster management".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.atomic.copied_bits import corrected
from qcow2c.atomic.free_space import FreeSpace
from qcow2c.atomic.in_place import InPlace
from qcow2c.atomic.new_refcounts import NewRefcounts
from qcow2c.atomic.refcounts import RefcountChange, ReferenceDelta
from qcow2c.constants import Limit, Version
from qcow2c.errors import LimitExceeded, Qcow2Error, Span, StoreError, warn_of_space
from qcow2c.format import tables
from qcow2c.format.derived import AUTOCLEAR_FEATURES, INCOMPATIBLE_FEATURES
from qcow2c.format.geometry import ClusterRun, Geometry
from qcow2c.format.header import Header
from qcow2c.format.header_writer import Extensions, HeaderChange
from qcow2c.format.loaded_image import load_image
from qcow2c.format.records import SnapshotTable
from qcow2c.references.admission import Admission, admit, trusted
from qcow2c.references.batches import batches
from qcow2c.references.cluster_set import ClusterSet
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.walk import ACTIVE, L2Batch, L2Tables, State, Walk, distinct_tables
from qcow2c.storage.locks import Use
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.storage.store import Buffer, lacks_room
from qcow2c.storage.trailing_data import trailing_data
from qcow2c.writer.header_update import HeaderUpdate, change_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

_DIRTY = INCOMPATIBLE_FEATURES["dirty"].mask
_UNKNOWN_AUTOCLEAR = AUTOCLEAR_FEATURES.reserved


@contextmanager
def changing(source: Source | Store, *, trust: bool = False, refcount_order: int | None = None) -> Iterator[Successor]:
    """Open an image to change it as a whole: alone, and with verified refcounts, unless they are to be trusted.

    With `refcount_order` refcounts get another width. Backing files and data files are not opened.
    Raises as `qcow2c.open` with "r+".
    """
    with opened(source, Use.WRITABLE_IMAGE) as store:
        header, snapshots, _notices = load_image(store)
        admission = (trusted if trust else admit)(store, header, snapshots)
        image = Successor(Medium(store, header.cluster_size), header, snapshots, admission, refcount_order)
        try:
            yield image
        except BaseException:
            image.undo()
            raise


def freeing(image: Successor, change: Callable[[Successor], object]) -> None:
    """Let a change that only gives clusters back be made, even where there is no room for what is new of it.

    `change` says what the successor is, and switches to it. It is called again where there was no room, for one that
    does it in place: see `in_place.py` for what a crash leaves then.
    """
    try:
        change(image)
    except StoreError as exc:
        if not (lacks_room(exc) and image.can_be_undone):
            raise
        image.undo()
        other = image.anew(in_place=True)
        try:
            change(other)
        except StoreError as again:
            other.undo()
            raise exc from again


class Successor:
    """An image that is yet to be. Nothing of the present one is touched before `switch`."""

    def __init__(
        self,
        medium: Medium,
        header: Header,
        snapshots: SnapshotTable,
        admission: Admission,
        refcount_order: int | None = None,
        *,
        in_place: bool = False,
    ) -> None:
        """Nothing else may write the image meanwhile. With another `refcount_order` all refcounts are written anew.

        `in_place` is for what only gives clusters back: it takes no room, and is in `in_place.py`. Raises
        LimitExceeded.
        """
        self._admission = admission
        self._former_size = medium.store.size()
        self._switching = False
        self._placed: list[ClusterRun] = []
        self.header = header
        self.geometry: Geometry = header.geometry
        self.snapshots = snapshots
        self.walk = Walk(medium.store, header, snapshots)
        self.medium = medium
        self._renewed = False
        self._bits = self.geometry.cluster_bits
        self._delta = ReferenceDelta(self.walk)
        self._present = StoredRefcounts(self.walk)
        order = header.refcount_order if refcount_order is None else refcount_order
        self._new = RefcountChange(self.walk, self._present, self._delta, order)
        self._fields = {} if refcount_order is None else {"refcount_order": refcount_order}
        self._extensions: Extensions | None = None
        self.in_place = InPlace(self.walk, medium, self._new) if in_place else None
        self._verified = admission.verified
        self._trailing: Span | None = None
        uncounted = ClusterSet(ClusterRun(cluster, cluster + 1) for cluster, _ in admission.undercounted)
        self._kept_away = uncounted if admission.verified else admission.metadata
        self._free = FreeSpace(self._is_used, self.geometry.clusters(self.walk.size))
        if admission.undercounted:
            clusters, references = np.array(admission.undercounted, dtype=np.int64).T
            for cluster, missing in zip(clusters, references - self._new.at(clusters).view(np.int64), strict=True):
                self._delta.add_run(int(cluster), 1, int(missing))
        if header.version >= Version.V3:
            self._fields["incompatible_features"] = header.incompatible_features & ~_DIRTY
            self._fields["autoclear_features"] = header.autoclear_features & ~_UNKNOWN_AUTOCLEAR

    # --- what there is ---

    def active_l1(self) -> U64Array:
        """Return the entries of the active L1 table, shape (l1_size,)."""
        return self.walk.l1_table(State(ACTIVE, self.header.l1_table_offset, self.header.l1_size, self.header.size))

    def refcounts(self, first: int, count: int) -> U64Array:
        """Return the present refcounts of clusters; shape (count,)."""
        return self._present.counts(first, count)

    def refcount_clusters(self) -> set[int]:
        """Return the clusters of the present refcount table and of its blocks."""
        first = self.header.refcount_table_offset >> self._bits
        blocks = self._present.table >> np.uint64(self._bits)
        return {*range(first, first + self.header.refcount_table_clusters), *blocks[blocks != 0].tolist()}

    def trailing_data(self) -> Span | None:
        """Return what lies in the file behind the last cluster in use, None where that is nothing or not known."""
        if not self._verified:
            return None
        return trailing_data(self.medium.store, self._new.end(self.geometry.clusters(self.walk.size)) << self._bits)

    def keep(self, trailing: Span | None) -> None:
        """Leave these bytes of the file, which are not the image's, as they are, whatever `switch` does."""
        self._trailing = trailing

    @property
    def kept_clusters(self) -> int:
        """How many clusters, none of them in use, hold what `keep` was told."""
        kept = self._trailing
        return 0 if kept is None else self.geometry.clusters(kept.end) - (kept.offset >> self._bits)

    def _is_used(self, first: int, end: int) -> NDArray[np.bool_]:
        used: NDArray[np.bool_] = self.refcounts(first, end - first) != 0
        if self._trailing is not None:
            start = self._trailing.offset >> self._bits
            used[max(0, start - first) : max(0, self.geometry.clusters(self._trailing.end) - first)] = True
        for start, stop in self._kept_away.within(first, end):
            used[start - first : stop - first] = True
        return used

    # --- what is to change ---

    def add_references(self, l1_words: U64Array, weight: int) -> None:
        """Count everything that an L1 table reaches `weight` times more."""
        self._delta.add_tables(l1_words, weight)

    def add_entries(self, words: U64Array, weight: int) -> None:
        """Count what the words of one L2 table name `weight` times more."""
        one, none = np.ones(1, dtype=np.uint64), np.zeros(1, dtype=np.uint64)
        entries, bitmaps = (words[0::2], words[1::2]) if self.geometry.extended_l2 else (words, None)
        batch = L2Batch(one, one, none, entries.reshape(1, -1), None if bitmaps is None else bitmaps.reshape(1, -1))
        self._delta.add_entries(batch, weight)

    def count(self, offset: int, length: int, weight: int) -> None:
        """Count the clusters of a structure `weight` times more."""
        first = offset >> self._bits
        self._delta.add_run(first, (offset + length - 1 >> self._bits) - first + 1, weight)

    def place(self, data: Buffer, weight: int = 1) -> int:
        """Write a structure in free space, where its clusters lie together; return its host offset. Raises StoreError.

        Its clusters will have refcount `weight`.
        """
        return self.place_by(len(data), lambda _host_offset: data, weight)

    def place_by(self, length: int, data_at: Callable[[int], Buffer], weight: int = 1) -> int:
        """Do what `place` does with data that depend on where they lie."""
        clusters = self.geometry.clusters(length)
        first = self._free.take(clusters)
        self._delta.add_run(first, clusters, weight)
        self._write([data_at(first << self._bits), bytes((clusters << self._bits) - length)], first)
        return first << self._bits

    def _write(self, parts: Sequence[Buffer], first: int) -> None:
        end = first + self.geometry.clusters(sum(map(len, parts)))
        self._require_nameable(end)
        self._placed.append(ClusterRun(first, end))
        self.medium.write_with_holes(parts, first << self._bits)

    def _require_nameable(self, end: int) -> None:
        if end << self._bits > Limit.HOST_OFFSET_END:
            raise LimitExceeded(f"no table can name cluster {end - 1}", spec="Cluster mapping")

    def append(self, length: int) -> int:
        """Take clusters behind all that the file holds, where it reads as zeros once it reaches so far; their offset.

        They are yet to be counted. Raises LimitExceeded.
        """
        clusters = self.geometry.clusters(length)
        self._require_nameable(self.geometry.clusters(self.walk.size) + clusters)  # Before so many are looked at.
        first = self._free.take_behind(clusters)
        self._require_nameable(first + clusters)
        return first << self._bits

    def set_fields(self, **values: int) -> None:
        """Set header fields, by their names in the specification."""
        self._fields.update(values)

    def set_extensions(self, change: HeaderChange) -> None:
        """Let the header have other extensions, and the fields that belong to them."""
        self._extensions = change.extensions
        self._fields |= change.fields
        self._fields["autoclear_features"] &= ~_UNKNOWN_AUTOCLEAR

    def renew_refcounts(self) -> None:
        """Write all refcounts anew: blocks of unused clusters are released."""
        self._renewed = True

    def set_active(self, l1_words: U64Array, *, holders: int = 1) -> U64Array:
        """Give the active state other L1 entries, all of which have been counted; return them with right copied bits.

        L2 tables in which a copied bit would be wrong are written anew. `holders` is how many L1 tables of the
        successor have these very entries. The present L1 table is released, unless it can stay.
        """
        old = self.active_l1()
        if self.in_place is not None:
            self.in_place.l1_words = l1_words
            kept = self.header.l1_table_offset + self.geometry.clusters(l1_words.nbytes) * self.geometry.cluster_size
            end = self.header.l1_table_offset + old.nbytes
            if kept < end:
                self.count(kept, end - kept, -1)
            self._fields["l1_size"] = len(l1_words)
            return l1_words
        words = self._reflagged(l1_words.copy(), holders)
        if not np.array_equal(words, old):
            self.count(self.header.l1_table_offset, old.nbytes, -1)
            self._fields["l1_table_offset"] = self.place(stored_words(words)) if len(words) else 0
            self._fields["l1_size"] = len(words)
        return words

    # --- copied bits ---

    def _reflagged(self, words: U64Array, holders: int) -> U64Array:
        """Return L1 entries whose copied bits, and those of their L2 tables, say which refcounts will be 1.

        Where all are entries of the active state, and no cluster begins or ceases to be shared, what is right stays so.
        """
        old = self.active_l1()
        strange = words.copy()
        strange[: len(old)][words[: len(old)] == old[: len(words)]] = 0
        if not strange.any() and not self._new.sharing_changes():
            return words
        offsets, times = distinct_tables(words)
        moved = offsets.copy()
        if not self.geometry.external_data:
            once = self._new.counted_once(self.geometry.clusters(self.medium.store.size()))
            found = L2Tables(offsets, times, np.zeros(len(offsets), dtype=np.uint64))
            for row, batch in batches(self.walk, found):
                self._move_tables(row, batch, once, moved, times.astype(np.int64) * holders)
        counts = self._new.at((moved >> np.uint64(self._bits)).view(np.int64))
        named = np.flatnonzero(words)
        rows = np.searchsorted(offsets, words[named] & np.uint64(tables.L1_OFFSET))
        copied = np.where(counts[rows] == 1, np.uint64(tables.L1_COPIED), np.uint64(0))
        words[named] = moved[rows] | copied
        return words

    def _move_tables(
        self, row: int, batch: L2Batch, once: NDArray[np.bool_], moved: U64Array, references: NDArray[np.int64]
    ) -> None:
        """Write L2 tables with wrong copied bits anew, and note where they are."""
        changed, fixed = corrected(batch, once, self._bits)
        done = 0
        while done < len(changed):
            first, count = self._free.take_some(len(changed) - done)
            self._write([stored_words(fixed[done : done + count])], first)
            for number, position in enumerate((changed[done : done + count] + row).tolist()):
                self._delta.add_run(int(moved[position]) >> self._bits, 1, -int(references[position]))
                self._delta.add_run(first + number, 1, int(references[position]))
                moved[position] = first + number << self._bits
            done += count

    # --- the switch ---

    def _build_refcounts(self) -> None:
        new = NewRefcounts(self.header, self._present, self._new, self._delta, self._free, self._write)
        self._fields |= new.build(anew=self._renewed or self._new.order != self.geometry.refcount_order)

    def switch(self, *, discard: bool = False, shorten: bool = False) -> None:
        """Let the image be its successor; `discard` gives the space of what it releases back to the system.

        With `shorten` the file ends with the last cluster in use, unless it was not verified which that is, or behind
        what `keep` was told.
        Durable order: everything new, the header's first sector, then the space. A crash leaves what was, or what will
        be: neither has leaks, but the file may be longer. What cannot be given back is a warning, `SpaceKept`. Raises
        StoreError, LimitExceeded, CorruptMetadata.
        """
        if self.in_place is None:
            self._build_refcounts()
        else:
            self.in_place.raise_refcounts()
        freed = self._new.freed(self.geometry.clusters(self.walk.size)) if discard else []
        store = self.medium.store
        file_end = self._shorter_end() if shorten and self._verified else None
        self._switching = True
        if self.in_place is None:
            self._write_header(dirty=False)
        else:
            self._write_header(dirty=self.header.version >= Version.V3)
            self.in_place.drop_references()
            self.in_place.correct_copied_bits()
            if self.header.version >= Version.V3:
                HeaderUpdate(self.medium).write(incompatible_features=self._fields["incompatible_features"])
        kept: StoreError | None = None
        try:
            for edges in freed:
                for start, end in edges.reshape(-1, 2).tolist():
                    self.medium.punch(start << self._bits, end - start << self._bits)
        except StoreError as exc:  # It is free all the same: the next writes use it.
            kept = exc
        self.medium.flush()
        try:
            if file_end is not None and file_end < store.size():
                store.truncate(file_end)
        except StoreError as exc:
            kept = exc
        if kept is not None:
            warn_of_space(kept)

    def _write_header(self, *, dirty: bool) -> None:
        fields = dict(self._fields)
        if dirty:
            fields["incompatible_features"] |= _DIRTY
        if self._extensions is not None:
            change_header(self.medium, self.header, HeaderChange(fields, self._extensions))
        else:
            HeaderUpdate(self.medium).write(**fields)

    def undo(self) -> None:
        """Give back the room of what was placed, unless the header may name it: the file is as long as it was."""
        if self._switching or not self.medium.sound:
            return
        with suppress(Qcow2Error):
            inside = self._former_size >> self._bits
            for first, end in self._placed:
                if first < inside:
                    self.medium.punch(first << self._bits, min(end, inside) - first << self._bits)
            if self.medium.store.size() > self._former_size:
                self.medium.store.truncate(self._former_size)

    def anew(self, *, in_place: bool) -> Successor:
        """Return another successor of the same image, after this one was undone."""
        return Successor(self.medium, self.header, self.snapshots, self._admission, in_place=in_place)

    @property
    def can_be_undone(self) -> bool:
        """Whether the header surely names nothing of it yet."""
        return not self._switching and self.medium.sound

    def _shorter_end(self) -> int:
        """Return where the file can end: behind the last cluster that will be in use, and what is to be kept."""
        used_end = self._new.end(self.geometry.clusters(self.medium.store.size())) << self._bits
        return used_end if self._trailing is None else max(used_end, self._trailing.end)


def stored_words(words: U64Array) -> bytes:
    """Return words as they are stored."""
    return words.astype(">u8").tobytes()
