"""The declarations against the specification's numbers, written down here a second time by hand."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from qcow2c import structs
from qcow2c.format.derivation import bits_of, members
from qcow2c.structs import Doc, Limit, compressed_descriptor, refcount_block, refcount_group

SIZES = {
    "HEADER_V2": 72,
    "HEADER_V3_TAIL": 32,
    "HEADER_ADDITIONAL": 8,
    "EXTENSION_HEADER": 8,
    "FEATURE_NAME": 48,
    "BITMAPS_EXTENSION": 24,
    "ENCRYPTION_HEADER_POINTER": 16,
    "LUKS_KEY_SLOT": 48,
    "LUKS_HEADER": 592,
    "REFCOUNT_TABLE_ENTRY": 8,
    "L1_ENTRY": 8,
    "STANDARD_L2_ENTRY": 8,
    "SUBCLUSTER_BITMAP": 8,
    "EXTENDED_L2_ENTRY": 16,
    "SNAPSHOT_HEADER": 40,
    "SNAPSHOT_EXTRA_DATA": 24,
    "BITMAP_DIRECTORY_HEADER": 24,
    "BITMAP_TABLE_ENTRY": 8,
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_each_structure_has_the_size_of_the_specification(name: str, size: int) -> None:
    assert getattr(structs, name).sizeof() == size


# (schema, field): first and last bit of the specification.
BITS = {
    ("L1_ENTRY", "l2_table_offset"): (9, 55),
    ("L1_ENTRY", "copied"): (63, 63),
    ("STANDARD_L2_ENTRY", "zero"): (0, 0),
    ("STANDARD_L2_ENTRY", "host_cluster_offset"): (9, 55),
    ("STANDARD_L2_ENTRY", "compressed"): (62, 62),
    ("STANDARD_L2_ENTRY", "copied"): (63, 63),
    ("SUBCLUSTER_BITMAP", "allocated"): (0, 31),
    ("SUBCLUSTER_BITMAP", "reads_as_zeros"): (32, 63),
    ("REFCOUNT_TABLE_ENTRY", "refcount_block_offset"): (9, 63),
    ("BITMAP_TABLE_ENTRY", "all_ones"): (0, 0),
    ("BITMAP_TABLE_ENTRY", "host_cluster_offset"): (9, 55),
    ("INCOMPATIBLE_FEATURES", "dirty"): (0, 0),
    ("INCOMPATIBLE_FEATURES", "corrupt"): (1, 1),
    ("INCOMPATIBLE_FEATURES", "data_file"): (2, 2),
    ("INCOMPATIBLE_FEATURES", "compression_type"): (3, 3),
    ("INCOMPATIBLE_FEATURES", "extended_l2"): (4, 4),
    ("COMPATIBLE_FEATURES", "lazy_refcounts"): (0, 0),
    ("AUTOCLEAR_FEATURES", "bitmaps"): (0, 0),
    ("AUTOCLEAR_FEATURES", "data_file_raw"): (1, 1),
    ("BITMAP_FLAGS", "in_use"): (0, 0),
    ("BITMAP_FLAGS", "auto"): (1, 1),
    ("BITMAP_FLAGS", "extra_data_compatible"): (2, 2),
}


@pytest.mark.parametrize(("place", "span"), BITS.items())
def test_each_bit_field_lies_where_the_specification_puts_it(place: tuple[str, str], span: tuple[int, int]) -> None:
    found = bits_of(getattr(structs, place[0]))[place[1]]
    first, last = span
    assert found.shift == first
    assert found.mask == sum(1 << bit for bit in range(first, last + 1))


@pytest.mark.parametrize(
    ("name", "reserved"),
    [
        ("L1_ENTRY", [*range(9), *range(56, 63)]),
        ("STANDARD_L2_ENTRY", [*range(1, 9), *range(56, 62)]),
        ("REFCOUNT_TABLE_ENTRY", [*range(9)]),
        ("BITMAP_TABLE_ENTRY", [*range(1, 9), *range(56, 64)]),
        ("BITMAP_FLAGS", [*range(3, 32)]),
    ],
)
def test_reserved_bits_are_those_of_the_specification(name: str, reserved: list[int]) -> None:
    assert bits_of(getattr(structs, name)).reserved == sum(1 << bit for bit in reserved)


@pytest.mark.parametrize("cluster_bits", Limit.CLUSTER_BITS)
def test_the_compressed_descriptor_splits_by_cluster_size(cluster_bits: int) -> None:
    split = 62 - (cluster_bits - 8)
    bits = bits_of(compressed_descriptor(cluster_bits))
    assert bits["host_offset"].mask == (1 << split) - 1
    assert (bits["additional_sectors"].shift, bits["additional_sectors"].width) == (split, cluster_bits - 8)


@pytest.mark.parametrize("order", Limit.REFCOUNT_ORDER)
def test_refcounts_fill_their_block_the_first_in_the_lowest_bits(order: int) -> None:
    group = refcount_group(order)
    assert refcount_block(order, 9).sizeof() == 512
    if order < 3:
        shifts = [bits_of(group)[f"refcount_{index}"].shift for index in range(8 >> order)]
        assert shifts == [index << order for index in range(8 >> order)]
    else:
        assert group.sizeof() == 1 << (order - 3)


def test_the_entries_of_all_tables_are_equally_long() -> None:
    entries = [structs.L1_ENTRY, structs.STANDARD_L2_ENTRY, structs.REFCOUNT_TABLE_ENTRY, structs.BITMAP_TABLE_ENTRY]
    assert {entry.sizeof() for entry in entries} == {structs.ENTRY_BYTES}
    assert structs.EXTENDED_L2_ENTRY.sizeof() == 2 * structs.ENTRY_BYTES
    assert Limit.L1_ENTRIES * structs.ENTRY_BYTES == Limit.L1_TABLE_BYTES


def every_schema() -> list[tuple[str, object]]:
    found = [(name, value) for name, value in vars(structs).items() if name.isupper() and hasattr(value, "sizeof")]
    return [*found, ("compressed_descriptor", compressed_descriptor(16)), ("refcount_group", refcount_group(0))]


@pytest.mark.parametrize(("name", "schema"), every_schema())
def test_every_field_says_what_it_is_and_where_the_specification_does(name: str, schema: object) -> None:
    parts = members(schema)
    assert parts
    for member in parts:
        assert isinstance(member.docs, Doc), f"{name}.{member.name}"
        assert member.docs and member.docs.spec, f"{name}.{member.name}"


FORBIDDEN_CALLS = {"pack", "unpack", "unpack_from", "pack_into", "from_bytes", "to_bytes"}
SCHEMA_FILES = {
    "structs.py",
    "constants.py",
    "layout.py",
    "derivation.py",
    "derived.py",
    "locks.py",
    "cipher_kind.py",
    "sector_cipher.py",
    "splitter.py",
    "nbd_messages.py",
    "signatures.py",
    "ninep_messages.py",
    "ninep.py",
    "ninep_files.py",
}
"""Of the format; of `struct flock` of the operating system; ciphers, whose blocks are numbers; protocols; others."""


def offences(source: str) -> list[str]:
    """Return what looks like a mask, a width or a binary format of the format in a module's source."""
    found = []
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 65535:
            text = lines[node.lineno - 1][node.col_offset : node.end_col_offset].lower()
            if text.startswith("0x") or text.startswith("0b"):
                found.append(f"{node.lineno}: {text}")
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: .{node.attr}")
        if isinstance(node, ast.Constant) and node.value in {structs.MAGIC, structs.LUKS_MAGIC}:
            found.append(f"{node.lineno}: a magic value")
    return found


