"""Nodes of the header cluster and of records: everything but tables and encryption. Judges nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from qcow2c.constants import ExtensionType, FeatureType, Version
from qcow2c.errors import Span
from qcow2c.forensic.nodes import Findings, Node, described, field_node, field_nodes, text_of
from qcow2c.format import layout, rules
from qcow2c.format.derived import (
    BACKING_FILE_NAME,
    BACKING_FORMAT,
    BITMAP_DIRECTORY_HEADER,
    BITMAP_DIRECTORY_RECORD,
    BITMAPS_EXTENSION,
    DATA_FILE_NAME,
    ENCRYPTION_HEADER_POINTER,
    EXTENSION_HEADER,
    FEATURE_NAME,
    HEADER_ADDITIONAL,
    HEADER_V2,
    HEADER_V3_TAIL,
    SNAPSHOT_EXTRA_DATA,
    SNAPSHOT_HEADER,
    SNAPSHOT_RECORD,
)
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.header import FEATURE_FIELDS, KNOWN_LENGTH, V2_LENGTH, V3_LENGTH, Extension, Header, aligned
from qcow2c.format.layout import RecordLayout, RecordPart
from qcow2c.format.records import BitmapDirectory, SnapshotRecord, SnapshotTable
from qcow2c.storage.sources import Store

DETAILED_RECORDS = 1024
"""How many extensions, snapshots and bitmaps are shown field by field; of those beyond there is one node each."""

Fixed = {
    ExtensionType.BITMAPS: BITMAPS_EXTENSION,
    ExtensionType.ENCRYPTION_HEADER: ENCRYPTION_HEADER_POINTER,
}
Strings = {ExtensionType.BACKING_FORMAT: BACKING_FORMAT, ExtensionType.DATA_FILE: DATA_FILE_NAME}
_EXTENSION_NAMES = {int(kind): kind.name.lower() for kind in ExtensionType}


# --- header ---------------------------------------------------------------------------------------------------------


def bare_header(store: Store, finding: Finding) -> Node:
    """Return the header of a file that is too short, or too strange, to be loaded, as far as it goes."""
    data = store.pread(KNOWN_LENGTH, 0)
    version = HEADER_V2["version"]
    is_v2 = layout.integer(data[version.offset : version.offset + version.size]) == Version.V2

    def children() -> Iterator[Node]:
        yield from field_nodes(HEADER_V2, data, 0)
        if not is_v2 and len(data) > V2_LENGTH:
            yield from field_nodes(HEADER_V3_TAIL, data[V2_LENGTH:], V2_LENGTH)

    return Node("header", Span(0, len(data)), findings=(finding,), make_children=children)


def header_node(store: Store, header: Header, findings: Findings) -> Node:
    """Return the header: the fields of its version, additional fields, and unknown bytes."""
    data = store.pread(max(V3_LENGTH, min(header.header_length, KNOWN_LENGTH)), 0)
    length = header.header_length if header.version >= Version.V3 else V2_LENGTH
    nodes = list(field_nodes(HEADER_V2, data, 0, findings))
    if header.version >= Version.V3:
        nodes += field_nodes(HEADER_V3_TAIL, data[V2_LENGTH:], V2_LENGTH, findings)
        nodes += _additional(data, length, findings)
    if header.unknown_fields:
        text, exact = text_of(header.unknown_fields[:64])
        span = Span(KNOWN_LENGTH, len(header.unknown_fields))
        nodes.append(Node("unknown_fields", span, text, "header fields that are not known today", hex=exact))
    words = f"version {header.version}, {length} bytes"
    return Node("header", Span(0, length), None, words, spec="Header", make_children=lambda: nodes)


def _additional(data: bytes, length: int, findings: Findings) -> Iterator[Node]:
    reached = data[V3_LENGTH : min(length, KNOWN_LENGTH)]
    for member in HEADER_ADDITIONAL.fields:
        raw = reached[member.offset : member.offset + member.size]
        if raw:
            span = Span(V3_LENGTH + member.offset, len(raw))
            yield field_node(member, raw, span, findings.at(span))


def extension_nodes(header: Header, findings: Findings) -> Iterator[Node]:
    """Yield each header extension, and the backing file name."""
    for index, extension in enumerate(header.extensions):
        node = _extension(extension, findings.at(extension.span))
        yield node if index < DETAILED_RECORDS else replace(node, make_children=None)
    if header.backing_file is not None:
        text, exact = text_of(header.backing_file)
        span = Span(header.backing_file_offset, len(header.backing_file))
        yield Node("backing_file_name", span, text, hex=exact, **_string_facts(BACKING_FILE_NAME))


def _string_facts(record: RecordLayout) -> dict[str, Any]:
    return described(record.parts[0].doc)


def _extension(extension: Extension, findings: tuple[Finding, ...]) -> Node:
    name = _EXTENSION_NAMES.get(extension.type, "unknown")
    value: str | None = None
    exact = ""
    if extension.type in Strings or name == "unknown":
        value, exact = text_of(extension.data[:1024])

    def children() -> Iterator[Node]:
        head = EXTENSION_HEADER.packed({"type": extension.type, "length": extension.length})
        yield from field_nodes(EXTENSION_HEADER, head, extension.offset)
        at = extension.data_offset
        if extension.type in Fixed:
            yield from field_nodes(Fixed[ExtensionType(extension.type)], extension.data, at)
        elif extension.type == ExtensionType.FEATURE_NAME_TABLE:
            yield from _feature_names(extension)
        elif extension.type != ExtensionType.END:
            yield Node("data", Span(at, len(extension.data)), value, hex=exact, **_data_facts(extension.type))
        padding = aligned(extension.length) - extension.length
        if padding and len(extension.data) == extension.length:
            yield Node("padding", Span(at + extension.length, padding))

    words = f"type {extension.type:#010x}, {extension.length} bytes"
    return Node(
        name,
        extension.span,
        value,
        words,
        spec="Header extensions",
        hex=exact,
        findings=findings,
        make_children=children,
    )


def _data_facts(kind: int) -> dict[str, Any]:
    return _string_facts(Strings[ExtensionType(kind)]) if kind in Strings else {}


_STOCK_NAMES = {
    (FeatureType.INCOMPATIBLE, 0, "dirty bit"),
    (FeatureType.INCOMPATIBLE, 1, "corrupt bit"),
    (FeatureType.INCOMPATIBLE, 2, "external data file"),
    (FeatureType.INCOMPATIBLE, 3, "compression type"),
    (FeatureType.INCOMPATIBLE, 4, "extended L2 entries"),
    (FeatureType.COMPATIBLE, 0, "lazy refcounts"),
    (FeatureType.AUTOCLEAR, 0, "bitmaps"),
    (FeatureType.AUTOCLEAR, 1, "raw external data"),
}
"""The names that QEMU gives to features, in each image."""


def _feature_names(extension: Extension) -> Iterator[Node]:
    size = FEATURE_NAME.size
    for start in range(0, len(extension.data), size):
        data, base = extension.data[start : start + size], extension.data_offset + start
        entry = FEATURE_NAME.values(data.ljust(size, b"\0"))
        text, exact = text_of(entry["name"].split(b"\0")[0])
        kinds = {int(kind): kind.name.lower() for kind in FeatureType}
        kind = kinds.get(entry["type"], f"unknown type {entry['type']}")
        words = f"{kind} feature, bit {entry['bit']}"
        if len(data) < size:
            words += f", cut short: {len(data)} of {size} bytes"

        def fields(data: bytes = data, base: int = base) -> Iterator[Node]:
            return field_nodes(FEATURE_NAME, data, base)

        yield Node(
            "feature",
            Span(base, len(data)),
            text,
            words,
            hex=exact,
            spec="Feature name table",
            is_stock=len(data) == size and (entry["type"], entry["bit"], text) in _STOCK_NAMES,
            make_children=fields,
        )


def feature_nodes(header: Header) -> Iterator[Node]:
    """Yield each feature bit that is set, called by the schema or by the image's own feature name table."""
    # Of two names for one bit the first counts, as for QEMU.
    own = {(entry.type, entry.bit): entry.name for entry in reversed(header.feature_names)}
    for kind, (field_name, flags) in FEATURE_FIELDS.items():
        value = getattr(header, field_name)
        known = {bit.shift: bit for bit in flags.members if not bit.doc.reserved}
        for position in range(value.bit_length()):
            if not value >> position & 1:
                continue
            words = f"{kind.name.lower()}, bit {position}"
            if position in known:
                yield Node(known[position].name, value=True, text=words, **described(known[position].doc))
            else:
                text, exact = text_of(own.get((kind, position), b"unknown"))
                yield Node(text, value=True, text=words + ", not known to this program", hex=exact)


