"""What an image will be with a snapshot more, with one less or another name, or when it goes back to one.

It says so to a `Successor`, and lets it become the image: see there for the order, and for what a crash leaves. A
snapshot is meant by its position in the table. Spec: "Snapshots".
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.atomic.successor import Successor, stored_words
from qcow2c.constants import ENTRY_BYTES, Limit
from qcow2c.errors import CorruptMetadata, LimitExceeded, Span, UnsupportedFeature, UsageError
from qcow2c.format import rules
from qcow2c.format.derived import SNAPSHOT_EXTRA_DATA, SNAPSHOT_HEADER
from qcow2c.format.findings import Severity, raise_first
from qcow2c.format.header import aligned
from qcow2c.format.records import SnapshotRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NANOSECONDS = 10**9
_DATE_END = 1 << 32
_ID_BITS = 64
_NAME_BYTES = 255
"""QEMU keeps no more of a name."""


def create(image: Successor, name: str, date: float | None = None) -> str:
    """Take a snapshot of the disk as it is; return its ID. `date` is in seconds since 1970, now without.

    Raises UsageError for a name or a date that cannot be stored, UnsupportedFeature for an image with an external data
    file, CorruptMetadata for one whose bitmaps are broken, LimitExceeded for one with too many snapshots or too narrow
    refcounts, and as `Successor.switch`.
    """
    _require_own_data(image)
    _require_sound_bitmaps(image)
    stored_name, nanoseconds = _stored_name(name), _nanoseconds(date)
    records = image.snapshots.records
    if len(records) >= Limit.SNAPSHOTS:
        raise LimitExceeded(f"the image has {len(records)} snapshots, no more can be", spec="Snapshots")
    active = image.active_l1()
    image.add_references(active, 1)
    words = image.set_active(active, holders=2)
    new_id = _new_id(records)
    fields = {
        "l1_table_offset": image.place(stored_words(words)) if len(words) else 0,
        "l1_size": len(words),
        "date_sec": nanoseconds // _NANOSECONDS,
        "date_nsec": nanoseconds % _NANOSECONDS,
    }
    extra = SNAPSHOT_EXTRA_DATA.packed({"disk_size": image.header.size})
    set_table(image, [*stored_records(image, records), _packed(fields, extra, new_id.encode(), stored_name)])
    image.switch()
    return new_id


def apply(image: Successor, position: int) -> None:
    """Let the disk be again what it was when a snapshot was taken, its size too; the snapshot stays.

    Raises UsageError for an image with dirty bitmaps, which would not know what has changed, and as `create`.
    """
    require_appliable(image)
    record = image.snapshots.records[position]
    entries = image.geometry.l1_entries(record.disk_size)
    words = _l1_words(image, record)
    words = np.concatenate((words, np.zeros(max(0, entries - len(words)), dtype=np.uint64)))
    image.add_references(image.active_l1(), -1)
    image.add_references(words, 1)
    image.set_active(words)
    image.set_fields(size=record.disk_size)
    image.switch(discard=True)


def delete(image: Successor, position: int) -> None:
    """Remove a snapshot; clusters that nothing else refers to are free. Raises as `create`."""
    _require_own_data(image)
    record = image.snapshots.records[position]
    image.add_references(_l1_words(image, record), -1)
    if record.l1_size:
        image.count(record.l1_table_offset, record.l1_size * ENTRY_BYTES, -1)
    image.set_active(image.active_l1())
    left = [other for other in image.snapshots.records if other is not record]
    if image.in_place is not None and left and record is image.snapshots.records[-1]:
        _drop_last_record(image, left[-1].span.end)
    else:
        set_table(image, stored_records(image, left))
    image.switch(discard=True)


def _drop_last_record(image: Successor, end: int) -> None:
    """Let the snapshot table stay where it is, but for its last record; it ends at `end` then."""
    image.set_fields(nb_snapshots=len(image.snapshots.records) - 1)
    size = image.geometry.cluster_size
    kept = -(-end // size) * size
    old_end = image.header.snapshots_offset + image.snapshots.size
    if kept < old_end:
        image.count(kept, old_end - kept, -1)


def rename(image: Successor, position: int, name: str) -> None:
    """Give a snapshot another name. Raises as `create`."""
    records = image.snapshots.records
    stored, record = stored_records(image, records), records[position]
    known = SNAPSHOT_HEADER.values(stored[position])
    stored[position] = _packed(known, record.extra_data, record.id_str, _stored_name(name))
    set_table(image, stored)
    image.switch()


def require_appliable(image: Successor) -> None:
    """Raise, as `apply` does, for an image that can go back to none of its snapshots."""
    bitmaps = image.walk.bitmaps
    if bitmaps.broken is not None:
        raise bitmaps.broken.exception()
    if bitmaps.records:
        raise UsageError("Device has active dirty bitmaps")
    _require_own_data(image)


def _require_sound_bitmaps(image: Successor) -> None:
    """Raise for bitmaps for which a check of the image fails, as QEMU does when it opens one."""
    raise_first(rules.header_findings(image.header), Severity.ERROR, ("extension.bitmaps",))
    if image.walk.bitmaps.broken is not None:
        raise image.walk.bitmaps.broken.exception()


def _require_own_data(image: Successor) -> None:
    """Raise UnsupportedFeature for an image whose guest data is elsewhere, and would not be kept."""
    if image.header.external_data:
        raise UnsupportedFeature("an image with an external data file cannot have internal snapshots")


def _l1_words(image: Successor, record: SnapshotRecord) -> NDArray[np.uint64]:
    """Return the L1 entries of a snapshot. Raises CorruptMetadata."""
    raise_first(rules.snapshot_findings(image.header, record), Severity.ERROR)
    where = Span(record.l1_table_offset, record.l1_size * ENTRY_BYTES)
    if image.geometry.leaves(where.end, image.walk.size):
        raise CorruptMetadata("the L1 table of the snapshot leaves the file: run check -r first", where=where)
    return image.walk.words(record.l1_table_offset, record.l1_size)


def _new_id(records: Iterable[SnapshotRecord]) -> str:
    """Return the ID after the largest one, as QEMU reads them: the digits that an ID begins with."""
    largest = 0
    for record in records:
        digits = re.match(rb"[ \t\n\v\f\r]*\+?(\d+)", record.id_str)
        largest = max(largest, min(int(digits[1]), (1 << _ID_BITS) - 1) if digits else 0)
    return str((largest + 1) % (1 << _ID_BITS))


def _nanoseconds(date: float | None) -> int:
    if date is None:
        return time.time_ns() % (_DATE_END * _NANOSECONDS)
    if not 0 <= date < _DATE_END:
        raise UsageError(f"a snapshot cannot have been taken {date} seconds after 1970: 0 to {_DATE_END - 1}")
    return int(date) * _NANOSECONDS + int(date % 1 * _NANOSECONDS)


def _stored_name(name: str) -> bytes:
    """Return a name as it is stored, cut off where QEMU does so. Raises UsageError."""
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{name!r} cannot be the name of a snapshot: it is no text") from None
    if b"\0" in data:
        raise UsageError(f"{name!r} cannot be the name of a snapshot: QEMU takes it to end at the NUL")
    return data[:_NAME_BYTES]


def _packed(fields: dict[str, int], extra: bytes, id_str: bytes, name: bytes) -> bytes:
    sizes = {"extra_data_size": len(extra), "id_str_size": len(id_str), "name_size": len(name)}
    return SNAPSHOT_HEADER.packed(fields | sizes) + extra + id_str + name


def stored_records(image: Successor, records: Iterable[SnapshotRecord]) -> list[bytes]:
    """Return records as they are stored, with all that is unknown of them."""
    return [image.walk.store.pread(record.span.length, record.span.offset) for record in records]


def set_table(image: Successor, records: list[bytes]) -> None:
    """Replace the snapshot table. Raises LimitExceeded."""
    table = b"".join(record.ljust(aligned(len(record)), b"\0") for record in records)
    if len(table) > Limit.SNAPSHOT_TABLE_BYTES:
        raise LimitExceeded(f"the snapshot table would exceed {Limit.SNAPSHOT_TABLE_BYTES} bytes", spec="Snapshots")
    if image.snapshots.size:
        image.count(image.header.snapshots_offset, image.snapshots.size, -1)
    image.set_fields(nb_snapshots=len(records), snapshots_offset=image.place(table) if records else 0)
