"""`Image`: a state of an image with all layers below it, as one file-like object; its snapshots.

It owns the position and the life of what was opened; what is opened at all, is decided in `opening.py`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from weakref import ref

from qcow2c.bitmaps.stored import Bitmaps, load_bitmaps
from qcow2c.errors import NoSuchSnapshot, UsageError
from qcow2c.format import rules
from qcow2c.format.findings import Finding, Severity, raise_first
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header
from qcow2c.format.records import SnapshotRecord, read_snapshots
from qcow2c.layers.layer import Layer
from qcow2c.layers.reader import Reader
from qcow2c.layers.salvage import Salvage, SalvagedRange
from qcow2c.layers.turn import AT_ONCE, While
from qcow2c.layers.vm_state import VmState
from qcow2c.storage.positioned import PositionedFile

if TYPE_CHECKING:
    from qcow2c.atomic.successor import Successor
    from qcow2c.engine import Engine


class Image(PositionedFile):
    """One state of an image, with all that lies below it: file-like, positional, safe across threads and forks.

    It is read-only unless it was opened with "r+"; then what is written is durable after `flush` or `close`, and lower
    layers and snapshots are never changed.

    `size()` is the virtual disk size in bytes: a method, as of `mmap.mmap`; fsspec and dissect have an attribute.
    `read`, `readinto`, `seek` and `tell` share one position, as with any file; `pread`, `pwrite` and others have none.
    """

    def __init__(
        self,
        layer: Reader,
        *,
        name: str,
        opened: ExitStack,
        notices: tuple[Finding, ...] = (),
        snapshots: tuple[SnapshotRecord, ...] = (),
        engine: Engine | None = None,
        active: bool = True,
    ) -> None:
        """Made by `open_image` and `Snapshot.open`, which is not `active`; closing the image closes `opened`."""
        super().__init__()
        self.name = name
        self.notices = notices
        """What the rules have to say of an image that can nevertheless be read: dirty, marked corrupt, ..."""
        self.layer = layer
        self.snapshots = Snapshots(self, snapshots)
        """The internal snapshots, by name or by ID, in the order of their table."""
        self._opened, self._engine, self._active = opened, engine, active
        self._locate, self._read_store = layer.locate, layer.data_store.pread
        self._size = layer.disk_size
        self._direct_end = self._size if layer.turn is AT_ONCE else -1
        """Up to where `pread` goes straight to the file: nowhere where reads take turns with writes, or once closed."""

    @property
    def header(self) -> Header:
        return self.layer.header

    @property
    def geometry(self) -> Geometry:
        return self.header.geometry

    @property
    def backing(self) -> Layer | None:
        """The layer below, None without one."""
        return self.layer.backing

    @property
    def salvaged(self) -> tuple[SalvagedRange, ...]:
        """The guest ranges of all layers that were read as zeros with on_error="zero"."""
        return tuple(self.layer.salvage.ranges) if isinstance(self.layer.salvage, Salvage) else ()

    @property
    def bitmaps(self) -> Bitmaps:
        """The persistent bitmaps, as the file has them now: none of a snapshot. Raises CorruptMetadata, StoreError.

        While an image is written to, those that are enabled count as inconsistent, until it is closed.
        """
        self._check_open()
        store = self.layer.store
        return load_bitmaps(store, Header.load(store)) if self._active else Bitmaps()

    def size(self) -> int:
        """Return the virtual disk size in bytes."""
        return self._size

    def pread(self, length: int, offset: int) -> bytes:
        """Return `length` bytes at `offset` of the virtual disk, fewer only at its end.

        Raises CorruptMetadata, CorruptData, MissingKey, StoreError, UsageError.
        """
        if offset >= 0 and offset + length <= self._direct_end:
            host_offset = self._locate(offset, length)
            if host_offset >= 0:
                data = self._read_store(length, host_offset)
                if len(data) == length:
                    return data
        return self._pread_any(length, offset)

    def _pread_any(self, length: int, offset: int) -> bytes:
        self._check_open()
        if offset < 0 or length < 0:
            raise UsageError(f"cannot read {length} bytes at offset {offset}: negative")
        buffer = bytearray(max(0, min(length, self._size - offset)))
        self.layer.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def readinto_at(self, buffer: Any, offset: int) -> int:
        """Fill a writable buffer from `offset`; return the bytes read, fewer than its length only at the end."""
        if offset < 0:
            raise UsageError(f"cannot read at offset {offset}: negative")
        self._check_open()
        view = memoryview(buffer).cast("B")
        inside = view[: max(0, min(len(view), self._size - offset))]
        self.layer.read_into(inside, offset)
        return len(inside)

    def pwrite(self, buffer: Any, offset: int) -> int:
        """Write all bytes of a buffer at `offset`, within the disk; return their number.

        Raises UsageError, CorruptMetadata, CorruptData, LimitExceeded, StoreError; after an error some of the bytes
        may have been written, and the image can be used on.
        """
        view = memoryview(buffer).cast("B")
        engine = self._writable(offset, len(view))
        if view:
            engine.write(view, offset)
        return len(view)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Make bytes read as zeros, without writing them where the format allows; `unmap` gives their space back.

        Raises as `pwrite`.
        """
        engine = self._writable(offset, length)
        if length:
            engine.write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """Give back the space of whole clusters, which then read as zeros; parts of clusters stay as they are.

        In version 2 over a backing file it does nothing: clusters let go of would show the backing file.
        Raises as `pwrite`.
        """
        engine = self._writable(offset, length)
        if length:
            engine.discard(offset, length)

    def write_compressed(self, buffer: Any, offset: int, *, level: int | None = None) -> int:
        """Write whole clusters, compressed; only the end of the disk may cut the last one short.

        Return the number of bytes. Raises as `pwrite`, and UsageError for parts of clusters and where guest data is
        in an external data file.
        """
        view = memoryview(buffer).cast("B")
        engine = self._writable(offset, len(view))
        size = self.geometry.cluster_size
        if offset % size or (len(view) % size and offset + len(view) != self._size):
            raise UsageError(f"{len(view)} bytes at offset {offset} are no whole clusters of {size} bytes")
        if view:
            engine.write_compressed(view, offset, level)
        return len(view)

    def flush(self) -> None:
        """Make everything written so far durable. Raises StoreError; after a failure nothing more can be written."""
        if self._engine is not None:
            self._engine.flush()

    @property
    def engine(self) -> Engine:
        """What writes the image. Raises io.UnsupportedOperation where it was opened read-only."""
        self._check_open()
        if self._engine is None:
            raise io.UnsupportedOperation("not writable: open the image with mode 'r+'")
        return self._engine

    def _writable(self, offset: int, length: int) -> Engine:
        """Return the engine, if it may write so many bytes there."""
        engine = self.engine
        if offset < 0 or length < 0 or offset + length > self._size:
            raise UsageError(f"{length} bytes at offset {offset} do not lie on the disk of {self._size} bytes")
        return engine

    def change_as_whole(self, change: Callable[[Successor], object]) -> tuple[Snapshot, ...]:
        """Let something change the image as a whole, and take up what it is then; return its snapshots.

        Durable order: everything pending, then that of `Successor.switch`. Raises StoreError, and what `change` raises.
        Where the new state cannot be read, the image is closed.
        """
        from qcow2c.atomic.successor import Successor  # Late: it imports numpy.

        engine = self.engine
        with engine.changing():
            admission = engine.settle()
            try:
                table = read_snapshots(self.layer.store, self.header)
                change(Successor(engine.medium, self.header, table, admission))
            finally:
                try:
                    self.snapshots.renew(engine.reload().records)
                    self._size = engine.disk_size
                except BaseException:
                    self._engine = None
                    self.close()
                    raise
            return self.snapshots.list()

    def writable(self) -> bool:
        return self._engine is not None

    def write(self, buffer: Any) -> int:
        """Write all bytes of a buffer at the position, and move it. Raises as `pwrite`."""
        count = self.pwrite(buffer, self._position)
        self._position += count
        return count

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Close the image; the caller sees what ended the block early and left nothing that may still be written."""
        if error is not None and self._engine is not None and not self._engine.sound:
            error.add_note(f"{self.name}: what was not flushed before is not in the image")
            self._engine = None
        self.close()

    def close(self) -> None:
        """Make durable what was written, and close every file that opening this image opened, in any case.

        A child of the process that opened it writes nothing. Raises StoreError where not everything could be written:
        a later opening shows what was flushed before.
        """
        if self.closed:
            return
        try:
            if self._engine is not None and not self._engine.medium.inherited:
                self._engine.finish()
        finally:
            self._direct_end = -1
            try:
                self._opened.close()
            finally:
                self._engine = None
                super().close()


class Snapshot:
    """An internal snapshot: its record, its disk, and its VM state. It lives as long as its image is open."""

    def __init__(self, image: Image, record: SnapshotRecord) -> None:
        self._image = image
        self.record = record
        self.deleted = False
        """Then it cannot be read any more: its clusters may hold anything."""

    def __repr__(self) -> str:
        return f"<Snapshot {self.id!r} {self.name!r}>"

    @property
    def id(self) -> str:
        return self.record.id_str.decode("utf-8", "surrogateescape")

    @property
    def name(self) -> str:
        return self.record.name.decode("utf-8", "surrogateescape")

    @property
    def disk_size(self) -> int:
        """Virtual disk size in bytes when the snapshot was taken."""
        return self.record.disk_size

    @property
    def vm_state_size(self) -> int:
        """Length of the VM state in bytes, 0 where there is none."""
        return self.record.vm_state_size

    def open(self) -> Image:
        """Return the snapshot's disk as a read-only image of its own. Raises CorruptMetadata.

        It stays as it is, whatever happens to the disk, until the snapshot is deleted: then it raises UsageError.
        """
        self.require_kept()
        layer = self._image.layer
        tolerated = Severity.FATAL if layer.salvage else Severity.ERROR
        notices = raise_first(rules.snapshot_findings(layer.header, self.record), tolerated)
        turn = While(self.require_kept) if self._image.writable() else AT_ONCE
        state = layer.state(self.record.l1_table_offset, self.record.l1_size, self.disk_size, turn)
        name = f"{self._image.name}@{self.name}"
        return Image(state, name=name, opened=ExitStack(), notices=tuple(notices), active=False)

    def vm_state(self) -> io.BufferedReader:
        """Return the VM state as a binary file; empty where there is none. Spec: "Snapshots".

        Raises LimitExceeded where the record declares more than its L1 table can map.
        """
        return io.BufferedReader(VmState(self.open().layer, self.record))

    def require_kept(self) -> None:
        """Raise UsageError for a deleted snapshot."""
        if self.deleted:
            raise UsageError(f"snapshot {self.name!r} of {self._image.name!r} was deleted")


class Snapshots(Mapping[str, Snapshot]):
    """The snapshots of an image in the order of its table. A key is a name or, where no name matches, an ID.

    Where the image was opened with "r+" they can be changed: each change first makes everything durable, and then is
    one write of the header, so that a crash leaves the image before or after it. Reads and writes wait meanwhile.
    """

    def __init__(self, image: Image, records: tuple[SnapshotRecord, ...]) -> None:
        self._image = ref(image)  # Who drops an image need not wait for the collector of cycles.
        self._found = tuple(Snapshot(image, record) for record in records)

    @property
    def _owner(self) -> Image:
        if (image := self._image()) is None:
            raise ValueError("I/O operation on closed image")
        return image

    def __getitem__(self, key: str) -> Snapshot:
        for attribute in ("name", "id"):
            for snapshot in self._found:
                if getattr(snapshot, attribute) == key:
                    return snapshot
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter([snapshot.name for snapshot in self._found])

    def __len__(self) -> int:
        return len(self._found)

    def list(self) -> tuple[Snapshot, ...]:
        """Return all snapshots: several may share a name."""
        return self._found

    def create(self, name: str, *, date: float | None = None) -> Snapshot:
        """Take a snapshot of the disk as it is, and return it; `date` is in seconds since 1970, now without.

        Raises UsageError, UnsupportedFeature for an image with an external data file, LimitExceeded for one with too
        many snapshots or too narrow refcounts, StoreError; the image can be used on, unless it is closed then.
        """
        from qcow2c.atomic import snapshots as snapshot_change  # Late, here and below: it imports numpy.

        return self._change(lambda image: snapshot_change.create(image, name, date))[-1]

    def apply(self, key: str | Snapshot) -> None:
        """Let the disk be again what it was when a snapshot was taken, its size too; the snapshot stays.

        Raises NoSuchSnapshot, UsageError for an image with dirty bitmaps, and as `create`.
        """
        from qcow2c.atomic import snapshots as snapshot_change

        self._change(lambda image: snapshot_change.apply(image, self._position(key)))

    def delete(self, key: str | Snapshot) -> None:
        """Remove a snapshot. Raises NoSuchSnapshot, and as `create`."""
        from qcow2c.atomic import snapshots as snapshot_change

        def change(image: Successor) -> None:
            position = self._position(key)
            self._found[position].deleted = True  # Who reads it learns so before its clusters are anything else.
            snapshot_change.delete(image, position)

        self._change(change)

    def rename(self, key: str | Snapshot, name: str) -> None:
        """Give a snapshot another name. Raises NoSuchSnapshot, and as `create`."""
        from qcow2c.atomic import snapshots as snapshot_change

        self._change(lambda image: snapshot_change.rename(image, self._position(key), name))

    def _change(self, change: Callable[[Successor], object]) -> tuple[Snapshot, ...]:
        return self._owner.change_as_whole(change)

    def _position(self, key: str | Snapshot) -> int:
        """Return where a snapshot stands in the table. Raises NoSuchSnapshot."""
        snapshot = self.get(key) if isinstance(key, str) else key
        if snapshot not in self._found:
            raise NoSuchSnapshot(f"snapshot {snapshot or key!r} not found")
        return self._found.index(snapshot)

    def renew(self, records: tuple[SnapshotRecord, ...]) -> None:
        """Take up the records of a table of which one was changed, added at the end, or is gone, marked so."""
        known = [snapshot for snapshot in self._found if len(records) >= len(self._found) or not snapshot.deleted]
        for snapshot, record in zip(known, records, strict=False):
            snapshot.record, snapshot.deleted = record, False
        self._found = (*known, *(Snapshot(self._owner, record) for record in records[len(known) :]))
