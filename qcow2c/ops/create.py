"""Create an image: options, their rules, and the order in which a new file comes into being.

The magic value is written last: a half-made image never looks complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcow2c import layout
from qcow2c.errors import NotQcow2, StoreError, UsageError
from qcow2c.gate import GateRequest, any_file
from qcow2c.geometry import Geometry
from qcow2c.header_writer import feature_name_table, first_cluster
from qcow2c.image_layout import ImageLayout, plan
from qcow2c.local_file import LocalFile
from qcow2c.locks import Use
from qcow2c.opening import detect_format, open_image
from qcow2c.storage import Store, open_store
from qcow2c.structs import (
    AUTOCLEAR_FEATURES,
    COMPATIBLE_FEATURES,
    INCOMPATIBLE_FEATURES,
    MAGIC,
    SECTOR_SIZE,
    V2_REFCOUNT_ORDER,
    CompressionType,
    ExtensionType,
    Limit,
    Version,
)

VERSIONS = {"0.10": Version.V2, "v2": Version.V2, "1.1": Version.V3, "v3": Version.V3}
COMPRESSION_TYPES = {"zlib": CompressionType.ZLIB, "zstd": CompressionType.ZSTD}
PREALLOCATIONS = ("off", "metadata", "falloc", "full")
_NEWER = "with compatibility level 1.1 and above (use version=v3 or greater)"
_FILL_BYTES = 4 << 20
_NAMES_ABOVE = 4096
"""Cluster size in bytes up to which there is no feature name table: it would leave no room for a backing file."""


@dataclass(frozen=True)
class CreateOptions:
    """What qemu-img create takes with -o, under the same names; sizes in bytes. Sizes are of the virtual disk."""

    size: int
    compat: str = "1.1"
    cluster_size: int = 65536
    refcount_bits: int = 16
    lazy_refcounts: bool = False
    extended_l2: bool = False
    compression_type: str = "zlib"
    backing_file: str | None = None
    backing_fmt: str | None = None
    data_file: str | None = None
    data_file_raw: bool = False
    preallocation: str = "off"
    nocow: bool = False

    @property
    def disk_size(self) -> int:
        """The size in whole sectors."""
        return -(-self.size // SECTOR_SIZE) * SECTOR_SIZE

    @property
    def allocates(self) -> bool:
        """Whether each cluster of the disk has its place from the start: a raw data file must be readable by itself."""
        return self.preallocation != "off" or self.data_file_raw

    @property
    def version(self) -> Version:
        return VERSIONS[self.compat]

    @property
    def geometry(self) -> Geometry:
        order = self.refcount_bits.bit_length() - 1
        external = self.data_file is not None
        return Geometry(self.cluster_size.bit_length() - 1, order, self.extended_l2, external, self.version)

    def validate(self) -> None:
        """Raise UsageError, in QEMU's words, for what the format does not allow."""
        for problem in self._problems():
            raise UsageError(problem)

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.size < Limit.SIGNED_OFFSET_END - SECTOR_SIZE:
            yield f"Invalid image size {self.size}. Must be between 0 and {Limit.SIGNED_OFFSET_END - SECTOR_SIZE}."
        for name, value, valid in (
            ("version", self.compat, VERSIONS),
            ("compression-type", self.compression_type, COMPRESSION_TYPES),
            ("preallocation", self.preallocation, PREALLOCATIONS),
        ):
            if value not in valid:
                yield f"Parameter '{name}' does not accept value {value!r}"
        if not _is_power_of_two(self.cluster_size) or self.cluster_size.bit_length() - 1 not in Limit.CLUSTER_BITS:
            yield "Cluster size must be a power of two between 512 and 2048k"
        if not _is_power_of_two(self.refcount_bits) or self.refcount_bits.bit_length() - 1 not in Limit.REFCOUNT_ORDER:
            yield "Refcount width must be a power of two and may not exceed 64 bits"
        if self.version < Version.V3:
            yield from self._problems_of_version_2()
        smallest = 1 << Limit.EXTENDED_L2_CLUSTER_BITS[0]
        if self.extended_l2 and self.cluster_size < smallest:
            yield f"Extended L2 entries are only supported with cluster sizes of at least {smallest} bytes"
        if self.data_file_raw and self.data_file is None:
            yield "data-file-raw requires data-file"
        if self.data_file_raw and self.backing_file is not None:
            yield "Backing file and data-file-raw cannot be used at the same time"
        if self.backing_file is not None and self.preallocation != "off" and not self.extended_l2:
            yield "Backing file and preallocation can only be used at the same time if extended_l2 is on"
        yield from self._problems_of_names()

    def _problems_of_version_2(self) -> Iterator[str]:
        if self.refcount_bits != 1 << V2_REFCOUNT_ORDER:
            newer = _NEWER.removeprefix("with ").replace(" and ", " or ")
            yield f"Different refcount widths than 16 bits require {newer}"
        if self.lazy_refcounts:
            yield f"Lazy refcounts only supported {_NEWER}"
        if self.data_file is not None:
            yield f"External data files are only supported {_NEWER}"
        if self.extended_l2:
            yield f"Extended L2 entries are only supported {_NEWER}"
        if self.compression_type != "zlib":
            yield f"Non-zlib compression type is only supported {_NEWER}"

    def _problems_of_names(self) -> Iterator[str]:
        if self.backing_file == "":
            yield "Expected backing file name, got empty string"
        if self.backing_file is not None and self.backing_fmt is None:
            yield "Backing file specified without backing format"
        if self.backing_fmt is not None and len(os.fsencode(self.backing_fmt)) > Limit.BACKING_FORMAT_NAME_BYTES:
            yield f"Backing format name {self.backing_fmt!r} is too long"
        if self.data_file == "":
            yield "Expected data file name, got empty string"


