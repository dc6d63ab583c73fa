"""What is derived from a schema, and records that are parsed with exact spans."""

from __future__ import annotations

import pytest
from construct import StreamError
from hypothesis import given
from hypothesis import strategies as st

from qcow2c import structs
from qcow2c.format.derivation import bits_of, derived, layout_of, trace
from qcow2c.format.layout import Bits, Layout, RecordLayout


def test_fields_tell_place_width_and_names() -> None:
    header = layout_of(structs.HEADER_V2)
    version = header["version"]
    assert (version.offset, version.size, version.is_integer, version.parts) == (4, 4, True, None)
    assert header["crypt_method"].names == {0: "NONE", 1: "AES", 2: "LUKS"}
    assert not header["magic"].is_integer and header.size == 72


def test_fields_tell_what_they_consist_of() -> None:
    slots = layout_of(structs.LUKS_HEADER)["key_slots"]
    assert isinstance(slots.parts, Layout) and slots.size == 8 * slots.parts.size == 8 * 48
    descriptor = layout_of(structs.EXTENDED_L2_ENTRY)["descriptor"]
    assert isinstance(descriptor.parts, Bits) and descriptor.parts is bits_of(structs.STANDARD_L2_ENTRY)
    flags = layout_of(structs.BITMAP_DIRECTORY_HEADER)["flags"].flags
    assert flags is bits_of(structs.BITMAP_FLAGS)


def test_the_length_of_a_part_is_the_field_that_the_schema_reads() -> None:
    record = derived(structs.SNAPSHOT_RECORD)
    assert isinstance(record, RecordLayout) and record.header is layout_of(structs.SNAPSHOT_HEADER)
    assert [part.length for part in record.parts] == ["extra_data_size", "id_str_size", "name_size"]
    name = derived(structs.BACKING_FILE_NAME)
    assert isinstance(name, RecordLayout) and name.header is None and name.parts[0].length is None


@given(st.binary(max_size=30), st.binary(max_size=30), st.binary(max_size=40))
def test_traced_records_have_exact_spans(id_str: bytes, name: bytes, extra: bytes) -> None:
    fixed = layout_of(structs.SNAPSHOT_HEADER)
    header = dict.fromkeys(fixed.values(bytes(40)), 0)
    header |= {"id_str_size": len(id_str), "name_size": len(name), "extra_data_size": len(extra)}
    record = {"header": header, "extra_data": extra, "id_str": id_str, "name": name}
    raw = structs.SNAPSHOT_RECORD.build(record)
    traced = trace(structs.SNAPSHOT_RECORD, raw)
    assert [part.name for part in traced] == ["header", "extra_data", "id_str", "name"]
    assert [raw[part.offset : part.offset + part.size] for part in traced[1:]] == [extra, id_str, name]
    assert [(part.name, part.offset, part.size) for part in traced[0].children] == [
        (member.name, member.offset, member.size) for member in fixed.fields
    ]


def test_a_record_that_ends_too_soon_is_no_record() -> None:
    with pytest.raises(StreamError):
        trace(structs.SNAPSHOT_RECORD, bytes(39))
