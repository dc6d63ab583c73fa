"""What a directory shows of an image: its disk, snapshots, bitmaps, and texts about it. It knows nothing of FUSE.

    disk            the disk, with its size
    snapshots/NAME  the disk of each snapshot, read-only
    bitmaps/NAME    what a persistent bitmap had recorded when the folder was opened, as `qcow2c bitmap --show` says it
    info.json       what `qcow2c info --output=json` says
    map.json        what `qcow2c map --output=json` says

The names in `snapshots` and `bitmaps` are those of `qcow2c.disk.entry_names`. A raw file has a disk and its map alone.
"""

from __future__ import annotations

import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Unpack

from qcow2c.bitmaps.stored import Bitmap
from qcow2c.disk.entry_names import entry_names
from qcow2c.disk.map import DiskMap
from qcow2c.disk.map_json import map_json
from qcow2c.disk.opening import Opening
from qcow2c.errors import UsageError
from qcow2c.image import Image
from qcow2c.internal_snapshots import Snapshot
from qcow2c.layers.layer import Layer, RawLayer
from qcow2c.layers.turn import AT_ONCE
from qcow2c.ops.info import info
from qcow2c.serve.exports import ZERO, Choices, Export, ImageExport, RawExport
from qcow2c.serve.opening import open_served
from qcow2c.storage.sources import Source, Store

Pieces = Callable[[], Iterator[str]]

INCONSISTENT = "inconsistent\n"
"""The text of a bitmap that was not saved by the program that used it last."""


class Entry(ABC):
    """A file of a folder. Several threads may use it."""

    writable = False
    changing = False
    """Its bytes may change without a write to it."""

    @property
    @abstractmethod
    def size(self) -> int: ...

    @property
    def used_size(self) -> int:
        """Bytes that it takes, about."""
        return self.size

    @abstractmethod
    def open(self) -> OpenEntry:
        """Open the file. Raises Qcow2Error."""


class OpenEntry(ABC):
    """An open file. All offsets may lie behind its end."""

    @abstractmethod
    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill a buffer; return the bytes read: fewer only at the end. Raises Qcow2Error."""

    @abstractmethod
    def seek(self, offset: int, *, data: bool) -> int | None:
        """Return where data, or a hole, begins from an offset on; None where there is no more. Raises Qcow2Error."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release what is held."""