def create(
    path: str | os.PathLike[str] | Any,
    size: int | None = None,
    *,
    check_backing: bool = True,
    guest_data: Any = None,
    **options: Any,
) -> None:
    """Create a qcow2 image of `size` bytes at `path`, or in a writable binary file object or a bytearray.

    `options` are those of `CreateOptions`. An existing file is replaced. Without a size it is the backing file's; with
    `check_backing=False` the backing file is not looked at. An external data file is created, too, unless
    `guest_data`, a binary file object or a bytearray, is to be it.

    Durable order: everything but the magic value, the magic value, the file's name. A crash leaves no image.
    Raises UsageError before any file is touched, StoreError, ImageLocked, and what opening the backing file raises.
    """
    for option in ("backing_file", "data_file"):
        if options.get(option) is not None:
            options[option] = os.fsdecode(options[option])
    name = os.fsdecode(path) if isinstance(path, str | os.PathLike) else None
    unknown = options.keys() - CreateOptions.__dataclass_fields__.keys()
    if unknown:
        raise UsageError(f"Invalid parameter {sorted(unknown)[0]!r}")
    backing, backing_format = options.get("backing_file"), options.get("backing_fmt")
    if backing and check_backing:
        found = backing_size(name, backing, backing_format)
        size = found if size is None else size
    if size is None:
        raise UsageError("Image creation needs a size parameter")
    write_image(path, CreateOptions(size, **options), guest_data)


