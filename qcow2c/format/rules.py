"""Each validity rule of headers and records once, as generators of `Finding`s: the engine raises the first, check
collects them, dump shows them at the field, inspect grades them. Rules look at values that were already loaded; they
read no file. The rules of table entries are in `table_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qcow2c.constants import ENTRY_BYTES, CompressionType, CryptMethod, ExtensionType, FeatureType, Limit, Version
from qcow2c.errors import CorruptMetadata, LimitExceeded, Qcow2Error, Span, UnsupportedFeature
from qcow2c.format.derived import (
    BITMAP_DIRECTORY_HEADER,
    BITMAPS_EXTENSION,
    ENCRYPTION_HEADER_POINTER,
    HEADER_V2,
    HEADER_V3_TAIL,
    SNAPSHOT_HEADER,
)
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.header import FEATURE_FIELDS, V3_LENGTH, Extension, Header, field_span
from qcow2c.format.metadata_spans import metadata_spans, overlap
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from qcow2c.format.records import BitmapRecord, SnapshotRecord

LOST_OWNERS = frozenset(
    (
        "header.looks_like_v3",
        "header.lost_snapshots",
        "header.bitmaps_bit",
        "header.no_encryption_header",
        "encryption.broken",
        "snapshot.l1_table_offset",
        "snapshot.l1_size",
        "snapshot.l1_too_small",
        "snapshot.id",
        "snapshot.name",
    )
)
"""Rules that no sound writer breaks, and where a record that owns clusters may not be read for what it is.

