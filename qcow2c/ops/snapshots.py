"""Internal snapshots of an image that is not open: create, apply, delete and rename them.

Each is one switch of the header, all or nothing: a crash leaves the image before or after, without leaks. What does
the work is `atomic/snapshots.py`; on an open image it is done by `Image.snapshots`. Spec: "Snapshots".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from qcow2c.atomic import snapshots
from qcow2c.atomic.successor import changing, freeing
from qcow2c.errors import NoSuchSnapshot
from qcow2c.format.records import SnapshotRecord
from qcow2c.storage.sources import Source, Store

__all__ = ["apply", "create", "delete", "rename"]

Keys = Sequence[Literal["id", "name"]]
"""What a word that means a snapshot may be; the first that matches any counts."""


def create(source: Source | Store, name: str, *, date: float | None = None, trust: bool = False) -> str:
    """Take a snapshot of the disk as it is, called `name`; return its ID.

    `date` is in seconds since 1970, now without. Names may repeat. Raises UnsupportedFeature for an image with an
    external data file, LimitExceeded for one with too many snapshots or too narrow refcounts, UsageError, and as
    `qcow2c.open` with "r+".
    """
    with changing(source, trust=trust) as image:
        return snapshots.create(image, name, date)


def apply(source: Source | Store, key: str, *, by: Keys = ("id", "name"), trust: bool = False) -> None:
    """Let the disk be again what it was when a snapshot was taken, its size too; the snapshot stays.

    `key` is an ID or, where none matches, a name, as in qemu-img. Raises NoSuchSnapshot, UsageError for an image with
    dirty bitmaps, which would not know what has changed, and as `create`.
    """
    with changing(source, trust=trust) as image:
        snapshots.require_appliable(image)
        snapshots.apply(image, find(image.snapshots.records, key, by))


def delete(source: Source | Store, key: str, *, by: Keys = ("name", "id"), trust: bool = False) -> None:
    """Remove a snapshot; clusters that nothing else refers to are free.

    `key` is a name or, where none matches, an ID. Raises as `apply`.
    """
    with changing(source, trust=trust) as image:
        position = find(image.snapshots.records, key, by)
        freeing(image, lambda successor: snapshots.delete(successor, position))


def rename(source: Source | Store, key: str, name: str, *, by: Keys = ("name", "id"), trust: bool = False) -> None:
    """Give a snapshot another name. `key` is a name or, where none matches, an ID. Raises as `apply`."""
    with changing(source, trust=trust) as image:
        snapshots.rename(image, find(image.snapshots.records, key, by), name)


def find(records: Sequence[SnapshotRecord], key: str, by: Keys) -> int:
    """Return the position of the snapshot that a word means. Raises NoSuchSnapshot."""
    for kind in by:
        for position, record in enumerate(records):
            words = record.id_str if kind == "id" else record.name
            # As a C program reads it.
            if words.partition(b"\0")[0].decode("utf-8", "surrogateescape") == key:
                return position
    raise NoSuchSnapshot(f"snapshot {key!r} not found")
