"""The first cluster as bytes: what is written is what is loaded, and what is not known stays."""

from __future__ import annotations

import pytest

from qcow2c.errors import UsageError
from qcow2c.format.header import Header
from qcow2c.format.header_writer import (
    HeaderChange,
    changed_header,
    extension_area,
    extensions_of,
    feature_name_table,
    first_cluster,
    with_extension,
)
from qcow2c.storage.sources import Memory
from qcow2c.structs import ExtensionType, FeatureType
from tests.building import Builder, extension

UNKNOWN = 0x12345678
FIELDS = {"version": 3, "cluster_bits": 12, "size": 1 << 30, "l1_size": 7, "l1_table_offset": 4096, "refcount_order": 4}


def loaded(data: bytes) -> Header:
    return Header.load(Memory(data.ljust(8192, b"\0")))


def changed(builder: Builder, change: HeaderChange) -> Header:
    store = Memory(builder.build())
    return loaded(changed_header(store, Header.load(store), change))


@pytest.mark.parametrize(("version", "length"), [(2, 72), (3, 112)])
def test_fields_that_were_given_are_loaded_again_and_lengths_are_filled_in(version: int, length: int) -> None:
    header = loaded(first_cluster(FIELDS | {"version": version}, [], b"base.raw", 4096))
    assert (header.version, header.header_length) == (version, length)
    assert (header.cluster_bits, header.size, header.l1_size, header.l1_table_offset) == (12, 1 << 30, 7, 4096)
    assert header.backing_file == b"base.raw" and header.backing_file_offset == length + 8
    assert header.snapshots_offset == 0


def test_extensions_are_padded_and_end_with_an_empty_one() -> None:
    area = extension_area([(UNKNOWN, b"12345"), (ExtensionType.BACKING_FORMAT, b"")])
    assert area == extension(UNKNOWN, b"12345") + extension(ExtensionType.BACKING_FORMAT, b"") + bytes(8)


def test_without_a_backing_file_there_is_no_name() -> None:
    header = loaded(first_cluster(FIELDS, [(UNKNOWN, b"x")], None, 4096))
    assert (header.backing_file, header.backing_file_offset) == (None, 0)
    assert extensions_of(header) == [(UNKNOWN, b"x")]


@pytest.mark.parametrize(
    ("name", "cluster_size", "words"),
    [(b"n" * 1024, 4096, "1024 bytes exceeds 1023"), (b"n" * 400, 512, "520 bytes exceed the first cluster")],
)
def test_what_does_not_fit_is_refused(name: bytes, cluster_size: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        first_cluster(FIELDS, [], name, cluster_size)


def test_the_feature_names_are_those_of_the_specification() -> None:
    header = loaded(first_cluster(FIELDS, [(ExtensionType.FEATURE_NAME_TABLE, feature_name_table())], None, 4096))
    found = {(entry.type, entry.bit): entry.name for entry in header.feature_names}
    assert found[FeatureType.INCOMPATIBLE, 0] == b"dirty bit"
    assert found[FeatureType.INCOMPATIBLE, 4] == b"extended L2 entries"
    assert found[FeatureType.COMPATIBLE, 0] == b"lazy refcounts"
    assert found[FeatureType.AUTOCLEAR, 1] == b"raw external data"


def test_a_change_leaves_all_else_as_it_is() -> None:
    builder = Builder(header_length=128, compatible_features=1 << 40)
    builder.extensions = [extension(UNKNOWN, b"what nobody knows")]
    builder.backing_file = b"base.qcow2"
    store = Memory(builder.build())
    before = Header.load(store)
    after = loaded(changed_header(store, before, HeaderChange({"size": 5 << 20})))
    assert after.size == 5 << 20
    assert (after.header_length, after.unknown_fields) == (128, before.unknown_fields)
    assert after.compatible_features == 1 << 40 and after.backing_file == b"base.qcow2"
    assert extensions_of(after) == extensions_of(before)


def test_another_name_and_none_are_told_apart() -> None:
    builder = Builder()
    builder.backing_file = b"old"
    assert changed(builder, HeaderChange()).backing_file == b"old"
    assert changed(builder, HeaderChange(backing_file=b"longer than before")).backing_file == b"longer than before"
    assert changed(builder, HeaderChange(backing_file=b"")).backing_file is None


def test_a_field_that_the_header_is_too_short_for_is_refused() -> None:
    with pytest.raises(UsageError, match="a header of 72 bytes has no field 'autoclear_features'"):
        changed(Builder(version=2), HeaderChange({"autoclear_features": 1}))


def test_an_extension_is_replaced_added_or_taken_away() -> None:
    builder = Builder()
    builder.extensions = [extension(UNKNOWN, b"1"), extension(ExtensionType.BACKING_FORMAT, b"raw")]
    header = Header.load(Memory(builder.build()))
    kept = [(UNKNOWN, b"1")]
    assert with_extension(header, ExtensionType.BACKING_FORMAT, None) == kept
    assert with_extension(header, ExtensionType.BACKING_FORMAT, b"qcow2") == [
        (ExtensionType.BACKING_FORMAT, b"qcow2"),
        *kept,
    ]
    assert (ExtensionType.DATA_FILE, b"d") in with_extension(header, ExtensionType.DATA_FILE, b"d")