What then looks like a leak may belong to it: a check calls the image corrupt, and a repair frees nothing.
"""

# --- header ---------------------------------------------------------------------------------------------------------


def header_findings(header: Header) -> Iterator[Finding]:
    """Judge the header, its extensions, and where the tables lie. Spec: "Header", "Header extensions"."""
    fatal = False
    for rule in (_bounded_fields, _cluster_size, _header_length, _backing_file, _compression, _features):
        for finding in rule(header):
            yield finding
            fatal = fatal or finding.severity is Severity.FATAL
    if fatal:
        return  # What follows computes with the fields that were just refused.
    for rule in (_version, _tables, _extensions, _encryption, _overlaps, _state):
        yield from rule(header)


def _at(
    rule: str,
    name: str,
    message: str,
    severity: Severity = Severity.FATAL,
    error: type[Qcow2Error] = CorruptMetadata,
) -> Finding:
    """A finding at a header field."""
    return Finding(rule, severity, message, field_span(name), "Header", error)


def _bounded_fields(header: Header) -> Iterator[Finding]:
    """Fields whose schema bounds them by themselves, whatever the rest of the header says."""
    judged_elsewhere = {"magic", "version", "crypt_method", "backing_file_size", "header_length", "size"}
    parts = (HEADER_V2, HEADER_V3_TAIL) if header.version >= Version.V3 else (HEADER_V2,)
    for member in (member for part in parts for member in part.fields):
        if member.name in judged_elsewhere:
            continue
        value, valid = getattr(header, member.name), member.valid
        if value not in valid:
            bound = f"{valid[0]}..{valid[-1]}"
            yield _at(
                f"header.{member.name}",
                member.name,
                f"{member.name} {value} is out of bounds, {bound}",
                error=LimitExceeded,
            )


def _cluster_size(header: Header) -> Iterator[Finding]:
    if header.extended_l2 and header.cluster_bits not in Limit.EXTENDED_L2_CLUSTER_BITS:
        least = Limit.EXTENDED_L2_CLUSTER_BITS[0]
        yield _at(
            "header.subcluster_size",
            "cluster_bits",
            f"cluster_bits {header.cluster_bits} is below {least}, the least with extended L2 entries",
        )


def _header_length(header: Header) -> Iterator[Finding]:
    if header.version < Version.V3:
        return
    length = header.header_length
    if length < V3_LENGTH:
        yield _at("header.header_length", "header_length", f"header_length {length} is below {V3_LENGTH}")
    elif header.has_valid_cluster_bits and length > header.cluster_size:
        message = f"header_length {length} exceeds the cluster size {header.cluster_size}"
        yield _at("header.header_length", "header_length", message)
    elif length % 8:
        message = f"header_length {length} is no multiple of 8"
        yield _at("header.header_length_multiple", "header_length", message, Severity.WARNING)


def _backing_file(header: Header) -> Iterator[Finding]:
    if not header.backing_file_offset or not header.has_valid_cluster_bits:
        return
    if header.backing_file_offset > header.cluster_size:
        message = f"backing_file_offset {header.backing_file_offset:#x} is outside the first cluster"
        yield _at("header.backing_file_offset", "backing_file_offset", message)
        return
    bound = min(Limit.BACKING_FILE_NAME_BYTES, header.cluster_size - header.backing_file_offset)
    if header.backing_file_size > bound:
        message = f"backing file name of {header.backing_file_size} bytes exceeds {bound}"
        yield _at("header.backing_file_size", "backing_file_size", message, error=LimitExceeded)
    if header.external_data and header.data_file_raw:
        message = "a raw external data file and a backing file exclude each other"
        yield _at("header.raw_data_with_backing", "backing_file_offset", message, Severity.WARNING)


def _compression(header: Header) -> Iterator[Finding]:
    declared = header.has(FeatureType.INCOMPATIBLE, "compression_type")
    method = header.compression_type
    if method not in tuple(CompressionType):
        message = f"unknown compression type {method}"
        yield _at("header.compression_type", "compression_type", message, error=UnsupportedFeature)
    elif declared != (method != CompressionType.ZLIB):
        state = "set" if declared else "not set"
        message = f"the compression type bit is {state}, but compression_type is {method}"
        yield _at("header.compression_bit", "incompatible_features", message)


def _version(header: Header) -> Iterator[Finding]:
    """A version 2 header that goes on as one of version 3: a flipped bit hides all features, and their extensions."""
    tail = header.after_v2
    if len(tail) < HEADER_V3_TAIL.size or 0 < header.backing_file_offset < V3_LENGTH:
        return
    later = HEADER_V3_TAIL.values(tail)
    length = later["header_length"]
    is_header = V3_LENGTH <= length <= header.cluster_size and length % 8 == 0
    if is_header and later["refcount_order"] in Limit.REFCOUNT_ORDER and not _unknown_bits(later):
        message = f"version {header.version}, but the fields of version 3 follow, with a header length of {length}"
        yield _at("header.looks_like_v3", "version", message, Severity.WARNING)


def _unknown_bits(fields: dict[str, int]) -> int:
    unknown = 0
    for name, bits in FEATURE_FIELDS.values():
        unknown |= fields[name] & bits.reserved
    return unknown


def _features(header: Header) -> Iterator[Finding]:
    for kind, (name, bits) in FEATURE_FIELDS.items():
        unknown = getattr(header, name) & bits.reserved
        if not unknown:
            continue
        message = f"Unsupported qcow2 feature(s): {', '.join(_unknown_names(header, kind, unknown))}"
        if kind is FeatureType.INCOMPATIBLE:
            yield _at(f"header.{name}", name, message, error=UnsupportedFeature)
        else:
            yield _at(f"header.{name}", name, message, Severity.NOTE)


def _unknown_names(header: Header, kind: FeatureType, unknown: int) -> Iterator[str]:
    """Yield the names of unknown bits that the image itself has for them, and the rest of the bits as QEMU does."""
    for entry in header.feature_names:
        mask = 1 << entry.bit
        if entry.type == kind and unknown & mask:
            unknown &= ~mask
            name = entry.name.decode("utf-8", "backslashreplace")
            yield "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)  # No line of its own.
    if unknown:
        yield f"Unknown {kind.name.lower()} feature: {unknown:x}"


def _tables(header: Header) -> Iterator[Finding]:
    geometry = header.geometry
    needed = geometry.l1_entries(header.size)
    if header.l1_size < needed:
        message = f"L1 table is too small: {header.l1_size} entries of the {needed} that the size {header.size} needs"
        yield _at("header.l1_too_small", "l1_size", message)
    size = header.refcount_table_clusters * header.cluster_size
    if size > Limit.REFCOUNT_TABLE_BYTES:
        message = f"refcount table of {size} bytes exceeds {Limit.REFCOUNT_TABLE_BYTES}"
        yield _at("header.refcount_table_size", "refcount_table_clusters", message, error=LimitExceeded)
    if not size:
        yield _at(
            "header.no_refcount_table",
            "refcount_table_clusters",
            "Image does not contain a refcount table",
            Severity.ERROR,
        )
    for name, length in (
        ("l1_table_offset", header.l1_size * ENTRY_BYTES),
        ("refcount_table_offset", size),
        ("snapshots_offset", header.nb_snapshots * SNAPSHOT_HEADER.size),
    ):
        offset = getattr(header, name)
        if offset % header.cluster_size or offset + length >= Limit.SIGNED_OFFSET_END:
            yield _at(f"header.{name}", name, f"{name} {offset:#x} is not cluster-aligned or too large")
    if header.snapshots_offset and not header.nb_snapshots:
        message = f"no snapshots, but a snapshot table at {header.snapshots_offset:#x}"
        yield _at("header.lost_snapshots", "nb_snapshots", message, Severity.WARNING)
    if header.external_data and header.nb_snapshots:
        message = f"{header.nb_snapshots} snapshots in an image with an external data file"
        yield _at("header.snapshots_with_data_file", "nb_snapshots", message, Severity.WARNING)
    if header.data_file_raw and not header.external_data:
        message = "the raw external data bit is set without the external data file bit"
        yield _at("header.raw_without_data_file", "autoclear_features", message)


def _extensions(header: Header) -> Iterator[Finding]:
    seen: set[int] = set()
    for extension in header.extensions:
        room = header.extensions_end - extension.data_offset
        if extension.length > room:
            message = f"header extension {extension.type:#x} of {extension.length} bytes leaves its area by {room}"
            yield _in(extension, "extension.too_large", message, Severity.FATAL)
            return
        if extension.type in seen and extension.type != ExtensionType.END:
            message = f"header extension {extension.type:#x} appears again"
            yield _in(extension, "extension.duplicate", message, Severity.WARNING)
        seen.add(extension.type)
        judge = _EXTENSION_RULES.get(extension.type)
        if judge is not None:
            yield from judge(header, extension)
    if header.bitmaps is None and header.bitmaps_consistent:
        message = "the bitmaps bit is set, but there is no bitmaps extension"
        yield _at("header.bitmaps_bit", "autoclear_features", message, Severity.WARNING)


def _in(
    extension: Extension,
    rule: str,
    message: str,
    severity: Severity = Severity.FATAL,
) -> Finding:
    return Finding(rule, severity, message, extension.span, "Header extensions")


def _backing_format(_header: Header, extension: Extension) -> Iterator[Finding]:
    if extension.length > Limit.BACKING_FORMAT_NAME_BYTES:
        message = f"backing format name of {extension.length} bytes exceeds {Limit.BACKING_FORMAT_NAME_BYTES}"
        yield _in(extension, "extension.backing_format", message)


def _encryption_pointer(header: Header, extension: Extension) -> Iterator[Finding]:
    pointer = header.encryption_header
    if header.crypt_method != CryptMethod.LUKS:
        message = f"an encryption header, but crypt_method is {header.crypt_method}, not LUKS"
        yield _in(extension, "extension.encryption_without_luks", message)
    elif extension.length != ENCRYPTION_HEADER_POINTER.size or pointer is None:
        message = f"encryption header pointer of {extension.length} bytes, not {ENCRYPTION_HEADER_POINTER.size}"
        yield _in(extension, "extension.encryption_length", message)
    elif pointer.offset % header.cluster_size:
        message = f"encryption header offset {pointer.offset:#x} is not cluster-aligned"
        yield _in(extension, "extension.encryption_offset", message)


def _bitmaps(header: Header, extension: Extension) -> Iterator[Finding]:
    """QEMU refuses the image; nothing of the guest's data depends on it, so here only the bitmaps are refused."""
    found = header.bitmaps
    if found is None:
        message = f"bitmaps extension of {extension.length} bytes, not {BITMAPS_EXTENSION.size}"
        yield _in(extension, "extension.bitmaps_length", message, Severity.WARNING)
        return
    if not header.bitmaps_consistent:
        message = "a program without bitmap support wrote to the image: its bitmaps are inconsistent"
        yield _in(extension, "extension.bitmaps_inconsistent", message, Severity.NOTE)
        return
    for member in BITMAPS_EXTENSION.fields:
        value, valid = getattr(found, member.name), member.valid
        if value not in valid:
            message = f"bitmaps extension: {member.name} {value} is out of bounds, {valid[0]}..{valid[-1]}"
            yield _in(extension, f"extension.bitmaps.{member.name}", message, Severity.WARNING)
    if found.bitmap_directory_offset % header.cluster_size:
        message = f"bitmap directory offset {found.bitmap_directory_offset:#x} is not cluster-aligned"
        yield _in(extension, "extension.bitmaps.bitmap_directory_offset", message, Severity.WARNING)


