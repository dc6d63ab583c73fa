"""The first cluster of an image: header fields, extensions, feature name table and backing file name, as bytes.

It decides nothing about the image and writes nothing. Spec: "Header", "Header extensions".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qcow2c import layout
from qcow2c.errors import UsageError
from qcow2c.header import FEATURE_FIELDS, KNOWN_LENGTH, V2_LENGTH, aligned
from qcow2c.structs import (
    EXTENSION_HEADER,
    FEATURE_NAME,
    HEADER_ADDITIONAL,
    HEADER_V2,
    HEADER_V3_TAIL,
    MAGIC,
    ExtensionType,
    FeatureType,
    Limit,
    Version,
)

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
    schemas = (HEADER_V2,) if is_v2 else (HEADER_V2, HEADER_V3_TAIL, HEADER_ADDITIONAL)
    header = b"".join(layout.packed(schema, known) for schema in schemas)
    whole = header + body + (backing_file or b"")
    if backing_file is not None and len(backing_file) > Limit.BACKING_FILE_NAME_BYTES:
        raise UsageError(f"backing file name of {len(backing_file)} bytes exceeds {Limit.BACKING_FILE_NAME_BYTES}")
    if len(whole) > cluster_size:
        raise UsageError(f"header, extensions and backing file name of {len(whole)} bytes exceed the first cluster")
    return whole


def extension_area(extensions: Sequence[tuple[int, bytes]]) -> bytes:
    """Return extensions one behind the other, and the one that ends them."""
    return b"".join(_extension(kind, data) for kind, data in [*extensions, (ExtensionType.END, b"")])


def feature_name_table() -> bytes:
    """Return the feature name table of all features known. Spec: "Feature name table"."""
    return b"".join(_feature_names())


def _feature_names() -> Iterator[bytes]:
    width = layout.field(FEATURE_NAME, "name").size
    for kind, labels in _FEATURE_LABELS.items():
        bits = layout.bits(FEATURE_FIELDS[kind][1])
        for name, label in labels.items():
            padded = label.encode().ljust(width, b"\0")
            yield layout.packed(FEATURE_NAME, {"type": kind, "bit": bits[name].shift, "name": padded})


def _extension(kind: int, data: bytes) -> bytes:
    head = layout.packed(EXTENSION_HEADER, {"type": kind, "length": len(data)})
    return head + data.ljust(aligned(len(data)), b"\0")
