"""Options of a new image: what the format does not allow is refused in QEMU's words, and the header says the rest."""

from __future__ import annotations

from typing import Any

import pytest

from qcow2c.builder.options import CreateOptions, Places, header_of
from qcow2c.errors import UsageError
from qcow2c.format.header import Header
from qcow2c.storage.sources import Memory
from qcow2c.structs import CompressionType, ExtensionType

MIB = 1 << 20
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"size": -1}, "Invalid image size -1"),
    ({"size": 1 << 63}, "Invalid image size"),
    ({"compat": "2.0"}, "'version' does not accept value '2.0'"),
    ({"compression_type": "lzma"}, "'compression-type' does not accept value 'lzma'"),
    ({"preallocation": "some"}, "'preallocation' does not accept value 'some'"),
    ({"cluster_size": 1000}, "power of two between 512 and 2048k"),
    ({"cluster_size": 256}, "power of two between 512 and 2048k"),
    ({"refcount_bits": 3}, "Refcount width must be a power of two"),
    ({"refcount_bits": 128}, "Refcount width must be a power of two"),
    ({"compat": "0.10", "refcount_bits": 8}, "Different refcount widths than 16 bits require"),
    ({"compat": "0.10", "lazy_refcounts": True}, "Lazy refcounts only supported with compatibility level 1.1"),
    ({"compat": "0.10", "data_file": "x"}, "External data files are only supported"),
    ({"compat": "0.10", "extended_l2": True}, "Extended L2 entries are only supported"),
    ({"compat": "0.10", "compression_type": "zstd"}, "Non-zlib compression type is only supported"),
    ({"extended_l2": True, "cluster_size": 8192}, "cluster sizes of at least 16384 bytes"),
    ({"data_file_raw": True}, "data-file-raw requires data-file"),
    (
        {"data_file": "x", "data_file_raw": True, "backing_file": "b", "backing_fmt": "raw"},
        "cannot be used at the same",
    ),
    ({"backing_file": "b", "backing_fmt": "raw", "preallocation": "full"}, "only be used at the same time if extended"),
    ({"backing_file": ""}, "Expected backing file name, got empty string"),
    ({"backing_file": "b"}, "without backing format"),
    ({"backing_file": "b", "backing_fmt": "f" * 16}, "is too long"),
    ({"data_file": ""}, "Expected data file name, got empty string"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_the_format_does_not_allow_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        CreateOptions(**{"size": MIB} | options).validate()


def header(**options: Any) -> Header:
    found = CreateOptions(**{"size": MIB} | options)
    found.validate()
    places = Places(3 * found.cluster_size, 2, found.cluster_size, 1)
    return Header.load(Memory(header_of(found, places).ljust(2 * found.cluster_size, b"\0")))


def test_the_header_says_what_was_asked_for() -> None:
    found = header(cluster_size=16384, extended_l2=True, lazy_refcounts=True, refcount_bits=64, compression_type="zstd")
    assert (found.version, found.cluster_size, found.refcount_order) == (3, 16384, 6)
    assert found.geometry.extended_l2 and found.lazy_refcounts
    assert found.compression_type == CompressionType.ZSTD
    assert (found.l1_table_offset, found.l1_size, found.refcount_table_offset) == (3 * 16384, 2, 16384)


def test_version_2_has_a_short_header_without_features() -> None:
    found = header(compat="0.10")
    assert (found.version, found.header_length, found.refcount_order) == (2, 72, 4)
    assert found.extension(ExtensionType.FEATURE_NAME_TABLE) is None


def test_files_are_named_by_extensions() -> None:
    found = header(backing_file="b\udcff", backing_fmt="qcow2")
    assert (found.backing_file, found.backing_format) == (b"b\xff", b"qcow2")
    found = header(data_file="outside", data_file_raw=True)
    assert found.external_data and found.extension(ExtensionType.DATA_FILE).data == b"outside"


@pytest.mark.parametrize(("cluster_size", "named"), [(512, False), (4096, False), (8192, True)])
def test_small_clusters_have_no_room_for_names_of_features(cluster_size: int, *, named: bool) -> None:
    assert (header(cluster_size=cluster_size).extension(ExtensionType.FEATURE_NAME_TABLE) is not None) == named


@pytest.mark.parametrize(("size", "rounded"), [(0, 0), (1, 512), (512, 512), (1000, 1024)])
def test_a_disk_has_whole_sectors(size: int, rounded: int) -> None:
    assert CreateOptions(size).disk_size == header(size=size).size == rounded
