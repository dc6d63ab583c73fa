"""What is derived from a schema, against Construct's own parser."""

from __future__ import annotations

import numpy as np
import pytest
from construct import StreamError
from hypothesis import given
from hypothesis import strategies as st

from qcow2c import structs
from qcow2c.format import layout

FLAT = ["HEADER_V2", "HEADER_V3_TAIL", "HEADER_ADDITIONAL", "EXTENSION_HEADER", "FEATURE_NAME", "BITMAPS_EXTENSION"]
FLAT += ["ENCRYPTION_HEADER_POINTER", "LUKS_KEY_SLOT", "SNAPSHOT_HEADER", "SNAPSHOT_EXTRA_DATA"]
FLAT += ["BITMAP_DIRECTORY_HEADER"]


@given(st.sampled_from(FLAT), st.data())
def test_values_are_what_construct_parses(name: str, data: st.DataObject) -> None:
    schema = getattr(structs, name)
    raw = data.draw(st.binary(min_size=schema.sizeof(), max_size=schema.sizeof()))
    parsed = schema.parse(raw)
    for key, value in layout.values(schema, b"??" + raw, 2).items():
        expected = parsed[key]
        assert value == (expected if isinstance(expected, bytes) else int(expected))


@given(st.integers(0, 2**64 - 1), st.sampled_from(["L1_ENTRY", "STANDARD_L2_ENTRY", "BITMAP_TABLE_ENTRY"]))
def test_bit_fields_are_what_construct_parses(word: int, name: str) -> None:
    schema = getattr(structs, name)
    parsed = schema.parse(word.to_bytes(8, "big"))
    for member in layout.bits(schema).members:
        assert member.of(word) == parsed[member.name]
    assert schema.build(parsed) == word.to_bytes(8, "big")


def test_fields_tell_place_width_and_names() -> None:
    version = layout.field(structs.HEADER_V2, "version")
    assert (version.offset, version.size, version.is_integer, version.schema) == (4, 4, True, None)
    method = layout.field(structs.HEADER_V2, "crypt_method")
    assert method.names == {0: "NONE", 1: "AES", 2: "LUKS"}
    slots = layout.field(structs.LUKS_HEADER, "key_slots")
    assert slots.schema is not None and slots.size == 8 * 48
    assert layout.field(structs.HEADER_V2, "size").all_ones == 2**64 - 1


def test_words_are_native_and_a_torn_one_is_left_out() -> None:
    assert list(layout.words(b"\0" * 7 + b"\x05" + b"\x01" + b"\0" * 7 + b"???")) == [5, 1 << 56]


def test_dtypes_read_the_same_fields() -> None:
    raw = bytes(range(40))
    record = np.frombuffer(raw, dtype=layout.dtype(structs.SNAPSHOT_HEADER))[0]
    for name, value in layout.values(structs.SNAPSHOT_HEADER, raw).items():
        assert int(record[name]) == value
    assert layout.dtype(structs.L1_ENTRY) == np.dtype(">u8")
    assert layout.dtype(structs.EXTENDED_L2_ENTRY).names == ("descriptor", "subclusters")
    assert layout.dtype(structs.FEATURE_NAME)["name"].itemsize == 46


@given(st.binary(max_size=30), st.binary(max_size=30), st.binary(max_size=40))
def test_traced_records_have_exact_spans(id_str: bytes, name: bytes, extra: bytes) -> None:
    header = dict.fromkeys(layout.values(structs.SNAPSHOT_HEADER, bytes(40)), 0)
    header |= {"id_str_size": len(id_str), "name_size": len(name), "extra_data_size": len(extra)}
    record = {"header": header, "extra_data": extra, "id_str": id_str, "name": name}
    raw = structs.SNAPSHOT_RECORD.build(record)
    traced = layout.trace(structs.SNAPSHOT_RECORD, raw)
    assert [part.name for part in traced] == ["header", "extra_data", "id_str", "name"]
    assert [raw[part.offset : part.offset + part.size] for part in traced[1:]] == [extra, id_str, name]
    fixed = layout.fields(structs.SNAPSHOT_HEADER)
    assert [(part.name, part.offset, part.size) for part in traced[0].children] == [
        (member.name, member.offset, member.size) for member in fixed
    ]


def test_a_record_that_ends_too_soon_is_no_record() -> None:
    with pytest.raises(StreamError):
        layout.trace(structs.SNAPSHOT_RECORD, bytes(39))


def test_integers_are_big_endian() -> None:
    assert layout.integer(b"\x01\x02\x03") == 0x010203
