"""One entry and many entries answer alike; refcounts of every width too."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.errors import LimitExceeded
from qcow2c.format.geometry import Geometry
from qcow2c.format.tables import (
    L2_COMPRESSED,
    L2_COPIED,
    Kind,
    Table,
    compressed_entry,
    compressed_extent,
    compressed_extents,
    entries_alike,
    equal_subclusters,
    invalid_bitmaps,
    kind_of,
    kinds,
    native,
    require_nameable,
)
from tests.unit.format.drawn import BITMAPS, ENTRIES, GEOMETRIES

LAST_SECTOR = (1 << 56) - 512


@pytest.mark.parametrize(
    ("geometry", "end"),
    [
        (Geometry(9, 4), LAST_SECTOR),
        (Geometry(16, 4), (1 << 54) - 1),  # The more bits a cluster has, the fewer are left for its offset.
        (Geometry(21, 4), (1 << 49) - 1),
    ],
)
def test_compressed_data_ends_where_a_descriptor_can_name_it(geometry: Geometry, end: int) -> None:
    require_nameable(end - 700, 700, geometry)
    found = compressed_extent(compressed_entry(end - 700, 700, geometry), geometry)
    assert found.host_offset == end - 700
    with pytest.raises(LimitExceeded, match=f"no entry can name compressed data at {end - 699:#x}"):
        require_nameable(end - 699, 700, geometry)


@given(ENTRIES, st.data(), GEOMETRIES)
def test_kinds_of_many_entries_are_the_kinds_of_each(words: list[int], data: st.DataObject, geometry: Geometry) -> None:
    bitmaps = data.draw(st.lists(BITMAPS, min_size=len(words), max_size=len(words)))
    if not geometry.extended_l2:
        bitmaps = [0] * len(words)
    many = kinds(
        np.array(words, np.uint64), np.array(bitmaps, np.uint64) if geometry.extended_l2 else None, geometry
    ).reshape(len(words), -1)
    expected = [
        [kind_of(word, bitmap, index, geometry) for index in range(geometry.subclusters)]
        for word, bitmap in zip(words, bitmaps, strict=True)
    ]
    assert many.tolist() == expected


@given(BITMAPS, st.sampled_from([0, 1 << 14]), st.integers(0, 31), st.integers(14, 21))
def test_equal_subclusters_ends_where_the_kind_does(bitmap: int, entry: int, first: int, cluster_bits: int) -> None:
    geometry = Geometry(cluster_bits, 4, extended_l2=True)
    kind = kind_of(entry, bitmap, first, geometry)
    if kind is Kind.INVALID:
        return
    count = equal_subclusters(bitmap, first, kind)
    assert all(kind_of(entry, bitmap, index, geometry) is kind for index in range(first, first + count))
    end = first + count
    assert end == 32 or kind_of(entry, bitmap, end, geometry) is not kind


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(9, 21))
def test_compressed_extents_of_many_are_those_of_each(words: list[int], cluster_bits: int) -> None:
    geometry = Geometry(cluster_bits, 4)
    offsets, lengths = compressed_extents(np.array(words, np.uint64), geometry)
    expected = [compressed_extent(word, geometry) for word in words]
    assert offsets.tolist() == [extent.host_offset for extent in expected]
    assert lengths.tolist() == [extent.length for extent in expected]


@given(
    bitmaps=st.lists(BITMAPS, min_size=1, max_size=9),
    entry=st.sampled_from([0, 1 << 14, 1 << 63]),
    external=st.booleans(),
)
def test_invalid_bitmaps_are_those_of_invalid_entries(bitmaps: list[int], entry: int, *, external: bool) -> None:
    geometry = Geometry(14, 4, extended_l2=True, external_data=external)
    entries = np.full(len(bitmaps), entry, np.uint64)
    expected = [kind_of(entry, bitmap, 0, geometry) is Kind.INVALID for bitmap in bitmaps]
    assert invalid_bitmaps(entries, np.array(bitmaps, np.uint64), geometry).tolist() == expected


@given(st.binary(max_size=80))
def test_native_words_are_the_stored_ones(data: bytes) -> None:
    whole = len(data) // 8
    assert native(data).tolist() == [int.from_bytes(data[8 * i : 8 * i + 8], "big") for i in range(whole)]


# --- tables in memory ---


def test_a_table_that_the_file_has_is_dirty_where_it_changes() -> None:
    table = Table(array("Q", bytes(8 * 512)), 4096)
    assert list(table.dirty_runs()) == []
    table.set(3, 1)
    table.set(500, 1)
    table.set_many(60, array("Q", [7] * 10))
    assert list(table.dirty_runs()) == [(0, 128), (448, 512)]
    assert table.words[59:71].tolist() == [0, *[7] * 10, 0]


def test_a_new_table_is_dirty_as_a_whole_and_no_more() -> None:
    table = Table(array("Q", bytes(8 * 100)), 4096, reachable=False)
    assert list(table.dirty_runs()) == [(0, 100)]
    assert list(Table(array("Q"), 4096, reachable=False).dirty_runs()) == []


@given(st.lists(st.integers(0, 299), max_size=9), st.integers(0, 8))
def test_dirty_runs_cover_what_changed_in_whole_sectors(changed: list[int], sector_bits: int) -> None:
    table = Table(array("B", bytes(300)), 0, sector_bits=sector_bits)
    for index in changed:
        table.set(index, 1)
    covered = {index for first, end in table.dirty_runs() for index in range(first, end)}
    sectors = {index >> sector_bits for index in changed}
    assert covered == {index for index in range(300) if index >> sector_bits in sectors}


# --- descriptors ---


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 16), st.integers(9, 21))
def test_a_descriptor_of_compressed_data_reaches_to_its_last_sector_and_no_further(
    host_offset: int, length: int, cluster_bits: int
) -> None:
    geometry = Geometry(cluster_bits, 4)
    length = min(length, geometry.cluster_size)
    entry = compressed_entry(host_offset, length, geometry)
    assert kind_of(entry, 0, 0, geometry) is Kind.COMPRESSED
    found = compressed_extent(entry, geometry)
    assert found.host_offset == host_offset
    assert length <= found.length < length + 512


@given(st.data(), st.integers(0, 3), st.integers(0, 40))
def test_entries_alike_are_so_one_by_one(data: st.DataObject, index: int, most: int) -> None:
    size = 4096
    starts = st.sampled_from([0, L2_COPIED | 4096, L2_COPIED | 40 * 4096, 4096])
    words = array("Q")
    for start, count in data.draw(st.lists(st.tuples(starts, st.integers(1, 30)), min_size=1, max_size=4)):
        words.extend(start + number * size if start else 0 for number in range(count))
    index = min(index, len(words) - 1)
    count = entries_alike(words, index, most, size, L2_COMPRESSED | 1)
    assert 0 <= count <= most
    step = size if words[index] else 0
    expected = [words[index] + number * step for number in range(count + 1)]
    assert words[index : index + count + 1].tolist() == expected


def test_a_special_entry_is_like_no_other() -> None:
    assert entries_alike(array("Q", [L2_COMPRESSED | 5] * 40), 0, 30, 4096, L2_COMPRESSED) == 0
    assert entries_alike(array("Q", [L2_COPIED] * 40), 0, 30, 4096, L2_COMPRESSED) == 0
    assert entries_alike(array("Q", bytes(8 * 40)), 0, 30, 4096, L2_COMPRESSED) > 20
