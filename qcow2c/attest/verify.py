"""Two independent parsers on one image: the schemas of `structs.py`, and the one compiled from formats/qcow2.ksy.

Owns the walk over an image: which structure lies where, and what follows from its fields. The comparison itself is in
`agreement.py`. It judges nothing: what the Kaitai description rejects is passed on as a note, and so is what neither
parser can read. Time and memory are bounded whatever the image holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

from construct import Construct as Schema

from qcow2c.attest._kaitai import qcow2, qcow2_unchecked
from qcow2c.attest.agreement import (
    Agreement,
    ComparedTable,
    Disagreement,
    FieldDifference,
    Fields,
    Note,
    NoteKind,
    TableKind,
    VerifyResult,
)
from qcow2c.attest.witnesses import Kaitai, Leaf, bit_values, leaves
from qcow2c.constants import MAGIC, V2_REFCOUNT_ORDER, CryptMethod, ExtensionType, Limit, Version
from qcow2c.errors import Span
from qcow2c.format import layout
from qcow2c.format.derivation import bits_of, is_bits, layout_of
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import aligned
from qcow2c.storage.sources import Store
from qcow2c.structs import (
    BACKING_FILE_NAME,
    BACKING_FORMAT,
    BITMAP_DIRECTORY_HEADER,
    BITMAP_DIRECTORY_RECORD,
    BITMAP_TABLE_ENTRY,
    BITMAPS_EXTENSION,
    DATA_FILE_NAME,
    ENCRYPTION_HEADER_POINTER,
    EXTENDED_L2_ENTRY,
    EXTENSION_HEADER,
    FEATURE_NAME,
    HEADER_ADDITIONAL,
    HEADER_V2,
    HEADER_V3_TAIL,
    L1_ENTRY,
    LUKS_HEADER,
    LUKS_KEY_SLOT,
    REFCOUNT_TABLE_ENTRY,
    SNAPSHOT_EXTRA_DATA,
    SNAPSHOT_HEADER,
    SNAPSHOT_RECORD,
    STANDARD_L2_ENTRY,
    SUBCLUSTER_BITMAP,
    compressed_descriptor,
    refcount_group,
)

__all__ = ["FieldDifference", "Note", "NoteKind", "VerifyResult", "verify"]

RECORDS: Final = 1024
"""Extensions, snapshots or bitmaps of one list that are compared."""

_EXTENSION_DATA: Final = {
    ExtensionType.BACKING_FORMAT: BACKING_FORMAT,
    ExtensionType.DATA_FILE: DATA_FILE_NAME,
    ExtensionType.BITMAPS: BITMAPS_EXTENSION,
    ExtensionType.ENCRYPTION_HEADER: ENCRYPTION_HEADER_POINTER,
}

_COMPRESSED: Final = bits_of(STANDARD_L2_ENTRY)["compressed"]
_SUBCLUSTERS: Final = layout_of(EXTENDED_L2_ENTRY)["subclusters"]


def verify(store: Store) -> VerifyResult:
    """Parse an image with both parsers and compare every field of every structure.

    Any content is accepted, damaged and truncated images too: what cannot be read is in `notes`. Raises StoreError.
    """
    return Verification(store, qcow2, qcow2_unchecked).run()


class Verification:
    """One image: `checked` and `unchecked` are the compiled description with and without its `valid` keys."""

    def __init__(self, store: Store, checked: Any, unchecked: Any) -> None:
        self._agreement = Agreement(store, checked, unchecked)
        self._store = store
        self._size = store.size()

    def run(self) -> VerifyResult:
        """Compare everything that can be found from the header, up to the first difference."""
        with suppress(Disagreement):
            self._image()
        return self._agreement.result

    def _image(self) -> None:
        header = self._header()
        if header is None:
            return
        geometry = Geometry(header["cluster_bits"], header["refcount_order"], bool(header["extended_l2"]))
        where = Span(header["backing_file_offset"], header["backing_file_size"])
        if where.offset:
            self._fixed("backing_file_name", BACKING_FILE_NAME, where, lambda kaitai: kaitai.root.backing_file)
        bitmaps: list[ComparedTable] = []
        for kind, data in self._extensions(header):
            if kind == ExtensionType.BITMAPS:
                bitmaps += self._bitmaps(data)
            elif kind == ExtensionType.ENCRYPTION_HEADER and header["crypt_method"] == CryptMethod.LUKS:
                self._luks(data["offset"])
        self._mapping(header, geometry, list(self._snapshots(header)))
        self._refcounts(header, geometry)
        self._tables(_words("BitmapTablePage", "BitmapTableEntry", BITMAP_TABLE_ENTRY), bitmaps)

    def _fixed(
        self, path: str, schema: Schema, where: Span, read: Callable[[Kaitai], Any], **how: Any
    ) -> dict[str, Any] | None:
        """Compare a structure that is one schema."""
        return self._agreement.structure(path, where, lambda data: leaves(schema, data, where.offset), read, **how)

    # --- header ---

    def _header(self) -> dict[str, Any] | None:
        """Compare the header; return its fields, with those that version 2 lacks, or None if it leads nowhere."""
        where = Span(0, HEADER_V2.sizeof())
        header = self._fixed("header", HEADER_V2, where, lambda kaitai: kaitai.root.header)
        if header is None or header["magic"] != MAGIC or header["version"] not in tuple(Version):
            return None
        header |= {"header_length": where.end, "refcount_order": V2_REFCOUNT_ORDER, "extended_l2": 0}
        if header["version"] != Version.V2:
            where = Span(where.end, HEADER_V3_TAIL.sizeof())
            tail = self._fixed("header_v3_tail", HEADER_V3_TAIL, where, lambda kaitai: kaitai.root.header_v3)
            if tail is None:
                return None
            header |= tail | {"extended_l2": tail["incompatible_features.extended_l2"]}
            self._additional(header["header_length"], where.end)
        if header["cluster_bits"] not in Limit.CLUSTER_BITS:
            text = f"without a cluster size ({header['cluster_bits']} bits) nothing beyond the header can be found"
            self._agreement.note(NoteKind.UNREADABLE, "header.cluster_bits", where, text)
            return None
        return header

    def _additional(self, header_length: int, start: int) -> None:
        where = Span(start, HEADER_ADDITIONAL.sizeof())
        if header_length > where.offset:
            path, schema = "header_additional", HEADER_ADDITIONAL
            self._fixed(path, schema, where, lambda kaitai: kaitai.root.additional_fields)
        unknown = Span(where.end, header_length - where.end)
        if unknown.length > 0:
            self._agreement.structure(
                "unknown_header_fields",
                unknown,
                lambda data: [Leaf("", unknown, data)],
                lambda kaitai: kaitai.root.unknown_header_fields,
            )

    def _extensions(self, header: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Compare the header extensions; yield type and data fields of each."""
        cluster_size = 1 << header["cluster_bits"]
        end = min(header["backing_file_offset"] or cluster_size, cluster_size, self._size)
        area = Span(header["header_length"], end - header["header_length"])
        at, index = area.offset, 0
        while end - at >= EXTENSION_HEADER.sizeof():
            path = f"header_extensions[{index}]"
            if index == RECORDS:
                self._agreement.note(NoteKind.SAMPLED, path, area, f"only {RECORDS} extensions compared")
                return
            fields = self._extension(path, area, at)
            if fields is None or fields["type"] == ExtensionType.END:
                return
            yield fields["type"], {name.removeprefix("data."): value for name, value in fields.items()}
            at += EXTENSION_HEADER.sizeof() + aligned(fields["length"])
            index += 1

    def _extension(self, path: str, area: Span, at: int) -> dict[str, Any] | None:
        head = layout_of(EXTENSION_HEADER).values(self._store.pread(EXTENSION_HEADER.sizeof(), at))
        kind = head["type"]
        length = 0 if kind == ExtensionType.END else head["length"]
        where = Span(at, EXTENSION_HEADER.sizeof() + length)
        data_at = at + EXTENSION_HEADER.sizeof()

        def declared(data: bytes) -> list[Leaf]:
            found = leaves(EXTENSION_HEADER, data, at)
            rest = data[EXTENSION_HEADER.sizeof() :]
            if kind in _EXTENSION_DATA:
                return found + leaves(_EXTENSION_DATA[kind], rest, data_at, "data.")
            if kind in (ExtensionType.END, ExtensionType.FEATURE_NAME_TABLE):
                return found
            return [*found, Leaf("data", Span(data_at, length), rest)]

        fields = self._agreement.structure(
            path,
            where,
            declared,
            lambda kaitai: kaitai.within("HeaderExtension", area, at),
            limit=area.end,
            end=min(at + EXTENSION_HEADER.sizeof() + aligned(length), area.end),
            padded=True,
        )
        if fields is not None and kind == ExtensionType.FEATURE_NAME_TABLE:
            size = FEATURE_NAME.sizeof()
            for index, start in enumerate(range(data_at, where.end - size + 1, size)):
                if index == RECORDS:
                    self._agreement.note(NoteKind.SAMPLED, path, where, f"only {RECORDS} names compared")
                    break
                read = partial(_at, "FeatureName", start)
                self._fixed(f"{path}.data.entries[{index}]", FEATURE_NAME, Span(start, size), read)
        return fields

    def _luks(self, offset: int) -> None:
        where = Span(offset, LUKS_HEADER.sizeof())
        if self._fixed("luks_header", LUKS_HEADER, where, partial(_at, "LuksHeader", offset), end=where.end) is None:
            return
        size = LUKS_KEY_SLOT.sizeof()
        first = offset + layout_of(LUKS_HEADER)["key_slots"].offset
        for index, start in enumerate(range(first, where.end, size)):
            read = partial(_at, "LuksKeySlot", start)
            self._fixed(f"luks_header.key_slots[{index}]", LUKS_KEY_SLOT, Span(start, size), read)

    # --- records of variable length ---

    def _snapshots(self, header: dict[str, Any]) -> Iterator[ComparedTable]:
        """Compare the snapshot table; yield the L1 tables."""
        at = start = header["snapshots_offset"]
        declared = header["nb_snapshots"]
        for index in range(min(declared, RECORDS)):
            path = f"snapshots[{index}]"
            fields, at = self._record(path, at, "SnapshotRecord", SNAPSHOT_HEADER, _snapshot_leaves)
            if fields is None:
                return
            yield ComparedTable(f"{path}.l1_table", fields["header.l1_table_offset"], fields["header.l1_size"])
        if declared > RECORDS:
            self._agreement.note(NoteKind.SAMPLED, "snapshots", Span(start, at - start), _only(RECORDS, declared))

    def _bitmaps(self, extension: dict[str, Any]) -> list[ComparedTable]:
        """Compare the bitmap directory; return the bitmap tables."""
        at = start = extension["bitmap_directory_offset"]
        declared = extension["nb_bitmaps"]
        tables: list[ComparedTable] = []
        while len(tables) < declared and (at == start or at - start < extension["bitmap_directory_size"]):
            path = f"bitmap_directory[{len(tables)}]"
            if len(tables) == RECORDS:
                self._agreement.note(NoteKind.SAMPLED, path, Span(start, at - start), _only(RECORDS, declared))
                break
            read_leaves = partial(leaves, BITMAP_DIRECTORY_RECORD)
            fields, at = self._record(path, at, "BitmapDirectoryRecord", BITMAP_DIRECTORY_HEADER, read_leaves)
            if fields is None:
                break
            offset, entries = fields["header.bitmap_table_offset"], fields["header.bitmap_table_size"]
            tables.append(ComparedTable(f"{path}.bitmap_table", offset, entries))
        return tables

    def _record(
        self, path: str, at: int, kaitai_type: str, head: Schema, declared: Callable[[bytes, int], list[Leaf]]
    ) -> tuple[dict[str, Any] | None, int]:
        """Compare a record that begins with the structure `head`; return its fields, and where the next one begins."""
        data = self._store.pread(head.sizeof(), at)
        sizes = layout_of(head).values(data) if len(data) == head.sizeof() else {}
        parts = [value for name, value in sizes.items() if name in ("extra_data_size", "id_str_size", "name_size")]
        where = Span(at, head.sizeof() + sum(parts))
        fields = self._agreement.structure(
            path,
            where,
            lambda data: declared(data, at),
            partial(_at, kaitai_type, at),
            longest=max(parts, default=0),
            end=min(at + aligned(where.length), self._size),
            padded=True,
        )
        return fields, at + aligned(where.length)

    # --- tables ---

    def _tables(self, kind: TableKind, tables: list[ComparedTable], pointer: str = "") -> dict[int, None]:
        """Compare tables; return the different offsets, not 0, that their entries have in the field `pointer`."""
        found = dict.fromkeys(fields.get(pointer, 0) for fields in self._agreement.tables(kind, tables))
        return {offset: None for offset in found if isinstance(offset, int) and offset}

    def _mapping(self, header: dict[str, Any], geometry: Geometry, snapshots: list[ComparedTable]) -> None:
        kind = _words("L1TablePage", "L1Entry", L1_ENTRY)
        active = ComparedTable("l1_table", header["l1_table_offset"], header["l1_size"])
        offsets = self._tables(kind, [active], "l2_table_offset") | self._tables(kind, snapshots, "l2_table_offset")
        standard, compressed = STANDARD_L2_ENTRY, compressed_descriptor(geometry.cluster_bits)

        def values(entry: bytes) -> Fields:
            is_compressed = _COMPRESSED.of(layout.integer(entry[: standard.sizeof()]))
            fields = bit_values(compressed if is_compressed else standard, entry, "descriptor.")
            if geometry.extended_l2:
                fields |= bit_values(SUBCLUSTER_BITMAP, entry[_SUBCLUSTERS.offset :], "subclusters.")
            return fields

        size = EXTENDED_L2_ENTRY.sizeof() if geometry.extended_l2 else standard.sizeof()
        kind = TableKind("L2TablePage", "L2Entry", lambda table, page: (table.offset, page), size, values)
        self._tables(kind, [ComparedTable(f"l2_table@{offset:#x}", offset, geometry.l2_entries) for offset in offsets])

    def _refcounts(self, header: dict[str, Any], geometry: Geometry) -> None:
        kind = _words("RefcountTablePage", "RefcountTableEntry", REFCOUNT_TABLE_ENTRY)
        entries = header["refcount_table_clusters"] * geometry.words_per_cluster
        table = ComparedTable("refcount_table", header["refcount_table_offset"], entries)
        offsets = self._tables(kind, [table], "refcount_block_offset")
        order = geometry.refcount_order
        if order not in Limit.REFCOUNT_ORDER:
            text = f"refcounts of an unknown width (order {order}) cannot be read"
            where = Span(table.offset, table.entries * kind.entry_bytes)
            self._agreement.note(NoteKind.UNREADABLE, "refcount_block", where, text)
            return
        group = refcount_group(order)
        size = group.sizeof()
        groups = geometry.cluster_size // size
        read = partial(bit_values, group) if is_bits(group) else layout_of(group).values
        name = f"RefcountGroup{geometry.refcount_bits}"
        kind = TableKind(
            "RefcountBlockPage",
            name,
            lambda table, page: (table.offset, size, table.entries, page),
            size,
            read,
        )
        self._tables(kind, [ComparedTable(f"refcount_block@{offset:#x}", offset, groups) for offset in offsets])


