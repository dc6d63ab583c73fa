"""Loading headers of both versions, with whatever they hold."""

from __future__ import annotations

import pytest

from qcow2c import structs
from qcow2c.errors import NotQcow2, Span, UnsupportedFeature
from qcow2c.format import derived
from qcow2c.format.header import Header, aligned, field_span
from qcow2c.storage.sources import Memory
from qcow2c.structs import ExtensionType
from tests.building import Builder, extension

BITS = derived.INCOMPATIBLE_FEATURES


def load(builder: Builder) -> Header:
    return Header.load(Memory(builder.build()))


def test_every_field_of_a_version_3_header_is_loaded() -> None:
    builder = Builder(123456, cluster_bits=13, refcount_order=2, compression_type=1)
    builder.fields |= {"incompatible_features": BITS["compression_type"].mask, "compatible_features": 1}
    header = load(builder)
    for name, value in builder.fields.items():
        if name not in {"magic", "padding"}:
            assert getattr(header, name) == value, name
    assert (header.cluster_size, header.geometry.refcount_bits) == (8192, 4)
    assert header.lazy_refcounts and not header.dirty and not header.encrypted


def test_a_version_2_header_ends_after_72_bytes() -> None:
    builder = Builder(cluster_bits=9, version=2)
    builder.extensions.append(extension(ExtensionType.BACKING_FORMAT, b"raw"))
    header = load(builder)
    assert (header.header_length, header.refcount_order, header.compression_type) == (72, 4, 0)
    assert header.incompatible_features == header.autoclear_features == 0
    assert header.backing_format == b"raw"
    assert header.extensions[0].span == Span(72, 16)


@pytest.mark.parametrize(("length", "compression"), [(104, 0), (105, 1), (112, 1), (120, 1)])
def test_a_field_beyond_header_length_is_absent(length: int, compression: int) -> None:
    builder = Builder(header_length=length, compression_type=1)
    header = load(builder)
    assert header.compression_type == compression
    assert header.unknown_fields == bytes(max(0, length - 112))


def test_unknown_fields_and_extensions_are_kept() -> None:
    builder = Builder(header_length=128)
    builder.extensions.append(extension(0x12345678, b"unknown"))
    raw = bytearray(builder.build())
    raw[112:128] = b"sixteen new byte"
    header = Header.load(Memory(bytes(raw)))
    assert header.unknown_fields == b"sixteen new byte"
    assert [(found.type, found.data) for found in header.extensions] == [(0x12345678, b"unknown"), (0, b"")]


def test_feature_names_and_the_other_extensions_are_decoded() -> None:
    builder = Builder()
    table = b"".join(
        structs.FEATURE_NAME.build({"type": kind, "bit": bit, "name": name.ljust(46, b"\0")})
        for kind, bit, name in ((0, 63, b"new"), (2, 5, b"x" * 46), (1, 7, b"end\0more"))
    )
    builder.extensions += [
        extension(ExtensionType.FEATURE_NAME_TABLE, table + b"\0\x07short"),
        extension(ExtensionType.DATA_FILE, b"data.raw"),
        extension(
            ExtensionType.BITMAPS,
            structs.BITMAPS_EXTENSION.build(
                {"nb_bitmaps": 1, "reserved": 0, "bitmap_directory_size": 32, "bitmap_directory_offset": 4096}
            ),
        ),
        extension(
            ExtensionType.ENCRYPTION_HEADER, structs.ENCRYPTION_HEADER_POINTER.build({"offset": 8192, "length": 592})
        ),
    ]
    header = load(builder)
    assert [(found.type, found.bit, found.name) for found in header.feature_names] == [
        (0, 63, b"new"),
        (2, 5, b"x" * 46),
        (1, 7, b"end"),
        (0, 7, b"short"),
    ]
    assert header.data_file == b"data.raw"
    assert header.bitmaps is not None and header.bitmaps.bitmap_directory_offset == 4096
    assert header.encryption_header is not None and header.encryption_header.offset == 8192
    assert not header.bitmaps_consistent


def test_extensions_of_the_wrong_length_are_none() -> None:
    builder = Builder()
    builder.extensions += [extension(ExtensionType.BITMAPS, b"x"), extension(ExtensionType.ENCRYPTION_HEADER, b"x")]
    header = load(builder)
    assert header.bitmaps is None and header.encryption_header is None
    assert header.backing_format is None and header.data_file is None and header.feature_names == ()


def test_an_extension_that_leaves_its_area_is_kept_as_far_as_it_goes() -> None:
    builder = Builder(cluster_bits=9)
    builder.extensions.append(structs.EXTENSION_HEADER.build({"type": 1, "length": 1 << 31}))
    found = load(builder).extensions
    assert len(found) == 1 and found[0].length == 1 << 31 and len(found[0].data) == 512 - 120


def test_the_backing_file_name_ends_with_the_first_cluster() -> None:
    builder = Builder(cluster_bits=9, backing_file_offset=500, backing_file_size=600)
    builder.backing_file = b""
    raw = bytearray(Builder(cluster_bits=9, backing_file_offset=500, backing_file_size=600).build())
    raw[500:512] = b"twelve bytes"
    assert Header.load(Memory(bytes(raw))).backing_file == b"twelve bytes"


def test_cluster_bits_out_of_bounds_stop_before_anything_depends_on_them() -> None:
    header = load(_with_cluster_bits(63))
    assert not header.has_valid_cluster_bits
    assert header.extensions == () and header.backing_file is None and header.unknown_fields == b""


def _with_cluster_bits(bits: int) -> Builder:
    builder = Builder()
    builder.fields |= {"cluster_bits": bits, "header_length": 4096, "refcount_table_offset": 4096}
    return builder


@pytest.mark.parametrize("cut", [0, 3, 4, 50, 71])
def test_a_file_too_short_for_a_header_is_no_image(cut: int) -> None:
    with pytest.raises(NotQcow2) as caught:
        Header.load(Memory(Builder().build()[:cut]))
    assert f"{cut} bytes" in str(caught.value)


def test_a_version_3_header_that_is_cut_is_no_image() -> None:
    with pytest.raises(NotQcow2, match="103 of 104"):
        Header.load(Memory(Builder().build()[:103]))


def test_other_versions_and_magics_are_refused() -> None:
    raw = Builder().build()
    with pytest.raises(NotQcow2, match="not a qcow2"):
        Header.load(Memory(b"QFI\xfa" + raw[4:]))
    with pytest.raises(UnsupportedFeature, match="version 4") as caught:
        Header.load(Memory(raw[:7] + b"\x04" + raw[8:]))
    assert caught.value.where == Span(4, 4)


def test_places_of_fields_are_known_by_name() -> None:
    assert field_span("size") == Span(24, 8)
    assert field_span("refcount_order") == Span(96, 4)
    assert field_span("compression_type") == Span(104, 1)
    with pytest.raises(KeyError):
        field_span("colour")
    assert [aligned(length) for length in (0, 1, 8, 9)] == [0, 8, 8, 16]
