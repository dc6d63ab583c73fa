"""The options of a new image: their rules, what they say in the header, and the geometry that follows from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from qcow2c.constants import SECTOR_SIZE, V2_REFCOUNT_ORDER, CompressionType, CryptMethod, ExtensionType, Limit, Version
from qcow2c.errors import UsageError
from qcow2c.format.derived import (
    AUTOCLEAR_FEATURES,
    COMPATIBLE_FEATURES,
    ENCRYPTION_HEADER_POINTER,
    INCOMPATIBLE_FEATURES,
)
from qcow2c.format.geometry import Geometry
from qcow2c.format.header_writer import feature_name_table, first_cluster
from qcow2c.light import TYPE_CHECKING, NamedTuple, TypedDict, frozen
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.integers import settle_integers
from qcow2c.storage.new_file import FileHints

if TYPE_CHECKING:
    from qcow2c.crypto.new_encryption import Encryption

VERSIONS = {"0.10": Version.V2, "v2": Version.V2, "1.1": Version.V3, "v3": Version.V3}
COMPRESSION_TYPES = {"zlib": CompressionType.ZLIB, "zstd": CompressionType.ZSTD}
_CRYPT_METHODS = {"aes": CryptMethod.AES, "luks": CryptMethod.LUKS}
PREALLOCATIONS = ("off", "metadata", "falloc", "full")
_NEWER = "with compatibility level 1.1 and above (use version=v3 or greater)"
_MAX_EXTENT_SIZE = (1 << 32) - 1
NAMES_ABOVE = 4096
"""Cluster size in bytes up to which there is no feature name table: it would leave no room for a backing file."""


class NewImageOptions(TypedDict, total=False):
    """The options of `CreateOptions` for images whose size follows from what they hold."""

    compat: str
    cluster_size: int
    refcount_bits: int
    lazy_refcounts: bool
    extended_l2: bool
    compression_type: str
    backing_file: str | None
    backing_fmt: str | None
    data_file: str | None
    data_file_raw: bool
    preallocation: str
    nocow: bool
    extent_size_hint: int | None
    encryption: Encryption | None


def require_known(options: Iterable[str], *refused: str) -> None:
    """Raise UsageError for a name that is no option of a new image, or one of those that are refused."""
    for name in options:
        if name not in NewImageOptions.__annotations__ or name in refused:
            raise UsageError(f"Invalid parameter {name!r}")


def problems_of_extent_size(size: int | None) -> Iterator[str]:
    """Yield, in QEMU's words, what is wrong with a hint of 32 bits."""
    if size is not None and not 0 <= size <= _MAX_EXTENT_SIZE:
        yield "Extent size hint is too large" if size > 0 else f"Extent size hint {size} is negative"


@frozen
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
    extent_size_hint: int | None = None
    encryption: Encryption | None = None

    def __post_init__(self) -> None:
        settle_integers(self)
        # The header names a file, not how QEMU was told of it.
        object.__setattr__(self, "data_file", plain_path(self.data_file))

    @property
    def hints(self) -> FileHints:
        """What the file system is asked to do with the file."""
        return FileHints(self.nocow, self.extent_size_hint)

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
        yield from self._problems_of_values()
        if self.version < Version.V3:
            yield from self._problems_of_version_2()
        yield from self._problems_of_combinations()
        yield from self._problems_of_names()

    def _problems_of_values(self) -> Iterator[str]:
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
        yield from problems_of_extent_size(self.extent_size_hint)

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

    def _problems_of_combinations(self) -> Iterator[str]:
        smallest = 1 << Limit.EXTENDED_L2_CLUSTER_BITS[0]
        if self.extended_l2 and self.cluster_size < smallest:
            yield f"Extended L2 entries are only supported with cluster sizes of at least {smallest} bytes"
        if self.data_file_raw and self.data_file is None:
            yield "data-file-raw requires data-file"
        if self.data_file_raw and self.backing_file is not None:
            yield "Backing file and data-file-raw cannot be used at the same time"
        if self.encryption is not None and self.allocates and self.version < Version.V3:
            yield f"Preallocation of encrypted images is only supported {_NEWER}"
        if self.backing_file is not None and self.preallocation != "off" and not self.extended_l2:
            yield "Backing file and preallocation can only be used at the same time if extended_l2 is on"

    def _problems_of_names(self) -> Iterator[str]:
        if self.backing_file == "":
            yield "Expected backing file name, got empty string"
        if self.backing_file is not None and self.backing_fmt is None:
            yield "Backing file specified without backing format"
        if self.backing_fmt is not None and len(os.fsencode(self.backing_fmt)) > Limit.BACKING_FORMAT_NAME_BYTES:
            yield f"Backing format name {self.backing_fmt!r} is too long"
        if self.data_file == "":
            yield "Expected data file name, got empty string"