# --- records --------------------------------------------------------------------------------------------------------


def snapshot_nodes(store: Store, header: Header, table: SnapshotTable) -> Iterator[Node]:
    """Yield each snapshot record with its fields, and why the reading stopped, if it did."""
    size = store.size()
    for index, record in enumerate(table.records):
        if record.span.offset >= size:
            count = len(table.records) - index
            message = f"{count} snapshot records are past the end of the file, which has {size} bytes"
            finding = Finding("snapshots.past_end", Severity.ERROR, message, record.span, "Snapshots")
            yield Node("past the end", record.span, count, message, findings=(finding,))
            return
        name, exact = text_of(record.name)
        taken = datetime.fromtimestamp(record.date_sec, UTC).isoformat()
        ident, _ = text_of(record.id_str)
        words = f"ID {ident}, taken {taken}, disk {record.disk_size} bytes, VM state {record.vm_state_size} bytes"
        yield Node(
            f"snapshot {index}", record.span, name, words, hex=exact, spec="Snapshots",
            findings=tuple(rules.snapshot_findings(header, record)),
            make_children=partial(_snapshot_fields, store, record) if index < DETAILED_RECORDS else None,
        )  # fmt: skip
    if table.broken is not None:
        yield Node("broken", table.broken.where, None, table.broken.message, findings=(table.broken,))


