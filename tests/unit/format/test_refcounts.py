"""Refcounts of every width, and the room of a table and blocks that describe themselves."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qcow2c.errors import LimitExceeded
from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import (
    native_block,
    refcount,
    refcount_room,
    refcounts,
    require_table,
    stored_block,
    stored_ones,
    word_code,
)

WIDE = Geometry(9, 6)
"""64 refcounts in a block, 64 entries in a cluster of the table."""

GEOMETRIES = st.builds(Geometry, st.sampled_from([9, 10, 12, 16, 21]), st.integers(0, 6))


@pytest.mark.parametrize(
    ("clusters", "blocks", "table_clusters"),
    [
        (0, 0, 0),
        (1, 1, 1),
        (62, 1, 1),
        (63, 2, 1),  # The block and the table are the 65th cluster.
        (125, 2, 1),
        (126, 3, 1),
        (64 * 64 - 65, 64, 1),
        (64 * 64 - 64, 65, 2),  # One more would fit, but for its own block, and that for an entry.
    ],
)
def test_a_table_and_blocks_count_themselves(clusters: int, blocks: int, table_clusters: int) -> None:
    assert refcount_room(WIDE, clusters) == (blocks, blocks, table_clusters)
    assert refcount_room(WIDE, clusters).clusters == blocks + table_clusters


def test_blocks_that_are_kept_need_no_room_but_an_entry() -> None:
    assert refcount_room(WIDE, 640, kept=10) == (11, 1, 1)
    assert refcount_room(WIDE, 640, kept=4) == (11, 7, 1)
    assert refcount_room(WIDE, 64 * 64, kept=64) == (65, 1, 2)


def test_refcounts_reach_further_where_they_are_to() -> None:
    assert refcount_room(WIDE, 1, reach=640) == (10, 10, 1)
    assert refcount_room(WIDE, 635, reach=640) == (11, 11, 1)


def test_a_table_has_room_for_entries_to_come() -> None:
    assert refcount_room(WIDE, 1, table_entries=65) == (1, 1, 2)
    assert refcount_room(WIDE, 1, table_entries=64 * 64) == (2, 2, 64)


def test_a_table_has_a_bound() -> None:
    require_table(1 << 20)
    with pytest.raises(LimitExceeded, match="refcount table of more than 8388608 bytes"):
        require_table((1 << 20) + 1)
    with pytest.raises(LimitExceeded, match="refcount table of more than"):
        require_table(65, 64)


@given(
    geometry=GEOMETRIES,
    first=st.integers(0, 1 << 34),
    beyond=st.integers(0, 1 << 20),
    kept=st.floats(0, 1),
    table_entries=st.integers(0, 1 << 20),
)
@example(geometry=WIDE, first=126, beyond=0, kept=0, table_entries=0)
@example(geometry=WIDE, first=64 * 64 - 64, beyond=0, kept=0, table_entries=0)
def test_the_room_describes_itself_and_is_the_least_that_does(
    geometry: Geometry, first: int, beyond: int, kept: float, table_entries: int
) -> None:
    per_block, per_table_cluster = geometry.cluster_size * 8 // geometry.refcount_bits, geometry.cluster_size // 8
    reach = first + beyond
    blocks_kept = int(reach // per_block * kept)

    def is_enough(blocks: int, table_clusters: int) -> bool:
        entries, end = blocks_kept + blocks, max(reach, first + blocks + table_clusters)
        return entries * per_block >= end and table_clusters * per_table_cluster >= max(entries, table_entries)

    room = refcount_room(geometry, first, kept=blocks_kept, reach=reach, table_entries=table_entries)
    assert room.entries == blocks_kept + room.blocks
    assert is_enough(room.blocks, room.table_clusters)
    for blocks in range(max(0, room.blocks - 3), room.blocks + 3):
        for table_clusters in range(max(0, room.table_clusters - 3), room.table_clusters + 3):
            if is_enough(blocks, table_clusters):
                assert blocks >= room.blocks and table_clusters >= room.table_clusters


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


@given(st.integers(0, 6), st.integers(0, 200))
def test_ones_are_stored_as_refcounts_of_1_and_zeros_up_to_the_next_byte(order: int, count: int) -> None:
    stored = stored_ones(count, order)
    found = refcounts(stored, order).tolist()
    assert found[:count] == [1] * count and not any(found[count:])
    assert len(stored) == -(-(count << order) // 8)


@pytest.mark.parametrize(("order", "size"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 4), (6, 8)])
def test_a_word_holds_one_refcount_however_narrow(order: int, size: int) -> None:
    assert array(word_code(order)).itemsize == size
