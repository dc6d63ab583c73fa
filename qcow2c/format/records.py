"""Records of variable length: the snapshot table and the bitmap directory. Reads with bounds; writes nothing.

Reading is tolerant up to where a record would leave its limits: it yields what there is, and says why it stopped.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from qcow2c.constants import Limit
from qcow2c.errors import CorruptMetadata, LimitExceeded, Qcow2Error, Span
from qcow2c.format import layout
from qcow2c.format.derived import BITMAP_DIRECTORY_HEADER, BITMAP_FLAGS, SNAPSHOT_EXTRA_DATA, SNAPSHOT_HEADER
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.header import Header, aligned
from qcow2c.light import TYPE_CHECKING, NamedTuple
from qcow2c.storage.sources import Store

if TYPE_CHECKING:
    from typing import Any


_SNAPSHOT_HEADER_SIZE: int = SNAPSHOT_HEADER.size
_EXTRA = SNAPSHOT_EXTRA_DATA.fields
_NO_ICOUNT = SNAPSHOT_EXTRA_DATA["icount"].all_ones


class SnapshotRecord(NamedTuple):
    """One entry of the snapshot table. Sizes in bytes, times in the unit of the name."""

    span: Span
    l1_table_offset: int
    l1_size: int
    id_str: bytes
    name: bytes
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    """The 64-bit size of the extra data where it is present."""
    disk_size: int
    """The current virtual size where the record does not say."""
    icount: int | None
    extra_data: bytes

    @property
    def content(self) -> Hashable:
        """All but its place: of records with the same content, the rules say the same."""
        return (
            self.l1_table_offset,
            self.l1_size,
            self.id_str,
            self.name,
            self.date_nsec,
            self.disk_size,
            self.extra_data,
        )


class BitmapRecord(NamedTuple):
    """One entry of the bitmap directory."""

    span: Span
    bitmap_table_offset: int
    bitmap_table_size: int
    flags: int
    type: int
    granularity_bits: int
    name: bytes
    extra_data: bytes

    @property
    def in_use(self) -> bool:
        return bool(self.flags & BITMAP_FLAGS["in_use"].mask)

    @property
    def auto(self) -> bool:
        return bool(self.flags & BITMAP_FLAGS["auto"].mask)

    @property
    def unknown_flags(self) -> int:
        """Flags that QEMU does not know: the reserved ones, and what speaks of extra data."""
        return self.flags & ~(BITMAP_FLAGS["in_use"].mask | BITMAP_FLAGS["auto"].mask)


class SnapshotTable(NamedTuple):
    """The records that could be read; `broken` says why there are fewer than the header declares."""

    records: tuple[SnapshotRecord, ...]
    size: int
    """Bytes from the first record to the end of the last."""
    broken: Finding | None


class BitmapDirectory(NamedTuple):
    """The records that could be read; `broken` says why there are fewer, or more, than the extension declares."""

    records: tuple[BitmapRecord, ...]
    broken: Finding | None


class _Broken(Exception):
    def __init__(self, message: str, where: Span, error: type[Qcow2Error] = CorruptMetadata) -> None:
        self.message, self.where, self.error = message, where, error


_BLOCK = 1 << 20
"""Bytes that are read from a table at a time."""


class _SequentialReads:
    """Sequential reads of small pieces out of big ones, zero-filled past the end of the file, as QEMU reads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._start = 0
        self._data = b""

    def read(self, length: int, offset: int) -> bytes:
        if not self._start <= offset <= offset + length <= self._start + len(self._data):
            block = max(_BLOCK, length)
            self._start, self._data = offset, self._store.pread(block, offset).ljust(block, b"\0")
        at = offset - self._start
        return self._data[at : at + length]


def read_snapshots(store: Store, header: Header) -> SnapshotTable:
    """Return the snapshot table. Spec: "Snapshots"."""
    found: list[SnapshotRecord] = []
    broken = None
    end = header.snapshots_offset
    try:
        for record in _snapshots(_SequentialReads(store), header):
            found.append(record)
            end = record.span.end
    except _Broken as stop:
        broken = Finding("snapshots.broken", Severity.FATAL, stop.message, stop.where, "Snapshots", stop.error)
    return SnapshotTable(tuple(found), end - header.snapshots_offset, broken)