_EXTENSION_RULES: dict[int, Callable[[Header, Extension], Iterator[Finding]]] = {
    ExtensionType.BACKING_FORMAT: _backing_format,
    ExtensionType.ENCRYPTION_HEADER: _encryption_pointer,
    ExtensionType.BITMAPS: _bitmaps,
}


def _encryption(header: Header) -> Iterator[Finding]:
    if header.crypt_method not in tuple(CryptMethod):
        message = f"unknown crypt_method {header.crypt_method}"
        yield _at("header.crypt_method", "crypt_method", message, Severity.ERROR, UnsupportedFeature)
    elif header.crypt_method == CryptMethod.LUKS and header.encryption_header is None:
        message = "crypt_method is LUKS, but there is no encryption header"
        yield _at("header.no_encryption_header", "crypt_method", message, Severity.WARNING)


def _overlaps(header: Header) -> Iterator[Finding]:
    for name, other, shared in overlap(list(metadata_spans(header))):
        yield Finding("header.overlap", Severity.ERROR, f"{name} and {other} overlap", shared, "Header")


def _state(header: Header) -> Iterator[Finding]:
    if header.dirty:
        message = "the image was not closed cleanly: its refcounts may be stale"
        yield _at("header.dirty", "incompatible_features", message, Severity.NOTE)
    if header.corrupt:
        message = "the image is marked corrupt: it is readable, but must not be written"
        yield _at("header.corrupt", "incompatible_features", message, Severity.NOTE)
    end = header.l1_table_offset + header.l1_size * ENTRY_BYTES
    if header.l1_size and header.geometry.leaves(end, header.file_size):
        message = f"the active L1 table leaves the file, which has {header.file_size} bytes"
        where = Span(header.l1_table_offset, header.l1_size * ENTRY_BYTES)
        yield Finding("header.l1_past_end", Severity.WARNING, message, where, "Header")


