"""One entry and many entries answer alike; refcounts of every width too."""

from __future__ import annotations

from array import array
from itertools import groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import native_block, refcount, refcounts, stored_block
from qcow2c.format.table_rules import L1_RULES, REFCOUNT_TABLE_RULES, l2_rules, suspects
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
from qcow2c.references.stored_refcounts import Refcounts
from qcow2c.storage.sources import Memory
from qcow2c.writer.allocation import zero_runs

BITS = st.sampled_from([0, 1 << 63, 1 << 62, 1, 1 << 57, 1 << 5, 3 << 62, (1 << 63) | 1])
OFFSETS = st.sampled_from([0, 1 << 14, 3 << 14, 512, 1 << 55, 5 << 21])
ENTRIES = st.lists(st.builds(lambda bits, offset: bits | offset, BITS, OFFSETS), min_size=1, max_size=12)
HALVES = st.sampled_from([0, 1, 0xFFFFFFFF, 0x80000000, 0b1010, 0x0FF0])
BITMAPS = st.builds(lambda zeros, allocated: zeros << 32 | allocated, HALVES, HALVES)
GEOMETRIES = st.builds(
    Geometry,
    cluster_bits=st.integers(14, 21),
    refcount_order=st.just(4),
    extended_l2=st.booleans(),
    external_data=st.booleans(),
    version=st.sampled_from([2, 3]),
)


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


@given(ENTRIES, st.data(), GEOMETRIES)
def test_rules_of_many_entries_are_the_rules_of_each(words: list[int], data: st.DataObject, geometry: Geometry) -> None:
    bitmaps = data.draw(st.lists(BITMAPS, min_size=len(words), max_size=len(words)))
    many, many_bitmaps = np.array(words, np.uint64), np.array(bitmaps, np.uint64)
    seen = int(np.bitwise_or.reduce(many))
    for rules in (l2_rules(geometry), L1_RULES, REFCOUNT_TABLE_RULES):
        for rule in rules:
            each = [bool(rule.broken(word, bitmap, geometry)) for word, bitmap in zip(words, bitmaps, strict=True)]
            assert np.broadcast_to(rule.broken(many, many_bitmaps, geometry), len(words)).tolist() == each
            if any(each):
                assert rule in suspects(rules, seen, geometry)


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


@given(st.integers(0, 6), st.binary(min_size=64, max_size=64))
def test_refcounts_of_many_are_those_of_each(order: int, block: bytes) -> None:
    many = refcounts(block, order)
    assert len(many) == 64 * 8 >> order
    assert many.tolist() == [refcount(block, index, order) for index in range(len(many))]


@given(st.integers(0, 6), st.binary(min_size=8, max_size=64).map(lambda data: data[: len(data) & ~7]))
def test_refcounts_in_native_order_are_those_of_the_block_and_are_stored_again(order: int, block: bytes) -> None:
    words = native_block(block, order)
    assert words.tolist() == refcounts(block, order).tolist()
    assert stored_block(words, order) == block


@given(st.data(), st.sampled_from("BHILQ"))
def test_runs_of_zeros_are_those_of_a_look_at_each_word(data: st.DataObject, code: str) -> None:
    bits = 8 * array(code).itemsize
    words = data.draw(st.lists(st.sampled_from([0, 1, 1 << bits - 8, (1 << bits) - 1]), max_size=24))
    expected, at = [], 0
    for is_zero, group in groupby(words, key=lambda word: word == 0):
        end = at + len(list(group))
        expected += [(at, end)] if is_zero else []
        at = end
    assert list(zero_runs(array(code, words))) == expected


@given(st.integers(0, 6), st.binary(min_size=1024, max_size=1024), st.data())
def test_scattered_refcounts_are_those_of_the_window(order: int, blocks: bytes, data: st.DataObject) -> None:
    geometry = Geometry(9, order)
    table = np.array(data.draw(st.lists(st.sampled_from([0, 512, 1024, 1 << 40, 700]), max_size=5)), np.uint64)
    found = Refcounts(Memory(bytes(512) + blocks), geometry, table)
    count = max(1, found.covered)
    window = found.window(0, count)
    clusters = data.draw(st.lists(st.integers(0, count + 9), max_size=20))
    expected = [int(window[cluster]) if cluster < count else 0 for cluster in clusters]
    assert found.at(np.array(clusters, np.uint64)).tolist() == expected


@given(st.lists(st.sampled_from([0, 4096, 512, 4096 + 512]), min_size=1, max_size=6))
def test_misaligned_refcount_blocks_are_unreadable(table: list[int]) -> None:
    geometry = Geometry(12, 4)
    found = Refcounts(Memory(bytes(8192)), geometry, np.array(table, np.uint64))
    per_block = 1 << geometry.refcount_block_bits
    expected = [bool(offset % 4096) for offset in table for _ in range(per_block)]
    assert found.unreadable(0, found.covered).tolist() == expected