def _snapshots(window: _SequentialReads, header: Header) -> Iterator[SnapshotRecord]:
    if header.nb_snapshots > Limit.SNAPSHOTS:
        where = Span(header.snapshots_offset, 0)
        raise _Broken(f"{header.nb_snapshots} snapshots exceed {Limit.SNAPSHOTS}", where, LimitExceeded)
    offset, fixed = header.snapshots_offset, _SNAPSHOT_HEADER_SIZE
    record: SnapshotRecord | None = None
    before = b""
    rest: tuple[Any, ...] = ()
    for index in range(header.nb_snapshots):
        offset = aligned(offset)
        stored = window.read(fixed, offset)
        if record is not None and stored == before and len(stored) == record.span.length:
            if not rest:  # All are the same in a table that leads into a hole.
                rest = record[1:]
            record = SnapshotRecord(Span(offset, fixed), *rest)
            yield record
            offset += fixed
            continue
        known: dict[str, Any] = SNAPSHOT_HEADER.values(stored)
        extra_size = known["extra_data_size"]
        length = fixed + extra_size + known["id_str_size"] + known["name_size"]
        if extra_size > Limit.SNAPSHOT_EXTRA_BYTES:
            message = (
                f"snapshot record {index} has {extra_size} bytes of extra data, above {Limit.SNAPSHOT_EXTRA_BYTES}"
            )
            raise _Broken(message, Span(offset, fixed), LimitExceeded)
        if offset + length - header.snapshots_offset > Limit.SNAPSHOT_TABLE_BYTES:
            message = f"the snapshot table exceeds {Limit.SNAPSHOT_TABLE_BYTES} bytes at record {index}"
            raise _Broken(message, Span(offset, length), LimitExceeded)
        record, before, rest = _snapshot(window.read(length, offset), offset, known, header), stored, ()
        yield record
        offset += length


def _snapshot(data: bytes, offset: int, known: dict[str, Any], header: Header) -> SnapshotRecord:
    extra_at = _SNAPSHOT_HEADER_SIZE
    id_at = extra_at + known["extra_data_size"]
    name_at = id_at + known["id_str_size"]
    extra = data[extra_at:id_at]
    later = {
        member.name: layout.integer(extra[member.offset : member.offset + member.size])
        for member in _EXTRA
        if member.offset + member.size <= len(extra)
    }
    icount = later.get("icount", _NO_ICOUNT)
    return SnapshotRecord(
        span=Span(offset, len(data)),
        l1_table_offset=known["l1_table_offset"],
        l1_size=known["l1_size"],
        id_str=data[id_at:name_at],
        name=data[name_at:],
        date_sec=known["date_sec"],
        date_nsec=known["date_nsec"],
        vm_clock_nsec=known["vm_clock_nsec"],
        vm_state_size=later.get("vm_state_size_large", known["vm_state_size"]),
        disk_size=later.get("disk_size", header.size),
        icount=None if icount == _NO_ICOUNT else icount,
        extra_data=extra,
    )


def read_bitmaps(store: Store, header: Header) -> BitmapDirectory:
    """Return the bitmap directory; empty without consistent bitmaps. Spec: "Bitmap directory"."""
    extension = header.bitmaps
    if extension is None or not header.bitmaps_consistent:
        return BitmapDirectory((), None)
    found: list[BitmapRecord] = []
    size = min(extension.bitmap_directory_size, Limit.BITMAP_DIRECTORY_BYTES, max(0, header.file_size))
    try:
        for record in _bitmaps(store.pread(size, extension.bitmap_directory_offset).ljust(size, b"\0"), header):
            found.append(record)
    except _Broken as stop:
        spec = "Bitmap directory"
        finding = Finding("bitmaps.broken", Severity.WARNING, stop.message, stop.where, spec, stop.error)
        return BitmapDirectory(tuple(found), finding)
    return BitmapDirectory(tuple(found), None)


def _bitmaps(directory: bytes, header: Header) -> Iterator[BitmapRecord]:
    extension = header.bitmaps
    assert extension is not None, "only called with the extension"
    base, offset, count = extension.bitmap_directory_offset, 0, 0
    fixed = BITMAP_DIRECTORY_HEADER.size
    while offset < len(directory):
        room = len(directory) - offset
        where = Span(base + offset, min(room, fixed))
        if room < fixed:
            raise _Broken(f"bitmap record {count} is torn: {room} of {fixed} bytes", where)
        if count == extension.nb_bitmaps:
            raise _Broken(f"more bitmaps in the directory than the {count} that the extension declares", where)
        known: dict[str, Any] = BITMAP_DIRECTORY_HEADER.values(directory, offset)
        length = aligned(fixed + known["extra_data_size"] + known["name_size"])
        if length > room:
            raise _Broken(f"bitmap record {count} of {length} bytes leaves the directory, {room} remain", where)
        extra_at = offset + fixed
        name_at = extra_at + known.pop("extra_data_size")
        name = directory[name_at : name_at + known.pop("name_size")]
        yield BitmapRecord(Span(base + offset, length), name=name, extra_data=directory[extra_at:name_at], **known)
        offset += length
        count += 1
    if count != extension.nb_bitmaps:
        message = f"{count} bitmaps in the directory, but the extension declares {extension.nb_bitmaps}"
        raise _Broken(message, Span(base, len(directory)))
