"""The header: version 2 and 3 fields, additional fields, extensions, feature names, and the backing file name.

Loading is tolerant: whatever the bytes are, it returns what they say, and keeps unknown fields and extensions. It
judges nothing beyond "is this a qcow2 header at all"; the rules are in `rules.py`. It never writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from qcow2c.constants import (
    MAGIC,
    RECORD_ALIGNMENT,
    V2_REFCOUNT_ORDER,
    CompressionType,
    CryptMethod,
    ExtensionType,
    FeatureType,
    Limit,
    Version,
)
from qcow2c.errors import NotQcow2, Span, UnsupportedFeature
from qcow2c.format.derived import (
    AUTOCLEAR_FEATURES,
    BITMAPS_EXTENSION,
    COMPATIBLE_FEATURES,
    ENCRYPTION_HEADER_POINTER,
    EXTENSION_HEADER,
    FEATURE_NAME,
    HEADER_ADDITIONAL,
    HEADER_V2,
    HEADER_V3_TAIL,
    INCOMPATIBLE_FEATURES,
)
from qcow2c.format.geometry import Geometry
from qcow2c.light import TYPE_CHECKING, NamedTuple, frozen
from qcow2c.storage.sources import Store

if TYPE_CHECKING:
    from typing import Any


V2_LENGTH: int = HEADER_V2.size
V3_LENGTH: int = V2_LENGTH + HEADER_V3_TAIL.size
KNOWN_LENGTH: int = V3_LENGTH + HEADER_ADDITIONAL.size
_EXTENSION_HEADER_SIZE: int = EXTENSION_HEADER.size

FEATURE_FIELDS = {
    FeatureType.INCOMPATIBLE: ("incompatible_features", INCOMPATIBLE_FEATURES),
    FeatureType.COMPATIBLE: ("compatible_features", COMPATIBLE_FEATURES),
    FeatureType.AUTOCLEAR: ("autoclear_features", AUTOCLEAR_FEATURES),
}
"""The header field, and its bits, that each type of the feature name table speaks of."""


class Extension(NamedTuple):
    """A header extension as it lies in the file; `length` is the declared one, `data` what there is of it."""

    type: int
    offset: int
    length: int
    data: bytes

    @property
    def data_offset(self) -> int:
        return self.offset + _EXTENSION_HEADER_SIZE

    @property
    def span(self) -> Span:
        """Header, data and padding."""
        return Span(self.offset, _EXTENSION_HEADER_SIZE + aligned(self.length))


class FeatureName(NamedTuple):
    type: int
    bit: int
    name: bytes


class BitmapsExtension(NamedTuple):
    nb_bitmaps: int
    reserved: int
    bitmap_directory_size: int
    bitmap_directory_offset: int


class EncryptionHeader(NamedTuple):
    offset: int
    length: int


@frozen
class Header:
    """The header's fields under the specification's names; offsets and sizes in bytes of the image file.

    A version 2 header has the values that the specification assumes for the fields it lacks.
    """

    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    snapshots_offset: int
    incompatible_features: int = 0
    compatible_features: int = 0
    autoclear_features: int = 0
    refcount_order: int = V2_REFCOUNT_ORDER
    header_length: int = V2_LENGTH
    compression_type: int = CompressionType.ZLIB
    unknown_fields: bytes = b""
    """What the header holds beyond the fields known today."""
    extensions: tuple[Extension, ...] = ()
    backing_file: bytes | None = None
    """The backing file name, as far as it lies in the first cluster."""
    file_size: int = 0
    after_v2: bytes = b""
    """What version 2 has where version 3 has more fields: extensions, or the backing file name, or nothing."""

    @classmethod
    def load(cls, store: Store) -> Header:
        """Return the header of an image. Raises NotQcow2, UnsupportedFeature (version), StoreError."""
        start = store.pread(KNOWN_LENGTH, 0)
        if len(start) < V2_LENGTH or start[: len(MAGIC)] != MAGIC:
            where = Span(0, min(len(start), len(MAGIC))) if start else None
            raise NotQcow2(f"not a qcow2 image: {_beginning(start)}", where=where)
        known: dict[str, Any] = HEADER_V2.values(start)
        del known["magic"]
        if known["version"] not in tuple(Version):
            message = f"Unsupported qcow2 version {known['version']}"
            raise UnsupportedFeature(message, where=field_span("version"), spec="Header")
        if known["version"] >= Version.V3:
            known |= _v3_fields(start)
            known["unknown_fields"] = _unknown_fields(store, known)
        else:
            known["after_v2"] = start[V2_LENGTH:V3_LENGTH]
        bare = cls(**known, file_size=store.size())
        if not bare.has_valid_cluster_bits:
            return bare
        return cls(
            **known,
            extensions=tuple(_extensions(store, bare)),
            backing_file=_backing_file(store, bare),
            file_size=bare.file_size,
        )

    # --- features ---

    def has(self, kind: FeatureType, name: str) -> bool:
        """Return whether the feature bit `name`, as the schema calls it, is set."""
        field_name, bits = FEATURE_FIELDS[kind]
        return bool(int(getattr(self, field_name)) & bits[name].mask)

    @cached_property
    def dirty(self) -> bool:
        return self.has(FeatureType.INCOMPATIBLE, "dirty")

    @cached_property
    def corrupt(self) -> bool:
        return self.has(FeatureType.INCOMPATIBLE, "corrupt")

    @cached_property
    def extended_l2(self) -> bool:
        return self.has(FeatureType.INCOMPATIBLE, "extended_l2")

    @cached_property
    def external_data(self) -> bool:
        return self.has(FeatureType.INCOMPATIBLE, "data_file")

    @cached_property
    def data_file_raw(self) -> bool:
        return self.has(FeatureType.AUTOCLEAR, "data_file_raw")

    @cached_property
    def lazy_refcounts(self) -> bool:
        return self.has(FeatureType.COMPATIBLE, "lazy_refcounts")

    @property
    def encrypted(self) -> bool:
        return self.crypt_method != CryptMethod.NONE

    # --- sizes ---

    @property
    def has_valid_cluster_bits(self) -> bool:
        return self.cluster_bits in Limit.CLUSTER_BITS

    @cached_property
    def geometry(self) -> Geometry:
        """The sizes that follow; meaningful only for a header that the rules let pass."""
        return Geometry(self.cluster_bits, self.refcount_order, self.extended_l2, self.external_data, self.version)

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def extensions_end(self) -> int:
        """Where the extensions must have ended: at the backing file name, or with the first cluster."""
        return min(self.backing_file_offset or self.cluster_size, self.cluster_size)

    # --- extensions ---

    def extension(self, kind: ExtensionType) -> Extension | None:
        """Return the last extension of a type, as QEMU, which lets a later one replace an earlier one."""
        return next((found for found in reversed(self.extensions) if found.type == kind), None)

    @cached_property
    def backing_format(self) -> bytes | None:
        found = self.extension(ExtensionType.BACKING_FORMAT)
        return found.data if found else None

    @cached_property
    def data_file(self) -> bytes | None:
        found = self.extension(ExtensionType.DATA_FILE)
        return found.data if found else None

    @cached_property
    def feature_names(self) -> tuple[FeatureName, ...]:
        """The feature name table, up to the first entry without a name, as QEMU reads it.

        A name ends with its first zero byte; the last entry may be short, with as much of its name as there is.
        """
        found = self.extension(ExtensionType.FEATURE_NAME_TABLE)
        if found is None:
            return ()
        size = FEATURE_NAME.size
        names = []
        for start in range(0, len(found.data), size):
            entry = FEATURE_NAME.values(found.data[start : start + size].ljust(size, b"\0"))
            name = entry["name"].split(b"\0")[0]
            if not name:
                break
            names.append(FeatureName(entry["type"], entry["bit"], name))
        return tuple(names)

    @cached_property
    def bitmaps(self) -> BitmapsExtension | None:
        """The bitmaps extension, whether consistent or not (see `bitmaps_consistent`)."""
        found = self.extension(ExtensionType.BITMAPS)
        if found is None or len(found.data) != BITMAPS_EXTENSION.size:
            return None
        return BitmapsExtension(**BITMAPS_EXTENSION.values(found.data))

    @cached_property
    def bitmaps_consistent(self) -> bool:
        return self.has(FeatureType.AUTOCLEAR, "bitmaps")

    @cached_property
    def encryption_header(self) -> EncryptionHeader | None:
        found = self.extension(ExtensionType.ENCRYPTION_HEADER)
        if found is None or len(found.data) != ENCRYPTION_HEADER_POINTER.size:
            return None
        return EncryptionHeader(**ENCRYPTION_HEADER_POINTER.values(found.data))


def aligned(length: int) -> int:
    """Return `length` with the padding that extensions and records have."""
    return -(-length // RECORD_ALIGNMENT) * RECORD_ALIGNMENT


def field_span(name: str) -> Span:
    """Return the bytes of a header field."""
    base = 0
    for part in (HEADER_V2, HEADER_V3_TAIL, HEADER_ADDITIONAL):
        for member in part.fields:
            if member.name == name:
                return Span(base + member.offset, member.size)
        base += part.size
    raise KeyError(name)


def _v3_fields(start: bytes) -> dict[str, Any]:
    if len(start) < V3_LENGTH:
        where = Span(V2_LENGTH, len(start) - V2_LENGTH)
        raise NotQcow2(f"the file ends after {len(start)} of {V3_LENGTH} header bytes", where=where, spec="Header")
    found: dict[str, Any] = HEADER_V3_TAIL.values(start, V2_LENGTH)
    reached = min(found["header_length"], len(start))
    if reached > V3_LENGTH:
        # A field is absent where header_length does not reach it, and absent means zero.
        present = start[V3_LENGTH:reached].ljust(HEADER_ADDITIONAL.size, b"\0")
        found["compression_type"] = HEADER_ADDITIONAL.values(present)["compression_type"]
    return found


def _unknown_fields(store: Store, known: dict[str, Any]) -> bytes:
    if known["cluster_bits"] not in Limit.CLUSTER_BITS:
        return b""
    end = min(known["header_length"], 1 << known["cluster_bits"])
    return store.pread(max(0, end - KNOWN_LENGTH), KNOWN_LENGTH)


def _extensions(store: Store, header: Header) -> Iterator[Extension]:
    end = header.extensions_end
    area = store.pread(max(0, end - header.header_length), header.header_length)
    position = 0
    while position + _EXTENSION_HEADER_SIZE <= len(area):
        found = EXTENSION_HEADER.values(area, position)
        data_start = position + _EXTENSION_HEADER_SIZE
        data = area[data_start : data_start + found["length"]]
        yield Extension(found["type"], header.header_length + position, found["length"], data)
        if found["type"] == ExtensionType.END:
            return
        position = data_start + aligned(found["length"])


def _backing_file(store: Store, header: Header) -> bytes | None:
    if not header.backing_file_offset:
        return None
    room = max(0, header.cluster_size - header.backing_file_offset)
    length = min(header.backing_file_size, room, Limit.BACKING_FILE_NAME_BYTES)
    return store.pread(length, header.backing_file_offset)


def _beginning(start: bytes) -> str:
    return f"it starts with {start[: len(MAGIC)]!r}, {len(start)} bytes" if start else "it is an empty file, 0 bytes"
