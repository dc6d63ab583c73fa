"""The reader on images of every kind, built from the schemas."""

from __future__ import annotations

import random

import pytest

import qcow2c
from qcow2c.errors import CorruptData, CorruptMetadata, MissingKey, Span
from qcow2c.format import derived
from qcow2c.format.header import Header
from qcow2c.format.tables import Kind
from qcow2c.layers.direct import IN_NO_FILE, NOT_SIMPLE
from qcow2c.layers.reader import Reader
from qcow2c.layers.state import load_state
from qcow2c.storage.sources import Memory
from tests.building import L1_COPIED, L2_COMPRESSED, L2_COPIED, L2_ZERO, Builder, deflate

EXTENDED_L2 = derived.INCOMPATIBLE_FEATURES["extended_l2"].mask
DATA_FILE = derived.INCOMPATIBLE_FEATURES["data_file"].mask
COMPRESSION = derived.INCOMPATIBLE_FEATURES["compression_type"].mask


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_each_kind_of_cluster_reads_as_what_it_is() -> None:
    builder = Builder(cluster_bits=12)
    plain, packed = pattern(1, 4096), b"squeeze" * 585 + b"z"
    builder.data(0, plain)
    builder.entry(1, L2_ZERO)
    preallocated = builder.put(pattern(2, 4096))
    builder.entry(2, preallocated | L2_COPIED | L2_ZERO)
    builder.compressed(3, deflate(packed), inside=1001)
    with qcow2c.open(builder.build()) as image:
        assert image.pread(5 * 4096, 0) == plain + bytes(8192) + packed + bytes(4096)
        kinds = [run.kind for run in image.layer.runs(0, 5 * 4096)]
        assert kinds == [Kind.DATA, Kind.ZERO, Kind.ZERO_ALLOCATED, Kind.COMPRESSED, Kind.UNALLOCATED]


@pytest.mark.parametrize("cluster_bits", [9, 12, 16, 21])
def test_every_cluster_size_reads(cluster_bits: int) -> None:
    size = 1 << cluster_bits
    builder = Builder(size * 70, cluster_bits=cluster_bits)
    content = {0: pattern(1, size), 65: pattern(2, size)}
    for cluster, data in content.items():
        builder.data(cluster, data)
    with qcow2c.open(builder.build()) as image:
        for cluster in (0, 1, 64, 65, 69):
            assert image.pread(size, cluster * size) == content.get(cluster, bytes(size))


def test_contiguous_clusters_are_one_run_and_a_gap_ends_it() -> None:
    builder = Builder(cluster_bits=9)
    builder.table(0)
    for cluster in (0, 1, 2):
        builder.data(cluster, b"x" * 512)
    builder.allocate(512)
    builder.data(3, b"y" * 512)
    with qcow2c.open(builder.build()) as image:
        runs = list(image.layer.runs(100, 1900))
        assert [(run.guest_offset, run.length) for run in runs] == [(100, 1436), (1536, 464)]
        assert runs[1].host_offset - runs[0].host_offset == 4 * 512 - 100


def test_small_reads_and_runs_find_the_same_place() -> None:
    builder = Builder(cluster_bits=9)
    for cluster in range(0, 40, 3):
        builder.data(cluster, pattern(cluster, 512))
    with qcow2c.open(builder.build()) as image:
        whole = image.pread(image.size(), 0)
        for offset in range(0, 40 * 512, 100):
            located = image.layer.locate(offset, 50)
            run = image.layer.run_at(offset, 50)
            fits = run.kind is Kind.DATA and offset % 512 + 50 <= 512
            empty = run.kind is Kind.UNALLOCATED and offset % 512 + 50 <= 512
            assert located == (run.host_offset if fits else IN_NO_FILE if empty else NOT_SIMPLE)
            assert image.pread(50, offset) == whole[offset : offset + 50]


@pytest.mark.parametrize("backing_length", [0, 5000, 1 << 20])
def test_extended_l2_reads_each_subcluster_by_its_state(backing_length: int) -> None:
    size, sub = 1 << 14, 1 << 9
    builder = Builder(4 * size, cluster_bits=14, incompatible=EXTENDED_L2)
    data = pattern(1, size)
    allocated, zeros = 0b1011 | 1 << 31, 0b0100
    builder.data(0, data, bitmap=zeros << 32 | allocated)
    builder.entry(1, 0, bitmap=0b11 << 32)
    builder.compressed(2, deflate(bytes(size)))
    below = pattern(2, backing_length)
    with qcow2c.open(builder.build(), backing=below) as image:
        padded = below.ljust(4 * size, b"\0")
        expected = bytearray(padded[: 4 * size])
        for index in range(32):
            place = slice(index * sub, (index + 1) * sub)
            if allocated >> index & 1:
                expected[place] = data[place]
            elif zeros >> index & 1:
                expected[place] = bytes(sub)
        expected[size : size + 2 * sub] = bytes(2 * sub)
        expected[2 * size : 3 * size] = bytes(size)
        assert image.pread(4 * size, 0) == bytes(expected)
        assert [run.kind for run in image.layer.runs(0, 5 * sub)] == [
            Kind.DATA,
            Kind.ZERO_ALLOCATED,
            Kind.DATA,
            Kind.UNALLOCATED_IN_CLUSTER,
        ]


