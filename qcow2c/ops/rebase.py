"""Rebase: let an overlay lie on another backing file, or on none. Its disk stays the same, unless nobody looks.

What the overlay does not hold itself is compared in the old and in the new backing chain, and copied into it where
they differ; then the header changes. What both maps call zeros, and what both take from one layer or from one place of
a file, is never read. Spec: "Header", "Header extensions".
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from qcow2c import layout, rules
from qcow2c.cache import Medium
from qcow2c.disk import Disk, open_disk
from qcow2c.errors import ChainError, CorruptMetadata, Qcow2Error, UnsupportedFeature, UsageError
from qcow2c.findings import Severity, raise_first
from qcow2c.gate import Gate, GateRequest, any_file
from qcow2c.header import Header, field_span
from qcow2c.header_edit import HeaderChange, change_header, changed_header, with_extension
from qcow2c.image import Image
from qcow2c.layer import Layer, RawLayer
from qcow2c.layer_map import PRESENT, ZERO
from qcow2c.locks import Use
from qcow2c.opening import Backing, open_image
from qcow2c.places import BY_LAYER, Side, pairs
from qcow2c.probing import detect_format
from qcow2c.reader import Reader
from qcow2c.segments import Segment
from qcow2c.storage import Memory, Source, Store, open_store
from qcow2c.structs import AUTOCLEAR_FEATURES, ExtensionType, Limit, Version
from qcow2c.written import WrittenLayer

SLAB_BYTES = 2 << 20
"""Bytes that are read of each chain before they are compared, and written at once, by QEMU, too."""

FORMATS = ("bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc")
"""What an image may call the format of its backing file: the formats of images that QEMU knows."""

_UNKNOWN_AUTOCLEAR = layout.bits(AUTOCLEAR_FEATURES).reserved
_ZEROS = bytes(SLAB_BYTES)

Progress = Callable[[int, int], None]
"""Told how many bytes of the disk are done, of how many."""


@dataclass(frozen=True)
class NewBacking:
    """What the image is to name. `name` is None or "" for none; `place` is the file, where the name does not lead."""

    name: str | None
    format: str | None = None
    place: Source | Store | None = None


@dataclass(frozen=True)
class Overlay:
    """What is rebased. `image` is None where only its header is; `header` is None for a raw file."""

    store: Store
    header: Header | None
    image: Image | None = None

    @property
    def backing_format(self) -> str | None:
        """The format as which the old backing file was opened, None where it was not."""
        below = None if self.image is None else self.image.backing
        return None if below is None else "raw" if isinstance(below, RawLayer) else "qcow2"


def rebase(
    source: Source | Store,
    backing_file: str | os.PathLike[str] | None,
    *,
    backing_format: str | None = None,
    unsafe: bool = False,
    new_backing: Source | Store | None = None,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
    image_format: str | None = None,
    backing: Backing = None,
    data_file: Source | Store | None = None,
) -> None:
    """Let an image name another backing file, as seen from its directory, of a given format; or none.

    `unsafe` changes the header and nothing else: no other file is opened, and the disk is what comes of it. Else the
    disk stays the same. `new_backing` is the new backing file itself, where its name does not lead to it, and `backing`
    the old one; `share` reads the new one although another process may be writing to it. Internal snapshots keep what
    they hold themselves; what they do not hold is the new backing file's, as with QEMU.

    Durable order: copied data and its mapping, as with any writing, the header. A crash leaves an image that names the
    old backing file, or the new one, with the same disk in both cases; and leaks at most.
    Raises UsageError, UnsupportedFeature, ChainError, and what `open_image` and writing raise.
    """
    name = None if backing_file is None else os.fsdecode(backing_file)
    with open_overlay(
        source, unsafe=unsafe, gate=gate, image_format=image_format, backing=backing, data_file=data_file
    ) as overlay:
        rebase_overlay(
            overlay, NewBacking(name, backing_format, new_backing), gate=gate, share=share, progress=progress
        )


@contextmanager
def open_overlay(
    source: Source | Store,
    *,
    unsafe: bool = False,
    gate: str | Gate = "directory",
    image_format: str | None = None,
    backing: Backing = None,
    data_file: Source | Store | None = None,
) -> Iterator[Overlay]:
    """Open what is to be rebased: for writing, and with its backing chain, but only its header if `unsafe`.

    Raises as `open_image` with "r+"; if `unsafe`, refcounts are not looked at, because no cluster is given out.
    """
    store = open_store(source, writable=True)
    try:
        found = image_format or detect_format(store)
        if found == "raw":
            store.lock(Use.WRITABLE_IMAGE)
            yield Overlay(store, None)
        elif found != "qcow2":
            raise UnsupportedFeature(f"image {store.name!r} has format {found!r}, not qcow2")
        elif unsafe:
            store.lock(Use.WRITABLE_IMAGE)
            header = Header.load(store)
            raise_first(rules.header_findings(header), Severity.ERROR)
            if header.corrupt:
                message = "the image is marked corrupt, so that it must not be written: run check -r first"
                raise CorruptMetadata(message, where=field_span("incompatible_features"), spec="Header")
            yield Overlay(store, header)
        else:
            with open_image(store, "r+", gate=gate, backing=backing, data_file=data_file) as image:
                yield Overlay(store, image.header, image)
    finally:
        if store is not source:
            store.close()


def rebase_overlay(
    overlay: Overlay,
    new: NewBacking,
    *,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
) -> None:
    """Rebase an open overlay; see `rebase`. All that can be wrong is told in QEMU's words before anything is written.

    Raises as `rebase`; what cannot be read or written leaves the overlay on its old backing file.
    """
    if new.format is not None and new.format not in FORMATS:
        raise UsageError(f"Invalid format name: '{new.format}'")
    with ExitStack() as stack:
        disk = None
        if overlay.image is not None and new.name:
            disk = stack.enter_context(_opened(overlay, new, gate, share=share))
        change = _header_change(overlay, new)
        if overlay.image is None:
            assert overlay.header is not None, "a raw file has been refused"
            change_header(Medium(overlay.store), overlay.header, change)
            return
        layer = overlay.image.layer
        assert isinstance(layer, WrittenLayer), "it was opened for writing"
        _Copy(overlay.image, disk or Disk(RawLayer(Memory(b"")), ""), progress or (lambda _done, _size: None)).run()
        layer.change_header(change)


@contextmanager
def _opened(overlay: Overlay, new: NewBacking, gate: str | Gate, *, share: bool) -> Iterator[Disk]:
    """Open the new backing file, which the user has named; what it names itself goes through the gate."""
    assert new.name is not None, "else there is none"
    with ExitStack() as stack:
        try:
            place = new.place
            if place is None:
                path = None if overlay.store.path is None else Path(overlay.store.name)
                place = any_file(GateRequest("backing file", new.name, path))
            disk = stack.enter_context(open_disk(place, image_format=new.format, gate=gate, share=share))
            _require_other(disk, overlay)
        except Qcow2Error as exc:
            exc.message = f"Could not open new backing file '{new.name}': {exc.message}"
            raise
        yield disk


def _require_other(disk: Disk, overlay: Overlay) -> None:
    """Raise ChainError where a file of an overlay is part of what it is to lie on."""
    assert overlay.image is not None, "else nothing is opened"
    own = _files(overlay.image.layer)
    for layer in _chain(disk.layer):
        if own & _files(layer):
            raise ChainError(f"{overlay.store.name!r} would lie on itself")


def _header_change(overlay: Overlay, new: NewBacking) -> HeaderChange:
    """Return what changes in the header. Raises UsageError, UnsupportedFeature, in QEMU's words."""

    def refusal(reason: str, kind: type[Qcow2Error] = UsageError) -> Qcow2Error:
        name = "(null)" if new.name is None else new.name  # As QEMU has it.
        return kind(f"Could not change the backing file to '{name}': {reason}")

    if new.name and new.format is None:
        raise refusal("backing format must be specified")
    header = overlay.header
    if header is None:
        raise refusal("Operation not supported", UnsupportedFeature)
    name, image_format = os.fsencode(new.name or ""), new.format if new.name else None
    if name and (len(name) > Limit.BACKING_FILE_NAME_BYTES or b"\0" in name):
        raise refusal(f"Invalid argument: a name of {len(name)} bytes, at most {Limit.BACKING_FILE_NAME_BYTES}")
    if name and header.external_data and header.data_file_raw:
        raise refusal("Invalid argument: the data file is to be a raw image by itself (data_file_raw)")
    data = None if image_format is None else os.fsencode(image_format)
    fields: dict[str, int] = {}
    if overlay.image is None and header.version >= Version.V3:
        fields["autoclear_features"] = header.autoclear_features & ~_UNKNOWN_AUTOCLEAR
    change = HeaderChange(fields, with_extension(header, ExtensionType.BACKING_FORMAT, data), name)
    try:
        changed_header(overlay.store, header, change)
    except UsageError as exc:
        raise refusal("No space left in the file header") from exc
    return change


