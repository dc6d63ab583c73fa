"""The life of an image that is being written: its first change, its bitmaps, changes of its header, its clean end.

It moves no guest data and maps nothing. What has to go to the file around the changes of guest data is here, each with
its durable order.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy

from qcow2c.bitmaps.edit import BitmapEdit
from qcow2c.bitmaps.stored import PlaceClusters
from qcow2c.constants import Version
from qcow2c.errors import Qcow2Error, Span, StoreError, UsageError
from qcow2c.format.derived import AUTOCLEAR_FEATURES, INCOMPATIBLE_FEATURES
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange
from qcow2c.layers.reader import Reader
from qcow2c.light import replace
from qcow2c.references.admission import Admission
from qcow2c.storage.store import lacks_room
from qcow2c.writer.allocation import Allocation, Allocator
from qcow2c.writer.cache import MetadataCache
from qcow2c.writer.dirty_bitmaps import BitmapTracker
from qcow2c.writer.header_update import change_header

_DIRTY = INCOMPATIBLE_FEATURES["dirty"].mask

_BITMAPS = AUTOCLEAR_FEATURES["bitmaps"].mask

_UNKNOWN_AUTOCLEAR = AUTOCLEAR_FEATURES.reserved

_ATTEMPTS = 64
"""Places that are tried for what is no guest data, where there is no room."""


class Session:
    """From the first change of an image, or none, to its clean end; then it can begin again."""

    def __init__(self, reader: Reader, cache: MetadataCache, allocator: Allocator, admission: Admission) -> None:
        """`admission` says what was found when the image was let in for writing."""
        self._reader = reader
        self.admission = admission
        self._cache = cache
        self._allocator = allocator
        self._bitmaps = BitmapTracker(cache, allocator, reader.header)
        self._begun = False
        self._given_up = False
        """The header says already that bitmaps which are broken are stale."""

    def note(self, guest_offset: int, length: int) -> None:
        """Prepare for a change of guest bytes, before it is made; see `begin`. Raises StoreError."""
        self.begin()
        if self._bitmaps.problem is not None:
            self._give_up_bitmaps()
        self._bitmaps.note(guest_offset, length)

    def begin(self) -> None:
        """Prepare the image for its first change.

        Durable order: header, marks of bitmaps if guest data changes, then anything else, and first of that the end of
        the file's last cluster. A crash leaves an image
        without bits that were unknown, with bitmaps that count as stale, and, with lazy refcounts, marked dirty,
        although its refcounts are right.
        """
        if self._begun:
            return
        header = self._reader.header
        if header.version >= Version.V3:
            dirty = _DIRTY if header.lazy_refcounts else 0
            incompatible = header.incompatible_features | dirty
            stale = _UNKNOWN_AUTOCLEAR if self._bitmaps.problem is None else _UNKNOWN_AUTOCLEAR | _BITMAPS
            autoclear = header.autoclear_features & ~stale
            if (incompatible, autoclear) != (header.incompatible_features, header.autoclear_features):
                self._cache.header.write(incompatible_features=incompatible, autoclear_features=autoclear)
        self._cache.medium.end_with_whole_unit()
        for cluster, references in self.admission.undercounted:
            self._allocator.raise_refcount(cluster, references)
        self._begun = self._given_up = True

    def _give_up_bitmaps(self) -> None:
        """Let bitmaps count as stale that are broken, and not kept: also where others of them were removed before."""
        if not self._given_up:
            autoclear = Header.load(self._cache.medium.store).autoclear_features
            self._cache.header.write(autoclear_features=autoclear & ~_BITMAPS)
            self._given_up = True

    def finish(self) -> None:
        """Make everything durable, and the image one that was closed cleanly.

        Durable order: everything pending, bitmaps, lowered refcounts, the header without the dirty bit. A crash leaves
        what `begin` says. Raises StoreError.
        """
        if not self._begun:
            return
        self._cache.commit()
        self._bitmaps.finish()
        self._cache.medium.flush()
        header = self._reader.header
        if header.lazy_refcounts or header.dirty:
            self._cache.header.write(incompatible_features=header.incompatible_features & ~_DIRTY)

    def settle(self) -> Admission:
        """Make everything durable, as if the image was closed and opened again; return what is known of its refcounts.

        Durable order as of `finish`. Raises StoreError.
        """
        self.finish()
        if self._begun:
            self._begun = False
            self.admission = replace(self.admission, undercounted=[])
            self._take_up_header()
        return self.admission

    def change_header(self, change: HeaderChange) -> None:
        """Change the header: by `fields` nothing that the tables depend on.

        Durable order: everything pending, the header (see `header_update.change_header`). What was released before it
        is counted down at the next commit: release it afterwards. Raises UsageError, StoreError.
        """
        self.begin()
        self._cache.commit()
        self._reader.renew_header(change_header(self._cache.medium, Header.load(self._cache.medium.store), change))

    # --- bitmaps ---

    def edit_bitmaps(self, place: PlaceClusters) -> BitmapEdit:
        """Return the bitmaps as they are, to be changed; `place` stores clusters of them and returns a host offset.

        Durable order: everything pending, the bits that were recorded. Broken ones can be removed, as long as the disk
        was not changed. Raises CorruptMetadata where they are broken and the disk was changed, StoreError.
        """
        if self._bitmaps.problem is not None:
            if self._begun:
                raise copy(self._bitmaps.problem)  # Once raised, it would lead to everything that is in use then.
            return BitmapEdit(self._cache.medium.store, self._reader.header, place)  # Nothing changes yet.
        self.begin()
        self._cache.commit()
        self._bitmaps.finish()
        return BitmapEdit(self._cache.medium.store, Header.load(self._cache.medium.store), place)

    def name_bitmaps(self, edit: BitmapEdit) -> None:
        """Let the header name changed bitmaps.

        Durable order: everything that was placed and its refcounts; the header; what was released. A crash leaves the
        old bitmaps or the new ones. Raises UsageError where the header has no room, and then drops them; StoreError.
        """
        if edit.changed:
            change = edit.header_change()
            try:
                self.change_header(change)
            except UsageError:
                self.drop_bitmaps(edit)
                raise
            except Qcow2Error:  # The header may have been written all the same: what it does not name leaks.
                self._take_up_header()
                self._bitmaps = BitmapTracker(self._cache, self._allocator, self._reader.header)
                raise
        self.release(edit.released)
        self._bitmaps, self._given_up = BitmapTracker(self._cache, self._allocator, self._reader.header), False

    def drop_bitmaps(self, edit: BitmapEdit) -> None:
        """Give up changed bitmaps: nothing refers to what was placed."""
        self.release(edit.placed)

    def make_room(self) -> bool:
        """Commit, so that what was released can be used again; return whether a write that lacked room may now have it.

        Raises StoreError.
        """
        if self._allocator.frugal and not self._cache.releases:
            return False
        self._allocator.frugal = True
        self._cache.commit()
        return True

    def place(self, data: bytes) -> int:
        """Store clusters that are no guest data; return their host offset.

        Where there is no room, free clusters of the file are tried, of which some may have their space. Durable order:
        the data at once, its refcounts with the next commit. A crash leaves leaked clusters. Raises StoreError: nothing
        is stored then.
        """
        tried: list[Allocation] = []
        cluster_bits = self._reader.header.cluster_bits
        count = self._reader.header.geometry.clusters(len(data))
        whole = data.ljust(count << cluster_bits, b"\0")
        try:
            while True:
                tried.append(self._adjacent(count))
                host_offset = tried[-1].first << cluster_bits
                try:
                    self._cache.medium.write_with_holes([whole], host_offset)
                except StoreError as exc:
                    if tried[-1].fresh or len(tried) >= _ATTEMPTS or not lacks_room(exc):
                        raise
                else:
                    tried.pop()
                    return host_offset
        finally:
            for extent in reversed(tried):
                self._allocator.give_back(extent)

    def _adjacent(self, count: int) -> Allocation:
        """Take so many clusters that lie together."""
        parts = []
        extent = self._allocator.allocate(count)
        while extent.clusters < count:  # A refcount block that is yet to be made may lie between.
            parts.append(extent)
            extent = self._allocator.allocate(count)
        for part in parts:
            self._allocator.abandon(part)
        return extent

    def release(self, spans: Iterable[Span]) -> None:
        """Take a reference away from each cluster of some spans, once what is pending is durable."""
        cluster_bits = self._reader.header.cluster_bits
        for host_offset, length in spans:
            first = host_offset >> cluster_bits
            self._cache.release(first, (host_offset + length - 1 >> cluster_bits) - first + 1)

    def _take_up_header(self) -> None:
        self._reader.renew_header(Header.load(self._cache.medium.store))