def test_the_cache_of_tables_is_bounded() -> None:
    builder = Builder(1 << 20, cluster_bits=9)
    for cluster in range(0, 2048, 64):
        builder.data(cluster, pattern(cluster, 512))
    with qcow2c.open(builder.build()) as image:
        image.layer.l2_tables_limit = 3
        for cluster in range(0, 2048, 64):
            assert image.pread(512, cluster * 512) == pattern(cluster, 512)
        assert len(image.layer.l2_tables) == 3


def test_the_last_cluster_of_a_file_may_be_cut_short() -> None:
    builder = Builder(cluster_bits=12, refcount_table_offset=1)
    data = pattern(1, 4096)
    builder.table(0)
    builder.data(0, data)
    builder.fields["refcount_table_offset"] = 4096 * 900
    whole = builder.build()
    with qcow2c.open(whole[:-1000]) as image:
        assert image.pread(4096, 0) == data[:-1000] + bytes(1000)


def test_a_cluster_past_the_end_of_the_file_is_an_error_with_both_places() -> None:
    builder = Builder(cluster_bits=12)
    builder.entry(7, 4096 * 1000 | L2_COPIED)
    with qcow2c.open(builder.build()) as image, pytest.raises(CorruptData) as caught:
        image.pread(10, 7 * 4096 + 5)
    assert caught.value.where == Span(4096 * 1000 + 5, 10)
    assert caught.value.guest == Span(7 * 4096 + 5, 10)
    assert "past the end of the file" in str(caught.value)


BROKEN_ENTRIES = {
    "reserved bits": 1 << 57 | 4096,
    "low reserved bit": 4096 | 1 << 3,
    "misaligned": 4096 + 512,
    "a zero cluster past the end": 4096 * 1000 | L2_ZERO,
    "refcounts in place of a table": 0x0001000100010001,
    "copied compressed": L2_COPIED | L2_COMPRESSED | 4096,
    "compressed beyond any offset": L2_COMPRESSED | 1 << 57,
}


@pytest.mark.parametrize("entry", BROKEN_ENTRIES.values(), ids=BROKEN_ENTRIES)
def test_a_broken_l2_entry_is_an_error_with_both_places(entry: int) -> None:
    builder = Builder(cluster_bits=12)
    builder.data(0, b"good")
    builder.entry(9, entry)
    with qcow2c.open(builder.build()) as image:
        assert image.pread(4, 0) == b"good"
        with pytest.raises(CorruptMetadata) as caught:
            image.pread(1, 9 * 4096)
        table = builder.l1[0] & ~L1_COPIED
        assert caught.value.where == Span(table + 72, 8)
        assert caught.value.guest == Span(9 * 4096, 4096)
        assert f"{entry:#018x}" in str(caught.value)


def test_zeros_at_an_impossible_place_are_salvaged_and_not_mapped() -> None:
    builder = Builder(cluster_bits=12)
    builder.entry(9, 0x0001000100010001)
    with qcow2c.open(builder.build(), on_error="zero") as image:
        assert image.pread(2 * 4096, 8 * 4096) == bytes(2 * 4096)
        assert [lost.guest for lost in image.salvaged] == [Span(9 * 4096, 4096)]
    with pytest.raises(CorruptMetadata, match="0x0001000100010001"):
        list(qcow2c.map(builder.build()))


def test_a_subcluster_entry_past_the_end_is_an_error_for_its_zeros_too() -> None:
    builder = Builder(cluster_bits=14, incompatible=EXTENDED_L2)
    builder.entry(0, 1 << 30 | L2_COPIED, 0xFFFFFFFF << 32)
    with qcow2c.open(builder.build()) as image, pytest.raises(CorruptMetadata, match="past the end of the file"):
        image.pread(1, 0)


