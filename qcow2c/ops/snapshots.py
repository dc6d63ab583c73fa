"""Internal snapshots: create, apply, delete and rename them. Each is one switch of the header: all or nothing.

Durable order of each: new tables and refcounts in free space, then the header's first sector. A crash leaves the image
before or after, without leaks. Spec: "Snapshots".
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from qcow2c import layout, rules
from qcow2c.errors import LimitExceeded, UsageError
from qcow2c.findings import Severity, raise_first
from qcow2c.header import aligned
from qcow2c.records import SnapshotRecord
from qcow2c.storage import Source, Store
from qcow2c.structs import SNAPSHOT_EXTRA_DATA, SNAPSHOT_HEADER, Limit
from qcow2c.successor import Successor, changing, stored_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["apply", "create", "delete", "rename"]

_NANOSECONDS = 10**9
_ID_BITS = 64
_NAME_BYTES = 255
"""QEMU keeps no more of a name."""


def create(source: Source | Store, name: str, *, date: float | None = None, trust: bool = False) -> str:
    """Take a snapshot of the disk as it is, called `name`; return its ID.

    `date` is in seconds since 1970, now without. Names may repeat. Raises UsageError for an image with an external
    data file, LimitExceeded for one with too many snapshots or too narrow refcounts, and as `qcow2c.open` with "r+".
    """
    with changing(source, trust=trust) as image:
        _require_own_data(image)
        records = image.snapshots.records
        if len(records) >= Limit.SNAPSHOTS:
            raise LimitExceeded(f"the image has {len(records)} snapshots, no more can be", spec="Snapshots")
        active = image.active_l1()
        image.add_references(active, 1)
        words = image.set_active(active, holders=2)
        nanoseconds = time.time_ns() if date is None else int(date * _NANOSECONDS)
        new_id = _new_id(records)
        fields = {
            "l1_table_offset": image.place(stored_words(words)) if len(words) else 0,
            "l1_size": len(words),
            "date_sec": nanoseconds // _NANOSECONDS & 0xFFFF_FFFF,
            "date_nsec": nanoseconds % _NANOSECONDS,
        }
        extra = layout.packed(SNAPSHOT_EXTRA_DATA, {"disk_size": image.header.size})
        record = _packed(fields, extra, new_id.encode(), _stored_name(name))
        _set_table(image, [*_stored(image, records), record])
        image.switch()
        return new_id


def apply(source: Source | Store, key: str, *, trust: bool = False) -> None:
    """Let the disk be again what it was when a snapshot was taken, its size too; the snapshot stays.

    `key` is an ID or, where none matches, a name, as in qemu-img. Raises UsageError for an unknown snapshot and for an
    image with dirty bitmaps, which would not know what has changed, and as `create`.
    """
    with changing(source, trust=trust) as image:
        _require_own_data(image)
        record = find(image.snapshots.records, key)
        if image.walk.bitmaps.records:
            raise UsageError("Device has active dirty bitmaps")
        entries = image.geometry.l1_entries(record.disk_size)
        words = _l1_words(image, record)
        words = np.concatenate((words, np.zeros(max(0, entries - len(words)), dtype=np.uint64)))
        image.add_references(image.active_l1(), -1)
        image.add_references(words, 1)
        image.set_active(words)
        image.set_fields(size=record.disk_size)
        image.switch(discard=True)


def delete(source: Source | Store, key: str, *, trust: bool = False) -> None:
    """Remove a snapshot; clusters that nothing else refers to are free.

    `key` is a name or, where none matches, an ID, as in qemu-img. Raises as `apply`.
    """
    with changing(source, trust=trust) as image:
        _require_own_data(image)
        record = find(image.snapshots.records, key, name_first=True)
        image.add_references(_l1_words(image, record), -1)
        if record.l1_size:
            image.count(record.l1_table_offset, record.l1_size * 8, -1)
        image.set_active(image.active_l1())
        _set_table(image, _stored(image, [other for other in image.snapshots.records if other is not record]))
        image.switch(discard=True)


def rename(source: Source | Store, key: str, name: str, *, trust: bool = False) -> None:
    """Give a snapshot another name. `key` is a name or, where none matches, an ID. Raises as `apply`."""
    with changing(source, trust=trust) as image:
        record = find(image.snapshots.records, key, name_first=True)
        renamed = []
        for other, data in zip(image.snapshots.records, _stored(image, image.snapshots.records), strict=True):
            if other is record:
                known = layout.values(SNAPSHOT_HEADER, data)
                data = _packed(known, other.extra_data, other.id_str, _stored_name(name))  # noqa: PLW2901
            renamed.append(data)
        _set_table(image, renamed)
        image.switch()


def find(records: Iterable[SnapshotRecord], key: str, *, name_first: bool = False) -> SnapshotRecord:
    """Return the snapshot that a word means. Raises UsageError."""
    wanted = key.encode("utf-8", "surrogateescape")
    ways: list[Callable[[SnapshotRecord], bytes]] = [lambda found: found.id_str, lambda found: found.name]
    for way in reversed(ways) if name_first else ways:
        for record in records:
            if way(record) == wanted:
                return record
    raise UsageError(f"snapshot {key!r} not found")


def _require_own_data(image: Successor) -> None:
    if image.header.external_data:
        raise UsageError("an image with an external data file cannot have snapshots")


def _l1_words(image: Successor, record: SnapshotRecord) -> NDArray[np.uint64]:
    """Return the L1 entries of a snapshot. Raises CorruptMetadata."""
    raise_first(rules.snapshot_findings(image.header, record), Severity.ERROR)
    return image.walk.words(record.l1_table_offset, record.l1_size)


def _new_id(records: Iterable[SnapshotRecord]) -> str:
    """Return the ID after the largest one, as QEMU reads them: the digits that an ID begins with."""
    largest = 0
    for record in records:
        digits = re.match(rb"[ \t\n\v\f\r]*\+?(\d+)", record.id_str)
        largest = max(largest, min(int(digits[1]), (1 << _ID_BITS) - 1) if digits else 0)
    return str((largest + 1) % (1 << _ID_BITS))


def _stored_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")[:_NAME_BYTES]


def _packed(fields: dict[str, int], extra: bytes, id_str: bytes, name: bytes) -> bytes:
    sizes = {"extra_data_size": len(extra), "id_str_size": len(id_str), "name_size": len(name)}
    return layout.packed(SNAPSHOT_HEADER, fields | sizes) + extra + id_str + name


def _stored(image: Successor, records: Iterable[SnapshotRecord]) -> list[bytes]:
    """Return records as they are stored, with all that nobody knows of them."""
    return [image.walk.store.pread(record.span.length, record.span.offset) for record in records]


def _set_table(image: Successor, records: list[bytes]) -> None:
    """Replace the snapshot table. Raises LimitExceeded."""
    table = b"".join(record.ljust(aligned(len(record)), b"\0") for record in records)
    if len(table) > Limit.SNAPSHOT_TABLE_BYTES:
        raise LimitExceeded(f"the snapshot table would exceed {Limit.SNAPSHOT_TABLE_BYTES} bytes", spec="Snapshots")
    if image.snapshots.size:
        image.count(image.header.snapshots_offset, image.snapshots.size, -1)
    image.set_fields(nb_snapshots=len(records), snapshots_offset=image.place(table) if records else 0)