def _snapshot_fields(store: Store, record: SnapshotRecord) -> Iterator[Node]:
    data = store.pread(record.span.length, record.span.offset).ljust(record.span.length, b"\0")
    base = record.span.offset
    words = {"date_sec": datetime.fromtimestamp(record.date_sec, UTC).isoformat()}
    yield from field_nodes(SNAPSHOT_HEADER, data[: SNAPSHOT_HEADER.size], base, words=words)
    for part, span in SNAPSHOT_RECORD.spans(data):
        raw = data[span.offset : span.end]
        if part.name == "extra_data":
            yield from _extra_data(raw, base + span.offset, part)
        else:
            text, exact = text_of(raw)
            yield Node(part.name, Span(base + span.offset, span.length), text, hex=exact, **described(part.doc))
    padding = aligned(record.span.length) - record.span.length
    if padding:
        yield Node("padding", Span(record.span.end, padding))


def _extra_data(raw: bytes, base: int, part: RecordPart) -> Iterator[Node]:
    known = [member for member in SNAPSHOT_EXTRA_DATA.fields if member.offset + member.size <= len(raw)]
    for member in known:
        where = Span(base + member.offset, member.size)
        yield field_node(member, raw[member.offset : member.offset + member.size], where)
    end = sum(member.size for member in known)
    if len(raw) > end:
        text, exact = text_of(raw[end:])
        yield Node("unknown_extra_data", Span(base + end, len(raw) - end), text, hex=exact, **described(part.doc))


def bitmap_nodes(store: Store, header: Header, directory: BitmapDirectory) -> Iterator[Node]:
    """Yield each bitmap directory record with its fields."""
    for index, record in enumerate(directory.records):
        name, exact = text_of(record.name)
        state = "in use" if record.in_use else "enabled" if record.auto else "disabled"
        words = f"{state}, granularity 2**{record.granularity_bits} bytes"

        def children(span: Span = record.span) -> Iterator[Node]:
            data = store.pread(span.length, span.offset).ljust(span.length, b"\0")
            yield from field_nodes(BITMAP_DIRECTORY_HEADER, data[: BITMAP_DIRECTORY_HEADER.size], span.offset)
            for part, inner in BITMAP_DIRECTORY_RECORD.spans(data):
                if inner.length:
                    text, exact = text_of(data[inner.offset : inner.end])
                    where = Span(span.offset + inner.offset, inner.length)
                    yield Node(part.name, where, text, hex=exact, **described(part.doc))

        yield Node(
            f"bitmap {index}", record.span, name, words, hex=exact, spec="Bitmap directory",
            findings=tuple(rules.bitmap_findings(header, record)),
            make_children=children if index < DETAILED_RECORDS else None,
        )  # fmt: skip
    if directory.broken is not None:
        yield Node("broken", directory.broken.where, None, directory.broken.message, findings=(directory.broken,))
