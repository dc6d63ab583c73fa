"""What is served under a name: a disk, with its size and what is known of its ranges. It knows no protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from qcow2c.disk.map import Extent, extents
from qcow2c.image import Image
from qcow2c.layers.direct import NOT_SIMPLE, run_start
from qcow2c.layers.layer import RawLayer
from qcow2c.storage.store import Store

Described = Iterator[tuple[int, int]]
"""Adjacent ranges: the length of each, and a number that says what it is."""

Describe = Callable[[int, int], Described]
"""Describes so many bytes from an offset on, or the first of them."""

MAX_EXTENTS = 4096
"""Ranges that are described at once, at most."""

SMALL_READ = 1 << 14
"""Bytes that are copied in less time than it takes to see where they are."""

HOLE, ZERO = 1, 2
DIRTY = 1


class Choices(NamedTuple):
    """How disks are served."""

    writable: bool = False
    discard: bool = True
    """A client's trim gives space back."""
    detect_zeroes: str = "off"
    """Of what is written, zeros become "off": data, "on": zeros, "unmap": zeros that take no space."""
    allocation_depth: bool = False
    bitmap: str | None = None


class FilePlace(NamedTuple):
    """Where bytes are in an open file: all of them were there when it was asked."""

    descriptor: int
    offset: int


def _place(store: Store, offset: int, length: int) -> FilePlace | None:
    descriptor = store.descriptor()
    if descriptor is None or offset + length > store.size():  # Who reads them says what is wrong.
        return None
    return FilePlace(descriptor, offset)


class Export(ABC):
    """A disk; all offsets and lengths were found to lie on it. Several threads may call it."""

    fast_zeroes = False
    """Zeros are written much faster than data, always."""

    def __init__(self, size: int, description: str, choices: Choices) -> None:
        self.size = size
        self.description = description
        self.choices = choices

    @property
    def writable(self) -> bool:
        return self.choices.writable

    @abstractmethod
    def read_into(self, buffer: memoryview, offset: int) -> None: ...

    def place_in_file(self, offset: int, length: int) -> FilePlace | None:  # noqa: ARG002 - few have one
        """Return where in a file the bytes are as they are on the disk; None where they have to be read."""
        return None

    @abstractmethod
    def write(self, data: memoryview, offset: int) -> None: ...

    @abstractmethod
    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None: ...

    @abstractmethod
    def trim(self, offset: int, length: int) -> None: ...

    @abstractmethod
    def flush(self) -> None: ...

    @abstractmethod
    def contexts(self) -> Mapping[bytes, Describe]:
        """Return what can be said of ranges, by the name that the NBD protocol and QEMU have for it."""


class WholeExport(Export):
    """A disk from its first byte to its last."""

    @abstractmethod
    def _write(self, data: memoryview, offset: int) -> None: ...

    @abstractmethod
    def _extents(self, offset: int, length: int) -> Iterator[Extent]: ...

    def write(self, data: memoryview, offset: int) -> None:
        """Write data, or zeros where they are looked for."""
        if self.choices.detect_zeroes != "off" and data and not data[0] and _is_zeros(data):
            self.write_zeroes(offset, len(data), unmap=self.choices.detect_zeroes == "unmap")
        else:
            self._write(data, offset)

    def contexts(self) -> Mapping[bytes, Describe]:
        found: dict[bytes, Describe] = {b"base:allocation": self._allocation}
        if self.choices.allocation_depth:
            found[b"qemu:allocation-depth"] = self._depths
        return found

    def _allocation(self, offset: int, length: int) -> Described:
        for extent in self._some_extents(offset, length):
            yield extent.length, (0 if extent.data else HOLE) | (ZERO if extent.zero else 0)

    def _depths(self, offset: int, length: int) -> Described:
        for extent in self._some_extents(offset, length):
            yield extent.length, extent.depth + 1 if extent.present else 0

    def _some_extents(self, offset: int, length: int) -> list[Extent]:
        return list(islice(self._extents(offset, length), MAX_EXTENTS))


def _is_zeros(data: memoryview) -> bool:
    return data == bytes(len(data))


