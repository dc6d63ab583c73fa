"""`Image`: a state of an image with all layers below it, as one file-like object.

It owns the position and the life of what was opened; what is opened at all, is decided in `opening.py`.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from operator import index

from qcow2c.bitmaps.stored import Bitmaps, load_bitmaps
from qcow2c.errors import Qcow2Error, StoreError, UsageError
from qcow2c.format.findings import Finding
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header
from qcow2c.format.records import SnapshotRecord, read_snapshots
from qcow2c.internal_snapshots import KeptSnapshot, Snapshots, renewed
from qcow2c.layers.direct import IN_NO_FILE
from qcow2c.layers.layer import Extent, Layer
from qcow2c.layers.reader import Reader
from qcow2c.layers.salvage import Salvage, SalvagedRange
from qcow2c.layers.turn import AT_ONCE
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.integers import index_or_none
from qcow2c.storage.open_file import OpenFile
from qcow2c.storage.positioned import PositionedFile, SharedFile
from qcow2c.storage.store import Store, lacks_room

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from qcow2c.atomic.successor import Successor
    from qcow2c.engine import Engine

Mapped = Callable[[Layer, int, int | None], Iterator[Extent]]
"""Yields the extents of a layer from an offset on, so many bytes or all."""


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
        parent: Image | None = None,
        mapped: Mapped,
        reopen: Callable[[], Image] | None = None,
    ) -> None:
        """Made by `open_image`, and, with a `parent`, by `of_state`; closing the image closes `opened`.

        `mapped` finds the extents of a layer and of what lies below it; `reopen` opens the same once more.
        """
        super().__init__()
        self.name = name
        self.notices = notices
        """What the rules have to say of an image that can nevertheless be read: dirty, marked corrupt, ..."""
        self.layer = layer
        self.kept_snapshots = tuple(KeptSnapshot(record) for record in snapshots)
        """What is known of the snapshots; `snapshots` is how to get at them."""
        self._opened, self._engine, self._active = opened, engine, parent is None
        self._parent = parent
        self._mapped = mapped
        self._reopen = reopen
        self._is_copy = False
        self._process = os.getpid()
        self._locate, self._read_directly = layer.locate, layer.data_store.direct_pread()
        self._size = layer.disk_size
        self._direct_end = self._size if layer.turn is AT_ONCE else -1
        """Up to where `pread` goes straight to the file: nowhere where reads take turns with writes, or once closed."""

    def __repr__(self) -> str:
        state = "closed" if self.closed else "r+" if self.writable() else "r"
        return f"<Image {self.name!r} {state}>"

    def __del__(self) -> None:
        if not self.closed and hasattr(self, "_process"):
            holds_file = self._active and not self._is_copy and isinstance(self.layer.store, OpenFile)
            try:
                if holds_file and self._process == os.getpid():
                    warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:  # A warning may be an error.
                self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Let `pickle` and `copy` open the image once more, at the same position: so process pools just work.

        Only where it was opened read-only, without a key, by paths or URLs; else TypeError. A copy is an `Image` of its
        own, of what is there then; it is closed by `close`, or when it is not used any more. A fork needs none of it.
        """
        self._check_open()
        if self._reopen is None:
            return super().__reduce_ex__(protocol)
        return _opened_again, (self._reopen, self._position)

    def file(self) -> SharedFile:
        """Return the disk as another file, with a position and a `close` of its own, as long as this image is open."""
        self._check_open()
        return SharedFile(self)

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
    def snapshots(self) -> Snapshots[Image]:
        """The internal snapshots, by name or by ID, in the order of their table."""
        return Snapshots(self)

    def of_state(self, layer: Reader, name: str, notices: tuple[Finding, ...]) -> Image:
        """Return a read-only image of another state of this one, whose files it needs; `Snapshot.open` does it."""
        return Image(layer, name=name, opened=ExitStack(), notices=notices, parent=self, mapped=self._mapped)

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

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Yield what the disk holds from byte `start` on, `length` bytes or all: data, zeros, and where, in order.

        It is what `qemu-img map` prints; layers below are looked at, guest data is not read. What is pending is made
        durable before. Raises CorruptMetadata at the first table entry that breaks a rule, LimitExceeded, StoreError,
        UsageError.
        """
        start, length = index(start), index_or_none(length)
        if start < 0 or (length or 0) < 0:
            raise UsageError(f"cannot map {length} bytes at offset {start}: negative")
        self._check_open()
        self.image_file()
        return self._mapped(self.layer, start, length)

    def image_file(self) -> Store:
        """Return the file of the image; what is pending is made durable before. Raises UsageError, StoreError."""
        (self._parent or self).flush()
        return self.layer.store

    def size(self) -> int:
        """Return the virtual disk size in bytes."""
        return self._size

    def pread(self, length: int, offset: int) -> bytes:
        """Return `length` bytes at `offset` of the virtual disk, fewer only at its end.

        Raises CorruptMetadata, CorruptData, MissingKey, StoreError, UsageError.
        """
        length, offset = index(length), index(offset)
        if 0 <= offset <= offset + length <= self._direct_end:
            host_offset = self._locate(offset, length)
            if host_offset >= 0:
                try:
                    data = self._read_directly(length, host_offset)
                except OSError:
                    data = b""  # The way of all other reads says what is wrong.
                if len(data) == length and self._direct_end >= 0:  # Else it was closed meanwhile.
                    return data
            elif host_offset == IN_NO_FILE:
                return bytes(length)
        return self._pread_any(length, offset)

    def _check_sound(self) -> None:
        """Raise UsageError for a closed image, StoreError for one whose flush has failed: nothing succeeds any more.

        A child process reads what its parent has opened, and does not know of its flushes.
        """
        self._check_open()
        if self._engine is not None and not self._engine.medium.inherited:
            self._engine.require_sound()

    def _pread_any(self, length: int, offset: int) -> bytes:
        self._check_sound()
        if offset < 0 or length < 0:
            raise UsageError(f"cannot read {length} bytes at offset {offset}: negative")
        buffer = bytearray(max(0, min(length, self._size - offset)))
        self.layer.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def readinto_at(self, buffer: Any, offset: int) -> int:
        """Fill a writable buffer from `offset`; return the bytes read, fewer than its length only at the end."""
        offset = index(offset)
        if offset < 0:
            raise UsageError(f"cannot read at offset {offset}: negative")
        self._check_sound()
        view = memoryview(buffer).cast("B")
        inside = view[: max(0, min(len(view), self._size - offset))]
        self.layer.read_into(inside, offset)
        return len(inside)

    def pwrite(self, buffer: Any, offset: int) -> int:
        """Write all bytes of a buffer at `offset`, within the disk; return their number.

        Where there is no room, clusters that were freed are made usable (as `flush` does), and it is tried again.
        Raises UsageError, CorruptMetadata, CorruptData, LimitExceeded, StoreError; after an error some of the bytes
        may have been written, and the image can be used on.
        """
        offset, view = index(offset), memoryview(buffer).cast("B")
        engine = self._writable(offset, len(view))
        if view:
            _with_room(engine, lambda: engine.write(view, offset))
        return len(view)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Make bytes read as zeros, without writing them where the format allows; `unmap` gives their space back.

        Raises as `pwrite`.
        """
        offset, length = index(offset), index(length)
        engine = self._writable(offset, length)
        if length:
            _with_room(engine, lambda: engine.write_zeroes(offset, length, unmap=unmap))

    def discard(self, offset: int, length: int) -> None:
        """Give back the space of whole clusters, which then read as zeros; parts of clusters stay as they are.

        In version 2 over a backing file it does nothing: freed clusters would show the backing file.
        Raises as `pwrite`.
        """
        offset, length = index(offset), index(length)
        engine = self._writable(offset, length)
        if length:
            engine.discard(offset, length)

    def write_compressed(self, buffer: Any, offset: int, *, level: int | None = None) -> int:
        """Write whole clusters, compressed; only the end of the disk may cut the last one short.

        Return the number of bytes. Raises as `pwrite`, and UsageError for parts of clusters and where guest data is
        in an external data file.
        """
        offset, view = index(offset), memoryview(buffer).cast("B")
        engine = self._writable(offset, len(view))
        size = self.geometry.cluster_size
        if offset % size or (len(view) % size and offset + len(view) != self._size):
            raise UsageError(f"{len(view)} bytes at offset {offset} are no whole clusters of {size} bytes")
        if view:
            _with_room(engine, lambda: engine.write_compressed(view, offset, level))
        return len(view)

    def flush(self) -> None:
        """Make everything written so far durable. Raises StoreError; after a failure nothing more can be written.

        Raises UsageError for an image that is closed, whether that failed or not.
        """
        self._check_open()
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
        if not length:  # What writes something asks for itself.
            engine.require_sound()
        if offset < 0 or length < 0 or offset + length > self._size:
            raise UsageError(f"{length} bytes at offset {offset} do not lie on the disk of {self._size} bytes")
        return engine

    def change_as_whole(self, change: Callable[[Successor], object], *, frees: bool = False) -> None:
        """Let something change the image as a whole, and take up what it is then.

        `frees` is for what gives clusters back: without room it is done in place, and `change` is called again.

        Durable order: everything pending, then that of `Successor.switch`. Raises StoreError, and what `change` raises.
        Where the new state cannot be read, the image is closed.
        """
        from qcow2c.atomic.successor import Successor, freeing  # Late: it imports numpy.

        engine = self.engine
        with engine.changing():
            admission = engine.settle()
            try:
                table = read_snapshots(self.layer.store, self.header)
                image = Successor(engine.medium, self.header, table, admission)
                try:
                    freeing(image, change) if frees else change(image)
                except BaseException:
                    image.undo()
                    raise
            except BaseException as exc:
                with suppress(*(() if isinstance(exc, Qcow2Error) else (Qcow2Error,))):  # An interrupt stays one.
                    self._take_up(engine)
                raise
            self._take_up(engine)

    def _take_up(self, engine: Engine) -> None:
        """Take up what the image is after a change of the whole; what cannot be taken up is not used any more."""
        try:
            self.kept_snapshots = renewed(self.kept_snapshots, engine.reload().records)
            self._size = engine.disk_size
        except BaseException as exc:
            what = exc.message if isinstance(exc, Qcow2Error) else type(exc).__name__
            self._closed_because = f"after a change it is unknown what it is ({what})"
            engine.give_up(exc, f"{self.name!r} was closed: {self._closed_because}")
            self._engine = None
            self.close()
            raise

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
        except BaseException as exc:
            self._closed_because = f"closing it failed: {exc}"
            raise
        finally:
            self._direct_end = -1
            try:
                self._opened.close()
            finally:
                self._engine = self._parent = None
                super().close()


def _opened_again(reopen: Callable[[], Image], position: int) -> Image:
    """Return an image that was pickled; nothing warns where it is left to the collector, as pools do."""
    image = reopen()
    image._is_copy = True  # noqa: SLF001 - of the same module
    image.seek(position)
    return image


def _with_room(engine: Engine, write: Callable[[], None]) -> None:
    """Write; where there is no room, make what was freed usable and try once more. Raises as `write`."""
    try:
        write()
    except StoreError as exc:
        if not lacks_room(exc):
            raise
        with engine.changing():
            if not engine.session.make_room():
                raise
        write()