class Places(NamedTuple):
    """Where the tables lie that a header names: offsets in bytes."""

    l1_table: int
    l1_entries: int
    refcount_table: int
    refcount_table_clusters: int
    encryption_header: int = 0


def _fields(options: CreateOptions, places: Places, *, bitmaps: bool) -> dict[str, int]:
    geometry = options.geometry
    compression = COMPRESSION_TYPES[options.compression_type]
    incompatible = INCOMPATIBLE_FEATURES.flags(
        data_file=options.data_file is not None,
        compression_type=compression is not CompressionType.ZLIB,
        extended_l2=options.extended_l2,
    )
    return {
        "version": options.version,
        "cluster_bits": geometry.cluster_bits,
        "size": options.disk_size,
        "crypt_method": _CRYPT_METHODS[options.encryption.format] if options.encryption is not None else 0,
        "l1_size": places.l1_entries,
        "l1_table_offset": places.l1_table if places.l1_entries else 0,
        "refcount_table_offset": places.refcount_table,
        "refcount_table_clusters": places.refcount_table_clusters,
        "incompatible_features": incompatible,
        "compatible_features": COMPATIBLE_FEATURES.flags(lazy_refcounts=options.lazy_refcounts),
        "autoclear_features": AUTOCLEAR_FEATURES.flags(bitmaps=bitmaps, data_file_raw=options.data_file_raw),
        "refcount_order": geometry.refcount_order,
        "compression_type": compression,
    }


def header_of(options: CreateOptions, places: Places, bitmaps: bytes | None = None) -> bytes:
    """Return the first cluster without what pads it; `bitmaps` is the data of the bitmaps extension."""
    backing_file = None if options.backing_file is None else os.fsencode(options.backing_file)
    extensions = [*_extensions(options)]
    if options.encryption is not None and options.encryption.header_bytes:
        values = {"offset": places.encryption_header, "length": options.encryption.header_bytes}
        pointer = ExtensionType.ENCRYPTION_HEADER, ENCRYPTION_HEADER_POINTER.packed(values)
        extensions.insert(_before_names(extensions), pointer)
    if bitmaps is not None:
        extensions.append((ExtensionType.BITMAPS, bitmaps))
    fields = _fields(options, places, bitmaps=bitmaps is not None)
    return first_cluster(fields, extensions, backing_file, options.cluster_size)


def _before_names(extensions: list[tuple[ExtensionType, bytes]]) -> int:
    """Return where the encryption header stands in QEMU's order: before the names of features."""
    kinds = [kind for kind, _ in extensions]
    return kinds.index(ExtensionType.FEATURE_NAME_TABLE) if ExtensionType.FEATURE_NAME_TABLE in kinds else len(kinds)


def _extensions(options: CreateOptions) -> Iterator[tuple[ExtensionType, bytes]]:
    """Yield the header extensions that name files, in QEMU's order."""
    if options.backing_fmt is not None and options.backing_file is not None:
        yield ExtensionType.BACKING_FORMAT, os.fsencode(options.backing_fmt)
    if options.data_file is not None:
        yield ExtensionType.DATA_FILE, os.fsencode(options.data_file)
    if options.version >= Version.V3 and options.cluster_size > NAMES_ABOVE:
        yield ExtensionType.FEATURE_NAME_TABLE, feature_name_table()


def _is_power_of_two(value: int) -> bool:
    return value > 0 and not value & (value - 1)
