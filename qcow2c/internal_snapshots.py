"""`Snapshots`: the internal snapshots of an open image, as a mapping, and each `Snapshot` as something to be opened.

What was found of them is kept in `KeptSnapshot`s, which know no image: an image that its last user drops is freed at
once, for nothing that it holds leads back to it. How they change is `atomic/snapshots.py`'s business.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from qcow2c.errors import NoSuchSnapshot, UsageError
from qcow2c.format import rules
from qcow2c.format.findings import Finding, Severity, raise_first
from qcow2c.format.records import SnapshotRecord
from qcow2c.layers.reader import Reader
from qcow2c.layers.turn import AT_ONCE, While
from qcow2c.layers.vm_state import VmState
from qcow2c.light import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from typing import Self

    from qcow2c.atomic.successor import Successor


class KeptSnapshot:
    """What is known of one snapshot, as long as its image is open.

    One that is `deleted` cannot be read any more: its clusters may hold anything.
    """

    __slots__ = ("deleted", "record")

    def __init__(self, record: SnapshotRecord) -> None:
        self.record = record
        self.deleted = False


def _require_kept(kept: KeptSnapshot, image_name: str) -> None:
    if kept.deleted:
        raise UsageError(f"snapshot {_text(kept.record.name)!r} of {image_name!r} was deleted")


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogateescape")


class SnapshotOwner(Protocol):
    """An open image, as its snapshots see it."""

    name: str
    layer: Reader
    kept_snapshots: tuple[KeptSnapshot, ...]

    def writable(self) -> bool: ...

    def of_state(self, layer: Reader, name: str, notices: tuple[Finding, ...]) -> Self:
        """Return a read-only image of another state of this one."""
        ...

    def change_as_whole(self, change: Callable[[Successor], object], *, frees: bool = False) -> None: ...


ImageT = TypeVar("ImageT", bound=SnapshotOwner)


class Snapshot(Generic[ImageT]):
    """An internal snapshot: its record, its disk, and its VM state. It lives as long as its image is open."""

    def __init__(self, image: ImageT, kept: KeptSnapshot) -> None:
        self._image = image
        self._kept = kept

    def __eq__(self, other: object) -> bool:
        return self._kept is other._kept if isinstance(other, Snapshot) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._kept)

    def __repr__(self) -> str:
        return f"<Snapshot {self.id!r} {self.name!r} of {self._image.name!r}>"

    @property
    def record(self) -> SnapshotRecord:
        """The snapshot's record, as it is now."""
        return self._kept.record

    @property
    def deleted(self) -> bool:
        """Whether the snapshot is gone."""
        return self._kept.deleted

    @property
    def id(self) -> str:
        return _text(self.record.id_str)

    @property
    def name(self) -> str:
        return _text(self.record.name)

    @property
    def disk_size(self) -> int:
        """Virtual disk size in bytes when the snapshot was taken."""
        return self.record.disk_size

    @property
    def vm_state_size(self) -> int:
        """Length of the VM state in bytes, 0 where there is none."""
        return self.record.vm_state_size

    def open(self) -> ImageT:
        """Return the snapshot's disk as a read-only image of its own. Raises CorruptMetadata.

        It stays as it is, whatever happens to the disk, until the snapshot is deleted: then it raises UsageError.
        """
        self.require_kept()
        layer = self._image.layer
        tolerated = Severity.FATAL if layer.salvage else Severity.ERROR
        notices = raise_first(rules.snapshot_findings(layer.header, self.record), tolerated)
        turn = While(partial(_require_kept, self._kept, self._image.name)) if self._image.writable() else AT_ONCE
        state = layer.state(self.record.l1_table_offset, self.record.l1_size, self.disk_size, turn)
        name = f"{self._image.name}@{self.name}"
        return self._image.of_state(state, name, tuple(notices))

    def vm_state(self) -> io.BufferedReader:
        """Return the VM state as a binary file; empty where there is none. Spec: "Snapshots".

        Raises LimitExceeded where the record declares more than its L1 table can map.
        """
        state = self.open()
        return io.BufferedReader(VmState(state.layer, self.record, holds=state))

    def require_kept(self) -> None:
        """Raise UsageError for a deleted snapshot."""
        _require_kept(self._kept, self._image.name)