def test_the_zero_bit_is_an_error_in_version_2() -> None:
    builder = Builder(cluster_bits=12, version=2)
    builder.entry(0, L2_ZERO)
    with qcow2c.open(builder.build()) as image, pytest.raises(CorruptMetadata, match="zero bit"):
        image.pread(1, 0)


@pytest.mark.parametrize(
    ("entry", "bitmap"),
    [(1 << 14, 1 << 32 | 1), (0, 1), (L2_COMPRESSED | 1 << 14, 1), (1 << 14 | L2_ZERO, 1)],
)
def test_contradictions_of_an_extended_entry_are_errors(entry: int, bitmap: int) -> None:
    builder = Builder(cluster_bits=14, incompatible=EXTENDED_L2)
    builder.entry(0, entry, bitmap)
    with qcow2c.open(builder.build()) as image, pytest.raises(CorruptMetadata) as caught:
        image.pread(1, 0)
    assert caught.value.where is not None and caught.value.where.length == 16


BROKEN_L1 = {
    "reserved": (1 << 60 | 8192, "reserved bits"),
    "misaligned": (8192 + 512, "not cluster-aligned"),
    "past the end": (4096 * 5000, "past the end of the file"),
    "on the L1 table": (4096, "overlaps the active L1 table"),
}


@pytest.mark.parametrize(("entry", "complaint"), BROKEN_L1.values(), ids=BROKEN_L1)
def test_a_broken_l1_entry_is_an_error_with_both_places(entry: int, complaint: str) -> None:
    builder = Builder(cluster_bits=12)
    builder.l1[0] = entry
    with qcow2c.open(builder.build()) as image, pytest.raises(CorruptMetadata, match=complaint) as caught:
        image.pread(1, 0)
    assert caught.value.where == Span(4096, 8)
    assert caught.value.guest == Span(0, 1 << 21)


def test_an_l1_entry_without_an_offset_maps_nothing() -> None:
    builder = Builder(cluster_bits=12)
    builder.l1[0] = L1_COPIED
    with qcow2c.open(builder.build()) as image:
        assert image.pread(4096, 0) == bytes(4096)


def test_an_l1_table_cut_by_the_end_of_the_file_is_an_error_where_it_is_missing() -> None:
    builder = Builder(4 << 20, cluster_bits=9)
    builder.fields["l1_table_offset"] = builder.end
    builder.end += 8
    builder.l1[0] = 0
    builder.fields["refcount_table_offset"] = 512
    image_bytes = builder.build()[: builder.fields["l1_table_offset"] + 8]
    with qcow2c.open(image_bytes, on_error="raise") as image:
        assert image.pread(10, 0) == bytes(10)
        with pytest.raises(CorruptMetadata, match="L1 entry 1 is past the end"):
            image.pread(10, 1 << 15)


def test_encrypted_data_says_that_the_key_is_missing() -> None:
    builder = Builder(cluster_bits=12, crypt_method=1)
    builder.data(0, b"secret")
    with qcow2c.open(builder.build()) as image:
        assert image.header.encrypted
        assert image.pread(0, 0) == b""
        with pytest.raises(MissingKey, match="no key"):
            image.pread(1, 0)


def test_an_external_data_file_is_read_at_the_guest_offset() -> None:
    builder = Builder(cluster_bits=12, incompatible=DATA_FILE)
    builder.entry(0, L2_COPIED)
    builder.entry(2, 2 * 4096 | L2_COPIED)
    outside = pattern(3, 3 * 4096)
    with qcow2c.open(builder.build(), data_file=outside) as image:
        assert image.pread(3 * 4096, 0) == outside[:4096] + bytes(4096) + outside[8192:]


def test_an_external_cluster_elsewhere_than_the_guest_offset_is_an_error() -> None:
    builder = Builder(cluster_bits=12, incompatible=DATA_FILE)
    builder.entry(1, 2 * 4096 | L2_COPIED)
    with qcow2c.open(builder.build(), data_file=bytes(9000)) as image, pytest.raises(CorruptMetadata, match="guest's"):
        image.pread(1, 4096)


def test_a_store_that_ends_within_an_l2_table_has_zeros_behind_it() -> None:
    builder = Builder(cluster_bits=12)
    builder.fields["refcount_table_offset"] = 4096
    builder.table(0)
    builder.entry(0, L2_ZERO)
    header = Header.load(Memory(builder.build()))
    store = Memory(builder.build()[:-4000])
    reader = Reader(store, load_state(store, header, 4096, 1, 1 << 20))
    assert reader.run_at(0, 4096).kind is Kind.ZERO
    assert reader.run_at(4096 * 100, 4096).kind is Kind.UNALLOCATED
