"""`Image`: a state of an image with all layers below it, as one file-like object; its snapshots.

It owns the position and the life of what was opened; what is opened at all, is decided in `opening.py`.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qcow2c import rules
from qcow2c.bitmap_store import Bitmaps, load_bitmaps
from qcow2c.errors import LimitExceeded, Span, UsageError
from qcow2c.findings import Finding, Severity, raise_first
from qcow2c.geometry import Geometry
from qcow2c.header import Header
from qcow2c.layer import Layer
from qcow2c.reader import Reader
from qcow2c.records import SnapshotRecord

if TYPE_CHECKING:
    from qcow2c.engine import Engine


@dataclass(frozen=True, slots=True)
class SalvagedRange:
    """Guest bytes that read as zeros because they cannot be read, in salvage mode."""

    guest: Span
    error: Exception


@dataclass
class Salvage:
    """The log of salvage mode, shared by all layers and states of an image."""

    ranges: list[SalvagedRange] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, guest: Span, error: Exception) -> None:
        with self._lock:
            last = self.ranges[-1] if self.ranges else None
            if last is not None and last.guest.end == guest.offset and last.error.args == error.args:
                self.ranges[-1] = SalvagedRange(Span(last.guest.offset, last.guest.length + guest.length), last.error)
            elif last is None or last.guest != guest:
                self.ranges.append(SalvagedRange(guest, error))


class Image(io.RawIOBase):
    """One state of an image, with all that lies below it: file-like, positional, safe across threads.

    It is read-only unless it was opened with "r+"; then what is written is durable after `flush` or `close`, and lower
    layers and snapshots are never changed.

    `size()` is the virtual disk size in bytes. `read`, `readinto`, `seek` and `tell` share one position, as with any
    file; `pread`, `pwrite` and the like have none, and may be called from several threads.
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
        """Made by `open_image` and `Snapshot.open`; closing the image closes `opened`.

        `engine` is the layer itself, where it may be written; `active` tells the active state from a snapshot's.
        """
        super().__init__()
        self.name = name
        self.header = layer.header
        self.notices = notices
        """What the rules have to say of an image that can nevertheless be read: dirty, marked corrupt, ..."""
        self.layer = layer
        self.snapshots = Snapshots(self, snapshots)
        """The internal snapshots, by name or by ID, in the order of their table."""
        self._opened = opened
        self._position = 0
        self._engine = engine
        self._active = active
        # A small read must not meet a write half-way: then all reads take turns with writes.
        self._locate = layer.locate if engine is None else lambda _guest_offset, _length: -1
        self._read_store = layer.data_store.pread
        self._size = layer.disk_size

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

    # --- positional ---

    def size(self) -> int:
        """Return the virtual disk size in bytes."""
        return self._size

    def pread(self, length: int, offset: int) -> bytes:
        """Return `length` bytes at `offset` of the virtual disk, fewer only at its end.

        Raises CorruptMetadata, CorruptData, MissingKey, StoreError, UsageError.
        """
        if offset >= 0 and offset + length <= self._size:
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

    def _writable(self, offset: int, length: int) -> Engine:
        """Return the engine, if it may write so many bytes there."""
        self._check_open()
        if self._engine is None:
            raise io.UnsupportedOperation("not writable: open the image with mode 'r+'")
        if offset < 0 or length < 0 or offset + length > self._size:
            raise UsageError(f"{length} bytes at offset {offset} do not lie on the disk of {self._size} bytes")
        return self._engine

    # --- file-like: io.RawIOBase makes read, readall and the context manager of these ---

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._engine is not None

    def write(self, buffer: Any) -> int:
        """Write all bytes of a buffer at the position, and move it. Raises as `pwrite`."""
        count = self.pwrite(buffer, self._position)
        self._position += count
        return count

    def readinto(self, buffer: Any) -> int:
        """Fill a writable buffer from the position, and move it."""
        count = self.readinto_at(buffer, self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        if whence not in bases:
            raise UsageError(f"cannot seek from {whence}: it is none of SEEK_SET, SEEK_CUR, SEEK_END")
        if bases[whence] + offset < 0:
            raise UsageError(f"cannot seek to {bases[whence] + offset}: negative")
        self._position = bases[whence] + offset
        return self._position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def close(self) -> None:
        """Make durable what was written, and close every file that opening this image opened, in any case.

        Raises StoreError where not everything could be written: a later opening shows what was flushed before.
        """
        if self.closed:
            return
        try:
            if self._engine is not None:
                self._engine.finish()
        finally:
            self._locate = lambda _guest_offset, _length: -1  # Small reads, too, find out that it is closed.
            try:
                self._opened.close()
            finally:
                self._engine = None
                super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed image")


class Snapshot:
    """An internal snapshot: its record, its disk, and its VM state. It lives as long as its image is open."""

    def __init__(self, image: Image, record: SnapshotRecord) -> None:
        self._image = image
        self.record = record

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
        """Return the snapshot's disk as a read-only image of its own. Raises CorruptMetadata."""
        layer = self._image.layer
        tolerated = Severity.FATAL if layer.salvage else Severity.ERROR
        notices = raise_first(rules.snapshot_findings(layer.header, self.record), tolerated)
        state = layer.state(self.record.l1_table_offset, self.record.l1_size, self.disk_size)
        name = f"{self._image.name}@{self.name}"
        return Image(state, name=name, opened=ExitStack(), notices=tuple(notices), active=False)

    def vm_state(self) -> io.BufferedReader:
        """Return the VM state as a binary file; empty where there is none. Spec: "Snapshots".

        Raises LimitExceeded where the record declares more than its L1 table can map.
        """
        return io.BufferedReader(_VmState(self.open().layer, self.record))


class _VmState(io.RawIOBase):
    """The VM state: what the L1 table maps beyond the disk."""

    def __init__(self, layer: Reader, record: SnapshotRecord) -> None:
        super().__init__()
        geometry = layer.geometry
        disk_entries = geometry.l1_entries(record.disk_size)
        room = max(0, record.l1_size - disk_entries) << geometry.l2_coverage_bits
        if record.vm_state_size > room:
            message = f"VM state of {record.vm_state_size} bytes, but the L1 table maps {room} beyond the disk"
            raise LimitExceeded(message, where=record.span, spec="Snapshots")
        self._layer = layer
        self._start = disk_entries << geometry.l2_coverage_bits
        self._size = record.vm_state_size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        inside = view[: max(0, min(len(view), self._size - self._position))]
        self._layer.read_mapped(inside, self._start + self._position)
        self._position += len(inside)
        return len(inside)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position


class Snapshots(Mapping[str, Snapshot]):
    """The snapshots of an image in the order of its table. A key is a name or, where no name matches, an ID."""

    def __init__(self, image: Image, records: tuple[SnapshotRecord, ...]) -> None:
        self._found = tuple(Snapshot(image, record) for record in records)

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
