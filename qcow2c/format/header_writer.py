"""The first cluster of an image: header fields, extensions, feature name table and backing file name, as bytes.

It decides nothing about the image and writes nothing. Spec: "Header", "Header extensions".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qcow2c.constants import MAGIC, ExtensionType, FeatureType, Limit, Version
from qcow2c.errors import UsageError
from qcow2c.format import layout
from qcow2c.format.derived import EXTENSION_HEADER, FEATURE_NAME, HEADER_ADDITIONAL, HEADER_V2, HEADER_V3_TAIL
from qcow2c.format.header import FEATURE_FIELDS, KNOWN_LENGTH, V2_LENGTH, Header, aligned, field_span
from qcow2c.light import NamedTuple
from qcow2c.storage.store import Store

_FEATURE_LABELS = {
    FeatureType.INCOMPATIBLE: {
        "dirty": "dirty bit",
        "corrupt": "corrupt bit",
        "data_file": "external data file",
        "compression_type": "compression type",
        "extended_l2": "extended L2 entries",
    },
    FeatureType.COMPATIBLE: {"lazy_refcounts": "lazy refcounts"},
    FeatureType.AUTOCLEAR: {"bitmaps": "bitmaps", "data_file_raw": "raw external data"},
}
"""The names that QEMU gives the features, for programs that do not know them."""


def first_cluster(
    fields: Mapping[str, int],
    extensions: Sequence[tuple[ExtensionType, bytes]],
    backing_file: bytes | None,
    cluster_size: int,
) -> bytes:
    """Return header, extensions and backing file name, without what pads the cluster.

    `fields` are integers under the specification's names; those that follow from the rest (magic, lengths, place of the
    backing file name) are filled in, and others that are missing are 0. Raises UsageError where it does not all fit.
    """
    is_v2 = fields["version"] == Version.V2
    body = extension_area(extensions)
    length = V2_LENGTH if is_v2 else KNOWN_LENGTH
    known: dict[str, int | bytes] = dict(fields)
    known |= {"magic": MAGIC, "header_length": length}
    if backing_file is not None:
        known |= {"backing_file_offset": length + len(body), "backing_file_size": len(backing_file)}
    parts = (HEADER_V2,) if is_v2 else (HEADER_V2, HEADER_V3_TAIL, HEADER_ADDITIONAL)
    header = b"".join(part.packed(known) for part in parts)
    whole = header + body + (backing_file or b"")
    if backing_file is not None and len(backing_file) > Limit.BACKING_FILE_NAME_BYTES:
        raise UsageError(f"backing file name of {len(backing_file)} bytes exceeds {Limit.BACKING_FILE_NAME_BYTES}")
    if len(whole) > cluster_size:
        raise UsageError(f"header, extensions and backing file name of {len(whole)} bytes exceed the first cluster")
    return whole


def extension_area(extensions: Sequence[tuple[int, bytes]]) -> bytes:
    """Return consecutive extensions, and the one that ends them."""
    return b"".join(_extension(kind, data) for kind, data in [*extensions, (ExtensionType.END, b"")])


def feature_name_table() -> bytes:
    """Return the feature name table of all features known. Spec: "Feature name table"."""
    return b"".join(_feature_names())


def _feature_names() -> Iterator[bytes]:
    width = FEATURE_NAME["name"].size
    for kind, labels in _FEATURE_LABELS.items():
        bits = FEATURE_FIELDS[kind][1]
        for name, label in labels.items():
            padded = label.encode().ljust(width, b"\0")
            yield FEATURE_NAME.packed({"type": kind, "bit": bits[name].shift, "name": padded})


def _extension(kind: int, data: bytes) -> bytes:
    head = EXTENSION_HEADER.packed({"type": kind, "length": len(data)})
    return head + data.ljust(aligned(len(data)), b"\0")


Extensions = Sequence[tuple[int, bytes]]
"""Header extensions in order, as type and data, without the one that ends them."""


class HeaderChange(NamedTuple):
    """What a header is to say; what is None stays as it is."""

    fields: Mapping[str, int] = {}
    """Under the specification's names; the lengths and the place of the backing file name are filled in."""
    extensions: Extensions | None = None
    backing_file: bytes | None = None
    """The backing file name; empty for none."""


def extensions_of(header: Header) -> list[tuple[int, bytes]]:
    """Return the extensions of a header as they can be written again."""
    return [(found.type, found.data) for found in header.extensions if found.type != ExtensionType.END]


def with_extension(header: Header, kind: ExtensionType, data: bytes | None) -> list[tuple[int, bytes]]:
    """Return the extensions of a header with another one of a type, or none of it."""
    kept = [found for found in extensions_of(header) if found[0] != kind]
    return kept if data is None else [(kind, data), *kept]


def changed_header(store: Store, header: Header, change: HeaderChange) -> bytes:
    """Return the header of an image, extensions and backing file name with a change, for another file: see below.

    What is not known in the header proper stays. Raises UsageError where it does not fit into the first cluster.
    """
    name = header.backing_file or b"" if change.backing_file is None else change.backing_file
    extensions = extensions_of(header) if change.extensions is None else change.extensions
    head = header_proper(header, store.pread(header.header_length, 0), change.fields)
    whole = assembled(head, extensions, name)
    if len(whole) > header.cluster_size:
        raise UsageError(f"header, extensions and backing file name of {len(whole)} bytes exceed the first cluster")
    return whole


def with_fields(head: bytes, fields: Mapping[str, int]) -> bytes:
    """Return the header proper, or all of the first sector, with other values of fields. Raises UsageError."""
    changed = bytearray(head)
    for name, value in fields.items():
        span = field_span(name)
        if span.end > len(head):
            raise UsageError(f"a header of {len(head)} bytes has no field {name!r}")
        changed[span.offset : span.end] = layout.stored_integer(value, span.length)
    return bytes(changed)


def header_proper(header: Header, old: bytes, fields: Mapping[str, int]) -> bytes:
    """Return the header proper with other fields; what is not known in it stays, unless the version changes."""
    version = fields.get("version", header.version)
    length = V2_LENGTH if version == Version.V2 else KNOWN_LENGTH
    if version == header.version:
        length = header.header_length
    known = dict(fields)
    if version >= Version.V3:
        known.setdefault("refcount_order", header.refcount_order)
        known["header_length"] = length
    return with_fields(old[: min(length, header.header_length)].ljust(length, b"\0"), known)


def assembled(head: bytes, extensions: Extensions, name: bytes, name_offset: int | None = None) -> bytes:
    """Return header and extensions, and behind them, unless it is elsewhere, the backing file name."""
    area = extension_area(extensions)
    offset = len(head) + len(area) if name_offset is None else name_offset
    placed = with_fields(head, {"backing_file_offset": offset if name else 0, "backing_file_size": len(name)})
    return placed + area + (name if name_offset is None else b"")
