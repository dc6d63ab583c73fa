"""What of a damaged header can be believed: each field alone, held against the tables that are there.

A field that contradicts them is replaced by what they say, and named in `doubts`. It reads only.
"""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.constants import (
    MAGIC,
    V2_REFCOUNT_ORDER,
    CompressionType,
    CryptMethod,
    ExtensionType,
    Limit,
    Version,
)
from qcow2c.errors import Span
from qcow2c.format import layout
from qcow2c.format.derived import HEADER_V2, HEADER_V3_TAIL, INCOMPATIBLE_FEATURES
from qcow2c.format.header import KNOWN_LENGTH, V2_LENGTH, V3_LENGTH, Header
from qcow2c.format.header_writer import with_fields
from qcow2c.light import TYPE_CHECKING, NamedTuple, replace
from qcow2c.recovery.shape import Shape
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from typing import Any

_PLAUSIBLE_FIELDS = 4
"""Of the fields of a header that are looked at, so many are right where there is one at all."""


class FoundHeader(NamedTuple):
    """The header as it is believed, and what is not said by the file but by its tables."""

    header: Header
    doubts: tuple[str, ...]
    present: bool
    """Whether there is a header at all; without, only its geometry counts."""
    size_is_known: bool


class _OtherStart(Store):
    """A store that begins with other bytes."""

    def __init__(self, whole: Store, start: bytes) -> None:
        self._whole, self._start = whole, start
        self.name = whole.name

    def size(self) -> int:
        return max(len(self._start), self._whole.size())

    def pread(self, length: int, offset: int) -> bytes:
        data = self._whole.pread(length, offset)
        if offset >= len(self._start):
            return data
        mine = self._start[offset : offset + length]
        return mine + data[len(mine) :]

    def extents(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        return self._whole.extents(start, end)


def found_header(store: Store, shape: Shape, *, external: bool) -> FoundHeader | None:
    """Return what is believed of the header; None where neither it nor a table says a cluster size.

    `external`: the caller gave a data file. Raises StoreError.
    """
    start = store.pread(KNOWN_LENGTH, 0).ljust(KNOWN_LENGTH, b"\0")
    fields = HEADER_V2.values(start) | HEADER_V3_TAIL.values(start, V2_LENGTH)
    if not _is_header(fields, store.size()):
        return _without(shape, store.size(), external=external)
    doubts: list[str] = []
    start = _settled_start(start, fields, doubts)
    header = _settled(Header.load(_OtherStart(store, start)), shape, doubts, external=external)
    if header is None:
        return _without(shape, store.size(), external=external)
    # Extensions and names again: where they end depends on the cluster size.
    start = with_fields(start, {"cluster_bits": header.cluster_bits})
    again = Header.load(_OtherStart(store, start))
    header = replace(header, extensions=again.extensions, backing_file=_name(again, doubts))
    if header.extension(ExtensionType.DATA_FILE) is not None and not header.external_data:
        header = _with_bit(header, "data_file", is_set=True)
        doubts.append("there is the name of an external data file, but not its feature bit")
    header = _settled_encryption(header, doubts)
    known = bool(header.size) and header.size < Limit.SIGNED_OFFSET_END
    return FoundHeader(header, tuple(doubts), present=True, size_is_known=known)


def _is_header(fields: dict[str, Any], size: int) -> bool:
    """Return whether most of the fields are such as a header has."""
    right = (
        fields["magic"] == MAGIC,
        fields["version"] in tuple(Version),
        fields["cluster_bits"] in Limit.CLUSTER_BITS,
        fields["crypt_method"] in tuple(CryptMethod),
        0 < fields["l1_table_offset"] < max(size, 1) and fields["l1_table_offset"] % 512 == 0,
        0 < fields["refcount_table_offset"] < max(size, 1) and fields["refcount_table_offset"] % 512 == 0,
        0 < fields["l1_size"] <= Limit.L1_ENTRIES,
    )
    return int(sum(right)) > _PLAUSIBLE_FIELDS


def _settled_start(start: bytes, fields: dict[str, Any], doubts: list[str]) -> bytes:
    """Return the header with a magic value, a version and a length that can be."""
    changes: dict[str, int] = {"magic": layout.integer(MAGIC)}
    if fields["magic"] != MAGIC:
        doubts.append(f"the magic value is {start[:4]!r}")
    lengths = (V3_LENGTH, KNOWN_LENGTH)
    tail_is_v3 = fields["header_length"] in lengths and fields["refcount_order"] in Limit.REFCOUNT_ORDER
    no_features = fields["compatible_features"] < 256 and fields["autoclear_features"] < 256
    tail_is_v3 |= fields["refcount_order"] == V2_REFCOUNT_ORDER and no_features and fields["version"] == Version.V3
    tail_is_v3 |= fields["header_length"] in lengths and no_features and fields["version"] == Version.V3
    version = Version.V3 if tail_is_v3 else Version.V2
    if version != fields["version"]:
        doubts.append(f"version {fields['version']} cannot be: the rest is a header of version {int(version)}")
        changes["version"] = version
    if version == Version.V3:
        length = fields["header_length"]
        if length < V3_LENGTH or length % 8 or length > 4096:
            doubts.append(f"header_length {length} cannot be")
            changes["header_length"] = KNOWN_LENGTH
        if fields["refcount_order"] not in Limit.REFCOUNT_ORDER:
            doubts.append(f"refcount_order {fields['refcount_order']} cannot be")
            changes["refcount_order"] = V2_REFCOUNT_ORDER
    return with_fields(start, changes)


def _settled(header: Header, shape: Shape, doubts: list[str], *, external: bool) -> Header | None:
    """Return the header with a geometry that agrees with the tables, None where none can be."""
    bits = header.cluster_bits
    known = bits in Limit.CLUSTER_BITS
    contradicted = shape.cluster_bits is not None and (
        bits > shape.cluster_bits or (shape.certain and bits != shape.cluster_bits)
    )
    if not known or contradicted:
        if shape.cluster_bits is None:
            return None
        doubts.append(f"cluster_bits {bits}, where the tables say {shape.cluster_bits}")
        header = replace(header, cluster_bits=shape.cluster_bits)
    known_bits = ~INCOMPATIBLE_FEATURES.reserved
    if header.incompatible_features & ~known_bits:
        doubts.append(f"incompatible features {header.incompatible_features:#x} with unknown bits")
        header = replace(header, incompatible_features=header.incompatible_features & known_bits)
    if header.version >= Version.V3:
        header = _settled_features(header, shape, doubts, external=external)
    return header


def _settled_features(header: Header, shape: Shape, doubts: list[str], *, external: bool) -> Header:
    if shape.cluster_bits is not None and shape.certain and header.extended_l2 != shape.extended_l2:
        doubts.append("the feature bit of extended L2 entries contradicts the tables")
        header = _with_bit(header, "extended_l2", is_set=shape.extended_l2)
    no_name = header.extension(ExtensionType.DATA_FILE) is None
    if header.external_data and no_name and not external and not shape.external_data:
        doubts.append("the feature bit of an external data file, which nothing names")
        header = _with_bit(header, "data_file", is_set=False)
    if shape.compression_type is not None and header.compression_type != shape.compression_type:
        doubts.append(f"compression_type {header.compression_type}: the clusters are of type {shape.compression_type}")
        header = replace(header, compression_type=shape.compression_type)
    elif header.compression_type not in tuple(CompressionType):
        doubts.append(f"compression_type {header.compression_type} cannot be")
        header = replace(header, compression_type=CompressionType.ZLIB)
    return header


def _settled_encryption(header: Header, doubts: list[str]) -> Header:
    has_keys = header.encryption_header is not None
    method = header.crypt_method
    if has_keys and method != CryptMethod.LUKS:
        doubts.append(f"crypt_method {method}, but there is a header of LUKS")
        return replace(header, crypt_method=CryptMethod.LUKS)
    if not has_keys and method not in (CryptMethod.NONE, CryptMethod.AES):
        doubts.append(f"crypt_method {method} without a header of LUKS")
        return replace(header, crypt_method=CryptMethod.NONE)
    return header


def _with_bit(header: Header, name: str, *, is_set: bool) -> Header:
    mask = INCOMPATIBLE_FEATURES[name].mask
    rest = header.incompatible_features & ~mask
    return replace(header, incompatible_features=rest | mask if is_set else rest)


def _name(header: Header, doubts: list[str]) -> bytes | None:
    """Return the backing file name, if it is one."""
    name = header.backing_file
    if name is None:
        return None
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if not text or not text.isprintable():
        doubts.append(f"the backing file name at {header.backing_file_offset:#x} is no text")
        return None
    return name


def _without(shape: Shape, size: int, *, external: bool) -> FoundHeader | None:
    """Return what the tables alone say."""
    if shape.cluster_bits is None:
        return None
    features = INCOMPATIBLE_FEATURES.flags(
        extended_l2=shape.extended_l2,
        data_file=external or shape.external_data,
        compression_type=shape.compression_type == CompressionType.ZSTD,
    )
    header = Header(
        version=Version.V3,
        backing_file_offset=0,
        backing_file_size=0,
        cluster_bits=shape.cluster_bits,
        size=0,
        crypt_method=CryptMethod.NONE,
        l1_size=0,
        l1_table_offset=0,
        refcount_table_offset=0,
        refcount_table_clusters=0,
        nb_snapshots=0,
        snapshots_offset=0,
        incompatible_features=features,
        header_length=KNOWN_LENGTH,
        compression_type=shape.compression_type or CompressionType.ZLIB,
        file_size=size,
    )
    doubt = "there is no header: the geometry is that of the tables"
    return FoundHeader(header, (doubt,), present=False, size_is_known=False)