def backing_size(image: str | None, backing_file: str, backing_format: str | None) -> int:
    """Return the size of a backing file, opened as it will be once the image names it. Raises Qcow2Error."""
    full = join_backing(image, backing_file)
    if image is not None and os.path.realpath(full) == os.path.realpath(image):
        raise UsageError("Error: Trying to create an image with the same filename as the backing file")
    store = open_store(full)
    try:
        detected = detect_format(store)
        if backing_format is None:
            raise UsageError(f"Backing file specified without backing format (detected format of {detected})")
        if backing_format == "raw":
            store.lock(Use.SHARED)
            return -(-store.size() // SECTOR_SIZE) * SECTOR_SIZE
        if backing_format != "qcow2":
            raise UsageError(f"Unknown driver {backing_format!r}: the backing file can be qcow2 or raw")
        if detected != "qcow2":
            raise NotQcow2(f"Image is not in qcow2 format: backing file {full!r}")
        with open_image(full, gate="any") as image_below:
            return image_below.size()
    finally:
        store.close()


def join_backing(image: str | None, backing_file: str) -> str:
    """Return where a backing file is, seen from the image that will name it. Raises GateRefused."""
    return str(any_file(GateRequest("backing file", backing_file, Path(image if image is not None else "image"))))


def write_image(path: str | os.PathLike[str] | Any, options: CreateOptions, guest_data: Any = None) -> None:
    """Create an image whose options are complete; see `create`."""
    options.validate()
    planned = plan(options.geometry, options.disk_size, allocated=options.allocates)
    header = _header(options, planned)
    with ExitStack() as stack:
        store = stack.enter_context(new_file(path, Use.WRITABLE_IMAGE, nocow=options.nocow))
        data = store
        if options.data_file is not None:
            target = options.data_file if guest_data is None else guest_data
            data = stack.enter_context(new_file(target, Use.WRITABLE_DATA_FILE, nocow=options.nocow))
            data.truncate(options.disk_size)
        _write(store, data, header, planned, options)


@contextmanager
def new_file(path: str | os.PathLike[str] | Any, use: Use, *, nocow: bool = False) -> Iterator[Store]:
    """Open a file to be written from its start: locked, then emptied. What fails removes it if it was not there.

    Raises StoreError, ImageLocked.
    """
    if not isinstance(path, str | os.PathLike):
        store = open_store(path, writable=True)
        store.truncate(0)
        yield store
        return
    try:
        file = LocalFile(path, writable=True, create=True)
    except StoreError as exc:
        exc.message = exc.message.replace("Could not open", "Could not create", 1)
        raise
    try:
        file.lock(use)
        file.truncate(0)
        if nocow:
            file.set_no_copy_on_write()
        yield file
        file.flush_name()
    except BaseException:
        if file.created:
            file.remove()
        raise
    finally:
        file.close()


def _write(store: Store, data: Store, header: bytes, planned: ImageLayout, options: CreateOptions) -> None:
    """Write all there is of a new image.

    Durable order: guest data and metadata, with a header that lacks its magic value; then the whole header.
    """
    size = options.cluster_size
    store.pwrite(bytes(len(MAGIC)) + header[len(MAGIC) :], 0)
    for offset, part in planned.parts():
        store.pwrite(part, offset)
    store.truncate(planned.end * size)
    if planned.data_clusters:
        start = 0 if data is not store else planned.first_data * size
        length = options.disk_size if data is not store else planned.data_clusters * size
        if options.preallocation in ("falloc", "full"):
            store.allocate(0, planned.end * size)
            data.allocate(start, length)
        if options.preallocation == "full":
            _fill(data, start, length)
    if data is not store:
        data.flush()
    store.flush()
    store.pwrite(header[:SECTOR_SIZE], 0)
    store.flush()


def _fill(store: Store, start: int, length: int) -> None:
    """Write zeros, so that every byte has its space."""
    block = bytes(min(length, _FILL_BYTES))
    for offset in range(start, start + length, _FILL_BYTES):
        store.pwrite(block[: min(_FILL_BYTES, start + length - offset)], offset)


def _fields(options: CreateOptions, planned: ImageLayout) -> dict[str, int]:
    geometry, size = options.geometry, options.cluster_size
    compression = COMPRESSION_TYPES[options.compression_type]
    incompatible = layout.flags(
        INCOMPATIBLE_FEATURES,
        data_file=options.data_file is not None,
        compression_type=compression is not CompressionType.ZLIB,
        extended_l2=options.extended_l2,
    )
    return {
        "version": options.version,
        "cluster_bits": geometry.cluster_bits,
        "size": options.disk_size,
        "l1_size": planned.l1_entries,
        "l1_table_offset": planned.l1_table * size if planned.l1_entries else 0,
        "refcount_table_offset": planned.refcount_table * size,
        "refcount_table_clusters": planned.refcount_table_clusters,
        "incompatible_features": incompatible,
        "compatible_features": layout.flags(COMPATIBLE_FEATURES, lazy_refcounts=options.lazy_refcounts),
        "autoclear_features": layout.flags(AUTOCLEAR_FEATURES, data_file_raw=options.data_file_raw),
        "refcount_order": geometry.refcount_order,
        "compression_type": compression,
    }


def _header(options: CreateOptions, planned: ImageLayout) -> bytes:
    """Return the first cluster without what pads it."""
    backing_file = None if options.backing_file is None else os.fsencode(options.backing_file)
    return first_cluster(_fields(options, planned), [*_extensions(options)], backing_file, options.cluster_size)


def _extensions(options: CreateOptions) -> Iterator[tuple[ExtensionType, bytes]]:
    """Yield the header extensions that name files, in QEMU's order."""
    if options.backing_fmt is not None and options.backing_file is not None:
        yield ExtensionType.BACKING_FORMAT, os.fsencode(options.backing_fmt)
    if options.data_file is not None:
        yield ExtensionType.DATA_FILE, os.fsencode(options.data_file)
    if options.version >= Version.V3 and options.cluster_size > _NAMES_ABOVE:
        yield ExtensionType.FEATURE_NAME_TABLE, feature_name_table()


def _is_power_of_two(value: int) -> bool:
    return value > 0 and not value & (value - 1)


def create_raw(path: str | os.PathLike[str], size: int, *, preallocation: str = "off", nocow: bool = False) -> None:
    """Create a raw image. Raises UsageError, StoreError, ImageLocked."""
    if preallocation not in ("off", "falloc", "full"):
        raise UsageError(f"Parameter 'preallocation' does not accept value {preallocation!r}")
    whole = -(-size // SECTOR_SIZE) * SECTOR_SIZE
    with new_file(path, Use.WRITABLE_DATA_FILE, nocow=nocow) as store:
        store.truncate(whole)
        if preallocation == "falloc":
            store.allocate(0, whole)
        elif preallocation == "full":
            _fill(store, 0, whole)
        store.flush()
