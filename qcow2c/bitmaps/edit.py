"""Changing the bitmaps of an image: what is new is stored where nothing is yet, and named by one change of the header.

Nothing that is there is touched: other tables, other data and another directory are stored through a function of the
caller, who makes them durable, changes the header as `header_change` says, and frees `released` afterwards. A
crash leaves the old bitmaps or the new ones, and leaks at most. Errors are in QEMU's words.
Spec: "Bitmaps extension", "Bitmap directory", "Bitmap table".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from copy import copy

from qcow2c.bitmaps.stored import (
    Bitmap,
    PlaceClusters,
    record_size,
    store_clusters,
    store_directory,
    table_entries,
    united,
    without_rest,
)
from qcow2c.constants import ENTRY_BYTES, BitmapType, ExtensionType, Limit, Version
from qcow2c.errors import CorruptMetadata, Qcow2Error, Span, UsageError
from qcow2c.format import layout
from qcow2c.format.derived import AUTOCLEAR_FEATURES, BITMAP_FLAGS
from qcow2c.format.findings import Severity, raise_first
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange, with_extension
from qcow2c.format.layout import zero_words
from qcow2c.format.loaded_image import readable_bitmap_records
from qcow2c.format.records import BitmapRecord
from qcow2c.format.rules import bitmap_findings
from qcow2c.format.tables import BITMAP_OFFSET
from qcow2c.storage.store import Store

DEFAULT_GRANULARITIES = (4096, 65536)
"""Bounds in bytes of the granularity that follows from the cluster size."""

_AUTO = BITMAP_FLAGS["auto"].mask
_CONSISTENT = AUTOCLEAR_FEATURES["bitmaps"].mask


class PlacedSpans(list[Span]):
    """Spans of the file; one that follows on the last is joined to it."""

    def add(self, offset: int, length: int) -> None:
        if self and self[-1].end == offset:
            self[-1] = Span(self[-1].offset, self[-1].length + length)
        else:
            self.append(Span(offset, length))


class BitmapEdit:
    """The bitmaps of an image as they are to be. At rest: nothing else changes them, or the disk, meanwhile."""

    def __init__(self, store: Store, header: Header, place: PlaceClusters) -> None:
        """`header` is the present one. Raises StoreError."""
        self._store = store
        self._header = header
        self._place_data = place
        self._size = header.cluster_size
        self.stale = header.bitmaps is not None and not header.bitmaps_consistent
        """There were other bitmaps, but a program that knows none has written to the image: they are lost."""
        readable = readable_bitmap_records(store, header)
        self._is_whole = readable.is_whole
        self._before = list(readable.records)
        self.records = list(self._before)
        self._problem = self._first_problem() if readable.broken is None else readable.broken.exception()
        """What is broken: then nothing can be done but to remove what is."""
        self.placed = PlacedSpans()
        """Everything that was stored: to be freed if the change is given up."""
        self.released = PlacedSpans()
        """What nothing refers to any more, once the header is changed: to be freed then."""

    # --- what is asked for ---

    def find(self, name: str) -> Bitmap:
        """Return a bitmap as it is now. Raises UsageError where there is none of this name, CorruptMetadata."""
        self.require_sound()
        return self._bitmap(self._position(name))

    def add(self, name: str, granularity: int | None = None, *, enabled: bool = True) -> None:
        """Add a bitmap without a bit set. Raises UsageError, CorruptMetadata, StoreError."""
        self.require_sound()
        if not name:
            raise UsageError("Bitmap name cannot be empty")
        if granularity is None:
            low, high = DEFAULT_GRANULARITIES
            granularity = min(max(low, self._size), high)
        if granularity < 1 << Limit.BITMAP_GRANULARITY_BITS[0] or granularity & (granularity - 1):
            raise UsageError("Granularity must be power of 2 and at least 512")
        if any(self._bitmap(position).name == name for position in range(len(self.records))):
            raise UsageError(f"Bitmap already exists: {name}")
        stored_name, bits = name.encode("utf-8", "surrogateescape"), granularity.bit_length() - 1
        for problem in self._problems(stored_name, bits):
            raise UsageError(f"Can't make bitmap '{name}' persistent in '{self._store.name}': {problem}")
        entries = table_entries(self._header.size, bits, self._size)
        at = self._place(bytes(entries * ENTRY_BYTES))
        flags, kind = BITMAP_FLAGS.flags(auto=enabled), BitmapType.DIRTY_TRACKING
        self.records.append(BitmapRecord(Span(0, 0), at, entries, flags, kind, bits, stored_name, b""))

    def _problems(self, name: bytes, granularity_bits: int) -> Iterator[str]:
        if self._header.version < Version.V3:
            yield "Cannot store dirty bitmaps in qcow2 v2 files"
        most = Limit.BITMAP_GRANULARITY_BITS[-1]
        if granularity_bits > most:
            yield f"Granularity exceeds maximum ({1 << most} bytes)"
        if not self._header.size:
            yield "The disk has no bytes to track"
        if not self._fits(self._header.size, granularity_bits):
            yield "Too much space will be occupied by the bitmap. Use larger granularity"
        if len(name) > Limit.BITMAP_NAME_BYTES:
            yield f"Name length exceeds maximum ({Limit.BITMAP_NAME_BYTES} characters)"
        if b"\0" in name:
            yield "Name has a byte 0"
        if len(self.records) >= Limit.BITMAPS:
            yield "Maximum number of persistent bitmaps is already reached"
        if sum(record_size(found.name) for found in self.records) + record_size(name) > Limit.BITMAP_DIRECTORY_BYTES:
            yield "Not enough space in the bitmap directory"

    def _fits(self, disk_size: int, granularity_bits: int) -> bool:
        return table_entries(disk_size, granularity_bits, self._size) * self._size <= Limit.BITMAP_BYTES

    def remove(self, name: str) -> None:
        """Remove a bitmap, also an inconsistent or a broken one; what a broken one may have had stays, leaked.

        Raises UsageError; CorruptMetadata where it is unknown what else the directory holds.
        """
        if self._problem is not None and not self._is_whole:
            message = f"{self._problem.message}; check -r all gives up all bitmaps"
            raise CorruptMetadata(message, where=self._problem.where, spec=self._problem.spec)
        position = self._position(name)
        if self._problem is None:
            self._replace_table(position, None)
        del self.records[position]
        if self._problem is not None:
            self._problem = self._first_problem()

    def _first_problem(self) -> Qcow2Error | None:
        try:
            for record in self.records:
                raise_first(bitmap_findings(self._header, record), Severity.WARNING)
                if record.auto and not record.in_use:
                    Bitmap(self._store, self._header, record).read_table()
        except CorruptMetadata as problem:
            return copy(problem)  # Once raised, it would lead to everything that is in use then.
        return None

    def require_sound(self) -> None:
        """Raise CorruptMetadata where a bitmap is broken: then, as for QEMU, none can be used."""
        if self._problem is not None:
            raise copy(self._problem)

    def clear(self, name: str) -> None:
        """Clear all bits. Raises UsageError, StoreError."""
        position = self._usable(name)
        record = self.records[position]
        entries = table_entries(self._header.size, record.granularity_bits, self._size)
        self._replace_table(position, zero_words(entries))

    def enable(self, name: str, *, enabled: bool = True) -> None:
        """Let every write be recorded from now on, or none. Raises UsageError."""
        position = self._usable(name)
        record = self.records[position]
        self.records[position] = record._replace(flags=record.flags | _AUTO if enabled else record.flags & ~_AUTO)

    def merge(self, name: str, source: Bitmap, source_size: int | None = None) -> None:
        """Set all bits that are set in another bitmap, of a disk of the same size; granularities may differ.

        Raises UsageError, CorruptMetadata, StoreError.
        """
        position = self._usable(name)
        source.require_consistent()
        size = self._header.size
        if source_size not in (None, size):
            sizes = f"destination size is {size}, source size is {source_size}"
            raise UsageError(f"Bitmaps are of different sizes ({sizes}) and can't be merged")
        target = self._bitmap(position)
        entries = table_entries(size, target.record.granularity_bits, self._size)
        table = target.table[:entries]
        try:
            store_clusters(self._changed(target, source), table, self._place)
        except BaseException:
            self._release(table, target.table)
            raise
        self._replace_table(position, table)

    def _changed(self, target: Bitmap, source: Bitmap) -> Iterator[tuple[int, bytes]]:
        """Yield the clusters of a bitmap, by their index, that the bits of another one change."""
        for index, data in enumerate(source.clusters(target.record.granularity_bits, self._size)):
            if data.count(0) < len(data):
                old = target.read(index * self._size, self._size)
                new = united(old, data)
                if new != old:
                    yield index, new

    def resize(self, disk_size: int) -> None:
        """Let all bitmaps be for a disk of another size: no bit is set for what is new.

        Raises UsageError where one is inconsistent, or would be too large; CorruptMetadata, StoreError.
        """
        self.require_sound()
        for position, record in enumerate(self.records):
            bitmap = self._bitmap(position)
            bitmap.require_consistent()
            if not disk_size:
                raise UsageError(f"Bitmap '{bitmap.name}' cannot be kept for a disk without bytes: remove it first")
            if not self._fits(disk_size, record.granularity_bits):
                raise UsageError(f"Bitmap '{bitmap.name}' would be too large for a disk of {disk_size} bytes")
            self._replace_table(position, self._resized(bitmap, disk_size))

    def _resized(self, bitmap: Bitmap, disk_size: int) -> array[int]:
        size, bits = self._size, bitmap.record.granularity_bits
        entries = table_entries(disk_size, bits, size)
        kept = -(-min(disk_size, self._header.size) >> bits)
        table = bitmap.table[:entries]
        table.extend(zero_words(entries - len(table)))
        index, rest = divmod(kept, size * 8)
        first_new = index + bool(rest)
        table[first_new:] = zero_words(entries - first_new)
        if rest and table[index]:  # What is behind the old end, or the new one, must not count some day.
            data = without_rest(bitmap.read(index * size, size), rest)
            store_clusters([(index, data)], table, self._place)
        return table

    # --- what comes of it ---

    @property
    def changed(self) -> bool:
        """Whether the header has to change."""
        return self.records != self._before

    def header_change(self) -> HeaderChange:
        """Store the directory; return the change of the header that names it. Raises StoreError."""
        old = self._header.bitmaps
        if old is not None and self._header.bitmaps_consistent:
            self.released.add(old.bitmap_directory_offset, old.bitmap_directory_size)
        extension = store_directory(self.records, self._place)
        features = self._header.autoclear_features & ~_CONSISTENT
        fields = {"autoclear_features": features | _CONSISTENT if self.records else features}
        return HeaderChange(fields, with_extension(self._header, ExtensionType.BITMAPS, extension))

    # --- tables ---

    def _position(self, name: str) -> int:
        for position in range(len(self.records)):
            if self._bitmap(position).name == name:
                return position
        raise UsageError(f"Dirty bitmap '{name}' not found")

    def _usable(self, name: str) -> int:
        self.require_sound()
        position = self._position(name)
        self._bitmap(position).require_consistent()
        return position

    def _bitmap(self, position: int) -> Bitmap:
        return Bitmap(self._store, self._header, self.records[position])

    def _place(self, data: bytes) -> int:
        at = self._place_data(data)
        self.placed.add(at, -(-len(data) // self._size) * self._size)
        return at

    def _replace_table(self, position: int, table: array[int] | None) -> None:
        """Give a bitmap another table, which takes over the clusters that it names as the old one does; or none."""
        record = self.records[position]
        try:
            old = self._bitmap(position).table
        except CorruptMetadata:
            if table is not None:
                raise
            old = array("Q")  # It is unknown what it named: that leaks.
        if table is not None:
            if table == old:
                return
            at = self._place(layout.stored(table))
            self.records[position] = record._replace(bitmap_table_offset=at, bitmap_table_size=len(table))
        self.released.add(record.bitmap_table_offset, record.bitmap_table_size * ENTRY_BYTES)
        self._release(old, table if table is not None else array("Q"))

    def _release(self, words: array[int], kept: array[int]) -> None:
        """Release the clusters that entries name, but for those that another table names in the same place."""
        for index, entry in enumerate(words):
            if entry & BITMAP_OFFSET and (index >= len(kept) or kept[index] != entry):
                self.released.add(entry & BITMAP_OFFSET, self._size)


def resized(store: Store, header: Header, place: PlaceClusters, disk_size: int) -> BitmapEdit:
    """Return the bitmaps of an image for a disk of another size, stored but not named yet.

    Where `changed`, the header change must name them in the sector write that changes the size. Raises as
    `BitmapEdit.resize`.
    """
    edit = BitmapEdit(store, header, place)
    edit.resize(disk_size)
    return edit
