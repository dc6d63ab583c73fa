"""One entry and many entries answer alike; refcounts of every width too."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.format.geometry import Geometry
from qcow2c.format.tables import (
    Kind,
    compressed_extent,
    compressed_extents,
    equal_subclusters,
    invalid_bitmaps,
    kind_of,
    kinds,
    native,
)
from tests.unit.format.drawn import BITMAPS, ENTRIES, GEOMETRIES


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


@given(st.lists(BITMAPS, min_size=1, max_size=9), st.sampled_from([0, 1 << 14, 1 << 63]), st.booleans())
def test_invalid_bitmaps_are_those_of_invalid_entries(bitmaps: list[int], entry: int, external: bool) -> None:
    geometry = Geometry(14, 4, extended_l2=True, external_data=external)
    entries = np.full(len(bitmaps), entry, np.uint64)
    expected = [kind_of(entry, bitmap, 0, geometry) is Kind.INVALID for bitmap in bitmaps]
    assert invalid_bitmaps(entries, np.array(bitmaps, np.uint64), geometry).tolist() == expected


@given(st.binary(max_size=80))
def test_native_words_are_the_stored_ones(data: bytes) -> None:
    whole = len(data) // 8
    assert native(data).tolist() == [int.from_bytes(data[8 * i : 8 * i + 8], "big") for i in range(whole)]