# --- copying --------------------------------------------------------------------------------------------------------


class _What(enum.Enum):
    """What is to be done with a cluster, or subcluster."""

    SAME = enum.auto()
    ZEROS = enum.auto()
    DATA = enum.auto()


class _Reach:
    """The old backing chain as a layer that is as long as the new one: what it does not hold are zeros to be kept."""

    def __init__(self, old: Layer, disk_size: int) -> None:
        self.read_into = old.read_into
        self.disk_size = disk_size


class _Copy:
    """Copies what the two chains do not have in common."""

    def __init__(self, image: Image, new: Disk, progress: Progress) -> None:
        layer = image.layer
        self._image = image
        self._size = image.size()
        self._unit = image.geometry.subcluster_size
        # The tables of the overlay as they are now: what is copied lies behind where they are read.
        state = layer.state(image.header.l1_table_offset, image.header.l1_size, self._size)
        stores: list[Store] = []
        self._old, self._new = Disk(state, image.name), new
        self._sides = Side(0, self._old, stores), Side(1, new, stores)
        self._layers = _image_files(state), _image_files(new.layer)
        self._progress = progress
        self._buffers = bytearray(SLAB_BYTES), bytearray(SLAB_BYTES)
        # Zeros are zeros, and nothing to be written, only where neither chain shows anything else.
        below = layer.backing or RawLayer(Memory(b""))
        layer.backing = _Reach(below, max(below.disk_size, new.size))

    def run(self) -> None:
        """Copy it, in the order of the disk. Raises what reading and writing raise, with what was being done."""
        for start, end in self._open_ranges():
            for at in range(start, end, SLAB_BYTES):
                self._copy(at, min(SLAB_BYTES, end - at))
                self._progress(at, self._size)
        self._progress(self._size, self._size)

    def _open_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of whole clusters, or subclusters, that the overlay does not hold and that may differ."""
        first = last = 0
        for at, stop in self._open_pairs():
            low, high = at // self._unit * self._unit, min(-(-stop // self._unit) * self._unit, self._size)
            if low > last:
                if last > first:
                    yield first, last
                first = low
            last = max(last, high)
        if last > first:
            yield first, last

    def _open_pairs(self) -> Iterator[tuple[int, int]]:
        old, new = self._sides
        runs = self._runs(self._old), self._runs(self._new)
        for at, stop, one, other in pairs(*runs, 0):
            held = not one[2] and one[3] & PRESENT
            if not held and not self._same_layer(one, other):
                place = old.place(one, at)
                if place[0] == BY_LAYER or place != new.place(other, at):
                    yield at, stop
        if self._size > self._old.size:  # What is less than a sector is in no map.
            yield self._old.size, self._size

    def _runs(self, disk: Disk) -> Iterator[Segment]:
        """Yield the runs of a disk up to the end of the overlay. Raises CorruptMetadata, LimitExceeded, StoreError."""
        end = self._old.size
        try:
            for columns in disk.map.columns(0, end):
                yield from zip(*columns, strict=True)
        except Qcow2Error as exc:
            exc.message = f"error while reading image metadata: {disk.name}: {exc.message}"
            raise
        if end > disk.size:
            yield disk.size, end - disk.size, 0, ZERO, 0

    def _same_layer(self, one: Segment, other: Segment) -> bool:
        """Tell whether one image decides in both chains what is there."""
        files = self._layers[0][one[2]], self._layers[1][other[2]]
        return bool(one[3] & other[3] & PRESENT) and files[0] is not None and files[0] == files[1]

    def _copy(self, start: int, length: int) -> None:
        """Copy what differs of whole units: as few writes as there are runs of them."""
        old, new = self._buffers
        views = memoryview(old)[:length], memoryview(new)[:length]
        for disk, view, which in ((self._old, views[0], "old"), (self._new, views[1], "new")):
            try:
                disk.read_into(view, start)
            except Qcow2Error as exc:
                exc.message = f"error while reading from {which} backing file: {exc.message}"
                raise
        if old.startswith(views[1]):
            return
        units = [(at, min(at + self._unit, length)) for at in range(0, length, self._unit)]
        found = [_What.SAME if old.startswith(views[1][at:end], at) else self._what(old, at, end) for at, end in units]
        for what, group in groupby(zip(found, units, strict=True), key=itemgetter(0)):
            run = [unit for _, unit in group]
            first, end = run[0][0], run[-1][1]
            try:
                if what is _What.DATA:
                    self._image.pwrite(views[0][first:end], start + first)
                elif what is _What.ZEROS:
                    self._image.write_zeroes(start + first, end - first)
            except Qcow2Error as exc:
                exc.message = f"Error while writing to COW image: {exc.message}"
                raise

    @staticmethod
    def _what(old: bytearray, at: int, end: int) -> _What:
        return _What.ZEROS if old.startswith(memoryview(_ZEROS)[: end - at], at) else _What.DATA


def _image_files(top: Layer) -> list[object]:
    """Return what the files of each image of a chain are, None for a raw one: two places in it can hold the same."""
    return [_files(layer) if isinstance(layer, Reader) else None for layer in _chain(top)]


def _files(layer: Reader | RawLayer) -> frozenset[object]:
    """Return what the files of a layer are."""
    data_store = layer.data_store if isinstance(layer, Reader) else layer.store
    return frozenset((layer.store.identity(), data_store.identity()))


def _chain(top: Layer | None) -> Iterator[Reader | RawLayer]:
    """Yield the layers of a chain from the top one."""
    while isinstance(top, Reader | RawLayer):
        yield top
        top = top.backing if isinstance(top, Reader) else None