# --- records --------------------------------------------------------------------------------------------------------


def snapshot_findings(header: Header, record: SnapshotRecord) -> Iterator[Finding]:
    """Judge one snapshot record. Spec: "Snapshots"."""
    label = f"snapshot {record.name.decode('utf-8', 'backslashreplace')!r}"
    if record.l1_table_offset % header.cluster_size:
        message = f"{label}: L1 table offset {record.l1_table_offset:#x} is not cluster-aligned"
        yield Finding("snapshot.l1_table_offset", Severity.ERROR, message, record.span, "Snapshots")
    for name in ("l1_size", "date_nsec"):
        value, valid = getattr(record, name), SNAPSHOT_HEADER[name].valid
        if value not in valid:
            severity = Severity.ERROR if name == "l1_size" else Severity.WARNING
            message = f"{label}: {name} {value} is out of bounds, 0..{valid[-1]}"
            yield Finding(f"snapshot.{name}", severity, message, record.span, "Snapshots", LimitExceeded)
    if header.version >= Version.V3 and len(record.extra_data) < Limit.V3_SNAPSHOT_EXTRA_BYTES:
        message = (
            f"{label}: {len(record.extra_data)} bytes of extra data, version 3 has {Limit.V3_SNAPSHOT_EXTRA_BYTES}"
        )
        yield Finding("snapshot.extra_data", Severity.WARNING, message, record.span, "Snapshots")
    yield from _snapshot_names(label, record)
    needed = header.geometry.l1_entries(record.disk_size)
    if record.l1_size < needed:
        message = f"{label}: L1 table of {record.l1_size} entries, its disk size {record.disk_size} needs {needed}"
        yield Finding("snapshot.l1_too_small", Severity.ERROR, message, record.span, "Snapshots")