class ImageExport(WholeExport):
    """A qcow2 image, or a snapshot of one."""

    fast_zeroes = True

    def __init__(self, image: Image, description: str, choices: Choices) -> None:
        super().__init__(image.size(), description, choices)
        self._image = image
        self._dirty = None if choices.bitmap is None else _DirtyRanges(image, choices.bitmap)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if len(buffer) <= SMALL_READ and not self.writable:  # By the shortest way to the file.
            buffer[:] = self._image.pread(len(buffer), offset)
        else:
            self._image.readinto_at(buffer, offset)

    def place_in_file(self, offset: int, length: int) -> FilePlace | None:
        if self.writable:  # Other clusters may be there by the time the bytes are sent.
            return None
        layer = self._image.layer
        start = run_start(layer.locate, offset, length, layer.header.cluster_size)
        return None if start == NOT_SIMPLE else _place(layer.store, start, length)

    def _write(self, data: memoryview, offset: int) -> None:
        self._image.pwrite(data, offset)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._image.write_zeroes(offset, length, unmap=unmap)

    def trim(self, offset: int, length: int) -> None:
        if self.choices.discard:
            self._image.discard(offset, length)

    def flush(self) -> None:
        if self.writable:
            self._image.flush()

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        layer = self._image.layer
        with layer.turn:  # A writer changes the tables.
            yield from list(islice(extents(layer, offset, length), MAX_EXTENTS))

    def contexts(self) -> Mapping[bytes, Describe]:
        found = dict(super().contexts())
        if self._dirty is not None:
            found[b"qemu:dirty-bitmap:" + self._dirty.name] = self._dirty.described
        return found


class _DirtyRanges:
    """A persistent bitmap as it was when the server began."""

    def __init__(self, image: Image, name: str) -> None:
        """Raises KeyError where there is none, UsageError for an inconsistent one, CorruptMetadata, StoreError."""
        self.name = name.encode(errors="surrogateescape")
        spans = list(image.bitmaps[name].ranges())
        self._starts = [span.offset for span in spans]
        self._ends = [span.end for span in spans]

    def described(self, offset: int, length: int) -> Described:
        end = offset + length
        index = bisect_right(self._ends, offset)
        for _ in range(MAX_EXTENTS):
            if offset >= end:
                return
            start = self._starts[index] if index < len(self._starts) else end
            if offset < start:
                stop, flags = min(start, end), 0
            else:
                stop, flags = min(self._ends[index], end), DIRTY
                index += 1
            yield stop - offset, flags
            offset = stop


class RawExport(WholeExport):
    """A raw file, or a part of one."""

    def __init__(self, store: Store, description: str, choices: Choices) -> None:
        super().__init__(store.size(), description, choices)
        self._store = store
        self._layer = RawLayer(store)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._layer.read_into(buffer, offset)

    def place_in_file(self, offset: int, length: int) -> FilePlace | None:
        return None if self.writable else _place(self._store, offset, length)

    def _write(self, data: memoryview, offset: int) -> None:
        self._store.pwrite(data, offset)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        if unmap:
            self._store.punch(offset, length)
        self._store.write_zeroes(offset, length)

    def trim(self, offset: int, length: int) -> None:
        if self.choices.discard:
            self._store.punch(offset, length)

    def flush(self) -> None:
        if self.writable:
            self._store.flush()

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return extents(self._layer, offset, length)


class PartExport(Export):
    """A part of a disk."""

    def __init__(self, whole: Export, offset: int, size: int) -> None:
        super().__init__(size, whole.description, whole.choices)
        self._whole = whole
        self._offset = offset
        self.fast_zeroes = whole.fast_zeroes

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._whole.read_into(buffer, self._offset + offset)

    def place_in_file(self, offset: int, length: int) -> FilePlace | None:
        return self._whole.place_in_file(self._offset + offset, length)

    def write(self, data: memoryview, offset: int) -> None:
        self._whole.write(data, self._offset + offset)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._whole.write_zeroes(self._offset + offset, length, unmap=unmap)

    def trim(self, offset: int, length: int) -> None:
        self._whole.trim(self._offset + offset, length)

    def flush(self) -> None:
        self._whole.flush()

    def contexts(self) -> Mapping[bytes, Describe]:
        start = self._offset

        def moved(described: Describe) -> Describe:
            return lambda offset, length: described(start + offset, length)

        return {name: moved(described) for name, described in self._whole.contexts().items()}
