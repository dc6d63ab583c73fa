"""What a layout reads and writes, against Construct's own parser of the schema that it follows from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c import structs
from qcow2c.errors import Span
from qcow2c.format import derived, layout

FLAT = ["HEADER_V2", "HEADER_V3_TAIL", "HEADER_ADDITIONAL", "EXTENSION_HEADER", "FEATURE_NAME", "BITMAPS_EXTENSION"]
FLAT += ["ENCRYPTION_HEADER_POINTER", "LUKS_KEY_SLOT", "SNAPSHOT_HEADER", "SNAPSHOT_EXTRA_DATA"]
FLAT += ["BITMAP_DIRECTORY_HEADER"]


@given(st.sampled_from(FLAT), st.data())
def test_values_are_what_construct_parses(name: str, data: st.DataObject) -> None:
    schema, known = getattr(structs, name), getattr(derived, name)
    raw = data.draw(st.binary(min_size=schema.sizeof(), max_size=schema.sizeof()))
    parsed = schema.parse(raw)
    values = known.values(b"??" + raw, 2)
    for key, value in values.items():
        expected = parsed[key]
        assert value == (expected if isinstance(expected, bytes) else int(expected))
    assert known.packed(values) == raw


@given(st.integers(0, 2**64 - 1), st.sampled_from(["L1_ENTRY", "STANDARD_L2_ENTRY", "BITMAP_TABLE_ENTRY"]))
def test_bit_fields_are_what_construct_parses(word: int, name: str) -> None:
    schema = getattr(structs, name)
    parsed = schema.parse(word.to_bytes(8, "big"))
    for member in getattr(derived, name).members:
        assert member.of(word) == parsed[member.name]
    assert schema.build(parsed) == word.to_bytes(8, "big")


def test_flags_are_a_word_with_those_bits() -> None:
    assert derived.INCOMPATIBLE_FEATURES.flags(dirty=True, corrupt=False, extended_l2=True) == 0b10001
    assert derived.INCOMPATIBLE_FEATURES.size == 8


def test_an_integer_without_bounds_may_be_all_that_it_can_hold() -> None:
    assert derived.HEADER_V2["l1_table_offset"].valid == range(1 << 64)
    assert list(derived.HEADER_V2["crypt_method"].valid) == [0, 1, 2]
    assert derived.HEADER_V2["cluster_bits"].valid == range(9, 22)
    assert derived.HEADER_V2["size"].all_ones == 2**64 - 1


def test_a_field_that_is_none_is_no_field() -> None:
    with pytest.raises(KeyError):
        derived.HEADER_V2["refcount_order"]


@given(st.binary(max_size=30), st.binary(max_size=30), st.binary(max_size=40))
def test_the_parts_of_a_record_lie_where_construct_puts_them(id_str: bytes, name: bytes, extra: bytes) -> None:
    header = dict.fromkeys(derived.SNAPSHOT_HEADER.by_name, 0)
    header |= {"id_str_size": len(id_str), "name_size": len(name), "extra_data_size": len(extra)}
    record = {"header": header, "extra_data": extra, "id_str": id_str, "name": name}
    raw = structs.SNAPSHOT_RECORD.build(record)
    found = {part.name: raw[span.offset : span.end] for part, span in derived.SNAPSHOT_RECORD.spans(raw)}
    assert found == {"extra_data": extra, "id_str": id_str, "name": name}


def test_a_record_without_a_header_reaches_to_the_end() -> None:
    ((part, span),) = derived.BACKING_FILE_NAME.spans(b"base.qcow2")
    assert (part.name, span) == ("name", Span(0, 10))


def test_words_are_native_and_a_torn_one_is_left_out() -> None:
    assert list(layout.words(b"\0" * 7 + b"\x05" + b"\x01" + b"\0" * 7 + b"???")) == [5, 1 << 56]


def test_dtypes_read_the_same_fields() -> None:
    raw = bytes(range(40))
    record = np.frombuffer(raw, dtype=derived.SNAPSHOT_HEADER.dtype)[0]
    for name, value in derived.SNAPSHOT_HEADER.values(raw).items():
        assert int(record[name]) == value
    assert derived.EXTENDED_L2_ENTRY.dtype == np.dtype([("descriptor", ">u8"), ("subclusters", ">u8")])
    assert derived.FEATURE_NAME.dtype["name"].itemsize == 46


def test_integers_are_big_endian() -> None:
    assert layout.integer(b"\x01\x02\x03") == 0x010203