def _snapshot_names(label: str, record: SnapshotRecord) -> Iterator[Finding]:
    """Every writer gives a record an ID and ends names where they end: other lengths read the next record elsewhere."""
    spec = "Snapshots"
    if not record.id_str or (record.l1_size and not record.l1_table_offset):
        what = "no ID" if not record.id_str else "an L1 table at 0, where the header is"
        yield Finding("snapshot.id", Severity.ERROR, f"{label}: the record has {what}", record.span, spec)
    for name, value in (("ID", record.id_str), ("name", record.name)):
        if b"\0" in value:
            message = f"{label}: its {name} of {len(value)} bytes holds a zero byte"
            yield Finding("snapshot.name", Severity.ERROR, message, record.span, spec)


def bitmap_findings(header: Header, record: BitmapRecord) -> Iterator[Finding]:
    """Judge one bitmap directory record, as strictly as QEMU. Spec: "Bitmap directory"."""
    label = f"bitmap {record.name.decode('utf-8', 'backslashreplace')!r}"
    problems = []
    for name in ("bitmap_table_size", "type", "granularity_bits"):
        value, valid = getattr(record, name), BITMAP_DIRECTORY_HEADER[name].valid
        if value not in valid:
            problems.append((name, f"{name} {value} is out of bounds, {valid[0]}..{valid[-1]}"))
    if not 0 < len(record.name) <= Limit.BITMAP_NAME_BYTES:
        problems.append(("name_size", f"name of {len(record.name)} bytes, not 1..{Limit.BITMAP_NAME_BYTES}"))
    if not record.bitmap_table_offset or record.bitmap_table_offset % header.cluster_size:
        problems.append(("bitmap_table_offset", f"table offset {record.bitmap_table_offset:#x} is not cluster-aligned"))
    if record.unknown_flags:
        problems.append(("flags", f"unknown flags {record.unknown_flags:#x}"))
    if record.extra_data:
        problems.append(("extra_data_size", f"{len(record.extra_data)} bytes of unknown extra data"))
    covered = record.bitmap_table_size * header.cluster_size
    if covered > Limit.BITMAP_BYTES:
        problems.append(("bitmap_table_size", f"bitmap of {covered} bytes exceeds {Limit.BITMAP_BYTES}"))
    elif not record.in_use and header.size > covered * 8 << min(record.granularity_bits, 63):
        problems.append(("bitmap_table_size", f"table of {record.bitmap_table_size} entries is too small for the disk"))
    for name, message in problems:
        yield Finding(f"bitmap.{name}", Severity.WARNING, f"{label}: {message}", record.span, "Bitmap directory")