class Snapshots(Mapping[str, Snapshot[ImageT]]):
    """The snapshots of an image in the order of its table. A key is a name or, where no name matches, an ID.

    Where the image was opened with "r+" they can be changed: each change first makes everything durable, and then is
    one write of the header, so that a crash leaves the image before or after it. Reads and writes wait meanwhile.
    """

    def __init__(self, image: ImageT) -> None:
        self._image = image

    def __repr__(self) -> str:
        return f"<Snapshots of {self._image.name!r}: {[*self]}>"

    def __getitem__(self, key: str) -> Snapshot[ImageT]:
        for attribute in ("name", "id"):
            for snapshot in self.list():
                if getattr(snapshot, attribute) == key:
                    return snapshot
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter([snapshot.name for snapshot in self.list()])

    def __len__(self) -> int:
        return len(self._image.kept_snapshots)

    def list(self) -> tuple[Snapshot[ImageT], ...]:
        """Return all snapshots: several may share a name."""
        return tuple(Snapshot(self._image, kept) for kept in self._image.kept_snapshots)

    def create(self, name: str, *, date: float | None = None) -> Snapshot[ImageT]:
        """Take a snapshot of the disk as it is, and return it; `date` is in seconds since 1970, now without.

        Raises UsageError, UnsupportedFeature for an image with an external data file, LimitExceeded for one with too
        many snapshots or too narrow refcounts, StoreError; the image can be used on, unless it is closed then.
        """
        from qcow2c.atomic import snapshots as snapshot_change  # Late, here and below: it imports numpy.

        return self._change(lambda image: snapshot_change.create(image, name, date))[-1]

    def apply(self, key: str | Snapshot[ImageT]) -> None:
        """Let the disk be again what it was when a snapshot was taken, its size too; the snapshot stays.

        Raises NoSuchSnapshot, UsageError for an image with dirty bitmaps, and as `create`.
        """
        from qcow2c.atomic import snapshots as snapshot_change

        self._change(lambda image: snapshot_change.apply(image, self._position(key)))

    def delete(self, key: str | Snapshot[ImageT]) -> None:
        """Remove a snapshot. Raises NoSuchSnapshot, and as `create`."""
        from qcow2c.atomic import snapshots as snapshot_change

        def change(image: Successor) -> None:
            position = self._position(key)
            self._image.kept_snapshots[
                position
            ].deleted = True  # Who reads it learns so before its clusters are anything else.
            snapshot_change.delete(image, position)

        self._change(change, frees=True)

    def rename(self, key: str | Snapshot[ImageT], name: str) -> None:
        """Give a snapshot another name. Raises NoSuchSnapshot, and as `create`."""
        from qcow2c.atomic import snapshots as snapshot_change

        self._change(lambda image: snapshot_change.rename(image, self._position(key), name))

    def _change(self, change: Callable[[Successor], object], *, frees: bool = False) -> tuple[Snapshot[ImageT], ...]:
        self._image.change_as_whole(change, frees=frees)
        return self.list()

    def _position(self, key: str | Snapshot[ImageT]) -> int:
        """Return where a snapshot stands in the table. Raises NoSuchSnapshot."""
        snapshot = self.get(key) if isinstance(key, str) else key
        if snapshot is None or snapshot not in self.list():
            raise NoSuchSnapshot(f"snapshot {snapshot or key!r} not found")
        return self.list().index(snapshot)


def renewed(known: tuple[KeptSnapshot, ...], records: tuple[SnapshotRecord, ...]) -> tuple[KeptSnapshot, ...]:
    """Return what is known after a change of the table: one was changed, added at the end, or is gone, marked so."""
    left = [kept for kept in known if len(records) >= len(known) or not kept.deleted]
    for kept, record in zip(left, records, strict=False):
        kept.record, kept.deleted = record, False
    return (*left, *(KeptSnapshot(record) for record in records[len(left) :]))