def _words(page: str, entry: str, schema: Schema) -> TableKind:
    """A kind of table whose entries are words, and whose length is not fixed."""

    def parameters(table: ComparedTable, number: int) -> tuple[int, ...]:
        return table.offset, table.entries, number

    return TableKind(page, entry, parameters, schema.sizeof(), partial(bit_values, schema))


def _at(kaitai_type: str, offset: int, kaitai: Kaitai) -> Any:
    return kaitai.at(kaitai_type, offset)


def _only(compared: int, declared: int) -> str:
    return f"{compared} of {declared} records compared"


def _snapshot_leaves(data: bytes, at: int) -> list[Leaf]:
    """Return the fields of a snapshot record, its extra data taken apart as far as it reaches."""
    found: list[Leaf] = []
    for leaf in leaves(SNAPSHOT_RECORD, data, at):
        if leaf.name != "extra_data" or not isinstance(leaf.value, bytes):
            found.append(leaf)
            continue
        known = 0
        for member in layout_of(SNAPSHOT_EXTRA_DATA).fields:
            raw = leaf.value[member.offset : member.offset + member.size]
            if len(raw) == member.size:
                known = member.offset + member.size
                where = Span(leaf.where.offset + member.offset, member.size)
                found.append(Leaf(f"extra_data.{member.name}", where, layout.integer(raw)))
        where = Span(leaf.where.offset + known, len(leaf.value) - known)
        found.append(Leaf("extra_data.unknown", where, leaf.value[known:]))
    return found