class OpenDisk(OpenEntry):
    """An open disk."""

    def __init__(self, export: Export, changed: Callable[[], None]) -> None:
        self.export = export
        self._changed = changed
        self._unsaved = False

    def read_into(self, buffer: memoryview, offset: int) -> int:
        inside = buffer[: max(0, self.export.size - offset)]
        if inside:
            self.export.read_into(inside, offset)
        return len(inside)

    def write(self, data: memoryview, offset: int) -> int:
        """Write what lies on the disk; return how much that is. Raises Qcow2Error."""
        inside = data[: max(0, self.export.size - offset)]
        if inside:
            self._unsaved = True
            self._changed()
            self.export.write(inside, offset)
        return len(inside)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make zeros of what lies on the disk. Raises Qcow2Error."""
        length = min(length, self.export.size - offset)
        if length > 0:
            self._unsaved = True
            self._changed()
            self.export.write_zeroes(offset, length, unmap=unmap)

    def flush(self, *, always: bool = True) -> None:
        """Make durable what was written, unless only what was written here counts and there is none."""
        if always or self._unsaved:
            self._unsaved = False
            try:
                self.export.flush()
            except BaseException:
                self._unsaved = True
                raise

    def seek(self, offset: int, *, data: bool) -> int | None:
        allocation = self.export.contexts()[b"base:allocation"]
        if not 0 <= offset < self.export.size:
            return None
        while offset < self.export.size:
            for length, flags in allocation(offset, self.export.size - offset):
                if data != bool(flags & ZERO):
                    return offset
                offset += length
        return None if data else self.export.size


class DiskEntry(Entry):
    """The disk."""

    def __init__(self, export: Export, used_size: int | None, changed: Callable[[], None]) -> None:
        self._export = export
        self._used_size = export.size if used_size is None else min(used_size, export.size)
        self._changed = changed
        self.writable = export.writable

    @property
    def size(self) -> int:
        return self._export.size

    @property
    def used_size(self) -> int:
        return self._used_size

    def open(self) -> OpenDisk:
        return OpenDisk(self._export, self._changed)


class SnapshotEntry(Entry):
    """The disk of a snapshot, opened when it is first needed."""

    def __init__(self, snapshot: Snapshot[Image], used_size: int | None) -> None:
        self._snapshot = snapshot
        self._used_size = snapshot.disk_size if used_size is None else min(used_size, snapshot.disk_size)
        self._export: Export | None = None
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._snapshot.disk_size

    @property
    def used_size(self) -> int:
        return self._used_size

    def open(self) -> OpenDisk:
        with self._lock:
            if self._export is None:
                self._export = ImageExport(self._snapshot.open(), f"snapshot {self._snapshot.id}", Choices())
            return OpenDisk(self._export, lambda: None)


class TextEntry(Entry):
    """A text that is made when somebody looks at it, and again after something has changed; it lies in a file."""

    changing = True

    def __init__(self, pieces: Pieces, generation: Callable[[], int]) -> None:
        self._pieces = pieces
        self._generation = generation
        self._made: tuple[int, int] | None = None
        """Of which generation it is, and the descriptor of its file."""
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        with self._lock:
            return os.fstat(self._made_now()).st_size

    def open(self) -> OpenEntry:
        with self._lock:
            return _OpenText(os.dup(self._made_now()))

    def _made_now(self) -> int:
        generation = self._generation()
        if self._made is None or self._made[0] != generation:
            self._forget()
            with tempfile.TemporaryFile() as file:
                for piece in self._pieces():
                    file.write(piece.encode("utf-8", "surrogateescape"))
                file.flush()
                self._made = generation, os.dup(file.fileno())
        return self._made[1]

    def _forget(self) -> None:
        if self._made is not None:
            os.close(self._made[1])
            self._made = None

    def close(self) -> None:
        with self._lock:
            self._forget()


class _OpenText(OpenEntry):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_into(self, buffer: memoryview, offset: int) -> int:
        return os.preadv(self._descriptor, [buffer], offset)

    def seek(self, offset: int, *, data: bool) -> int | None:
        size = os.fstat(self._descriptor).st_size
        if not 0 <= offset < size:
            return None
        return offset if data else size

    def close(self) -> None:
        os.close(self._descriptor)


class Folder:
    """The files of an image by their paths, and the directories."""

    def __init__(self, disk: Image | Store, *, writable: bool) -> None:
        """`disk` is an image, or a raw file. Raises CorruptMetadata for broken bitmaps, StoreError."""
        self._generation = 0
        self._disk = disk
        choices = Choices(writable=writable)
        self.directories: dict[str, list[str]] = {"": ["disk"]}
        """The names in each directory."""
        self.entries: dict[str, Entry] = {}
        if isinstance(disk, Image):
            used = disk.layer.data_store.allocated_size()
            self._add("disk", DiskEntry(ImageExport(disk, "", choices), used, self._changed))
            self._add_states(disk, used)
            self._add("info.json", self._text(lambda: _info(disk)))
            self._add("map.json", self._text(lambda: _map(disk.layer, disk.layer.turn)))
        else:
            self._add("disk", DiskEntry(RawExport(disk, "", choices), disk.allocated_size(), self._changed))
            self._add("map.json", self._text(lambda: _map(RawLayer(disk), AT_ONCE)))
        self.directories[""] = sorted({path.partition("/")[0] for path in (*self.entries, *self.directories)} - {""})

    def _add_states(self, image: Image, used: int | None) -> None:
        snapshots, bitmaps = image.snapshots.list(), list(image.bitmaps)
        self._add_folder("snapshots", [one.name for one in snapshots], [SnapshotEntry(one, used) for one in snapshots])
        texts = [self._text(_bitmap_text(one), changing=False) for one in bitmaps]
        self._add_folder("bitmaps", [one.name for one in bitmaps], texts)

    def _add_folder(self, directory: str, names: list[str], entries: list[SnapshotEntry] | list[TextEntry]) -> None:
        self.directories[directory] = entry_names(names)
        for name, entry in zip(self.directories[directory], entries, strict=True):
            self._add(f"{directory}/{name}", entry)

    def _add(self, path: str, entry: Entry) -> None:
        self.entries[path] = entry

    def _text(self, pieces: Pieces, *, changing: bool = True) -> TextEntry:
        return TextEntry(pieces, (lambda: self._generation) if changing else lambda: 0)

    def _changed(self) -> None:
        self._generation += 1

    def flush(self) -> None:
        """Make durable what was written. Raises StoreError."""
        if isinstance(self._disk, Image) or self._disk.writable:
            self._disk.flush()

    def close(self) -> None:
        """Forget the texts."""
        for entry in self.entries.values():
            if isinstance(entry, TextEntry):
                entry.close()


def _info(image: Image) -> Iterator[str]:
    import json

    yield json.dumps(info(image).as_dict(), indent=4) + "\n"


def _map(layer: Layer, turn: AbstractContextManager[object]) -> Iterator[str]:
    with turn:  # A writer changes the tables.
        yield from map_json(DiskMap(layer))


def _bitmap_text(bitmap: Bitmap) -> Pieces:
    def pieces() -> Iterator[str]:
        try:
            bitmap.require_consistent()
        except UsageError:
            yield INCONSISTENT
            return
        yield f"{'Offset':<16}Length\n"
        for span in bitmap.ranges():
            yield f"{span.offset:<#16x}{span.length:#x}\n"

    return pieces


@contextmanager
def open_folder(
    source: Source | Store,
    *,
    image_format: str | None = None,
    writable: bool = False,
    **opening: Unpack[Opening],
) -> Iterator[Folder]:
    """Open an image, qcow2 or raw, and yield its folder; what was written is durable when it is closed.

    Raises as `qcow2c.open`, when it is closed, too.
    """
    with open_served(source, image_format, writable=writable, **opening) as disk:
        folder = Folder(disk, writable=writable)
        try:
            yield folder
            if not isinstance(disk, Image):
                folder.flush()
        finally:
            folder.close()