def test_no_mask_or_binary_format_is_spelled_outside_the_schema_files(project_root: Path) -> None:
    package = project_root / "qcow2c"
    for path in sorted(package.rglob("*.py")):
        if path.name not in SCHEMA_FILES and "_kaitai" not in path.parts:
            assert offences(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize("source", ["x = 0x00fffffffffffe00", "struct.unpack('>Q', x)", "m = b'QFI\\xfb'"])
def test_a_spelled_mask_would_be_found(source: str) -> None:
    assert offences(source)


def test_the_picture_shows_each_structure_and_each_field_that_points_somewhere() -> None:
    assert structs.__doc__ is not None
    picture = structs.__doc__.partition("This module owns")[0]
    drawn = set(re.findall(r"\b[A-Z0-9]+_[A-Z0-9_]+\b", picture))
    schemas = {name: schema for name, schema in every_schema() if name.isupper()}
    assert drawn <= schemas.keys()
    parts = {"SUBCLUSTER_BITMAP", "SNAPSHOT_HEADER", "SNAPSHOT_EXTRA_DATA", "BITMAP_DIRECTORY_HEADER"}
    flags = {name for name in schemas if name.endswith(("_FEATURES", "_FLAGS"))}
    assert schemas.keys() - drawn == parts | flags
    pointers = {member.name for _, schema in every_schema() for member in members(schema)}
    pointers = {name for name in pointers if name.endswith("offset")} - {"payload_offset"}
    assert pointers == set(re.findall(r"\b(?:\w+_)?offset\b", picture))
