"""A sweep over L2 tables sums up what a loop over their entries sums up, and counts references where they belong."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.format.geometry import Geometry
from qcow2c.format.table_rules import l2_rules
from qcow2c.format.tables import L2_COMPRESSED, L2_COPIED, L2_OFFSET, L2_ZERO, compressed_entry
from qcow2c.references.sweep import Sweep, Tally, Window
from qcow2c.references.walk import L2Batch

SIZE = 512
GEOMETRY = Geometry(9, 4)
MANY = 64
"""Entries of a table."""


def batch_of(*tables: list[int], active: tuple[int, ...] = (), snapshot: tuple[int, ...] = ()) -> L2Batch:
    rows = np.zeros((len(tables), MANY), dtype=np.uint64)
    for number, words in enumerate(tables):
        rows[number, : len(words)] = words
    ones, zeros = (1,) * len(tables), (0,) * len(tables)
    places = np.arange(1, len(tables) + 1, dtype=np.uint64) * np.uint64(SIZE)
    return L2Batch(places, np.array(active or ones, "u8"), np.array(snapshot or zeros, "u8"), rows, None)


def window(first: int, end: int, refcounts: int = 1) -> Window:
    return Window(first, end, np.full(end - first, refcounts, np.uint16), np.zeros(end - first, np.uint32))


def data(cluster: int, *, copied: bool = True) -> int:
    return cluster * SIZE | (L2_COPIED if copied else 0)


entries = st.one_of(
    st.just(0),
    st.integers(1, 40).map(data),
    st.integers(1, 40).map(lambda cluster: data(cluster, copied=False)),
    st.integers(1, 40).map(lambda cluster: data(cluster) | L2_ZERO),
    st.just(L2_ZERO),
    st.integers(600, 9000).map(lambda at: compressed_entry(at, 300, GEOMETRY)),
)
runs = st.tuples(st.integers(1, 20), st.integers(1, MANY)).map(
    lambda run: [data(run[0] + number) for number in range(run[1])]
)
tables = st.lists(entries, max_size=MANY) | runs


def plain(words: list[int]) -> list[int]:
    """Return the host clusters of entries that have one."""
    return [(word & L2_OFFSET) // SIZE for word in words if word & L2_OFFSET and not word & L2_COMPRESSED]


@given(st.lists(tables, min_size=1, max_size=3), st.data())
def test_allocation_and_compression_are_summed_up_as_often_as_a_table_is_named(
    found: list[list[int]], draws: st.DataObject
) -> None:
    active = tuple(draws.draw(st.integers(0, 3)) for _ in found)
    tally = Tally()
    Sweep(batch_of(*found, active=active), GEOMETRY).add_to(tally, l2_rules(GEOMETRY))
    packed = [sum(1 for word in words if word & L2_COMPRESSED) for words in found]
    assert tally.compressed == sum(times * count for times, count in zip(active, packed, strict=True))
    assert tally.allocated == tally.compressed + sum(
        times * len(plain(words)) for times, words in zip(active, found, strict=True)
    )


@given(st.lists(tables, min_size=1, max_size=3), st.integers(0, 30), st.integers(1, 30))
def test_references_are_counted_one_by_one_as_far_as_the_window_reaches(
    found: list[list[int]], first: int, count: int
) -> None:
    seen = window(first, first + count)
    seen.count_sweep(Sweep(batch_of(*found), GEOMETRY))
    expected = Counter(cluster for words in found for cluster in plain(words))
    assert seen.references.tolist() == [expected[cluster] for cluster in range(first, first + count)]


@given(st.lists(tables, min_size=1, max_size=2), st.integers(1, 2))
def test_copied_bits_contradict_where_they_say_other_than_refcount_1(found: list[list[int]], refcount: int) -> None:
    wrong = sum(
        bool(word & L2_COPIED) != (refcount == 1)
        for words in found
        for word in words
        if word & L2_OFFSET and not word & L2_COMPRESSED
    )
    assert Sweep(batch_of(*found), GEOMETRY).copied_mismatches(window(0, 100, refcount)) == wrong


def test_clusters_out_of_their_order_are_fragmented() -> None:
    words = [data(5), data(6), data(9), 0, data(10), compressed_entry(700, 100, GEOMETRY)]
    tally = Tally()
    Sweep(batch_of(words), GEOMETRY).add_to(tally, l2_rules(GEOMETRY))
    assert (tally.allocated, tally.fragmented, tally.compressed) == (5, 2, 1)


def test_broken_rules_are_counted_in_all_states() -> None:
    tally = Tally()
    sweep = Sweep(batch_of([1 << 57, data(4)], active=(2,), snapshot=(3,)), GEOMETRY)
    sweep.add_to(tally, l2_rules(GEOMETRY))
    assert tally.broken == {"l2.reserved": 5}


def test_entries_of_a_data_file_have_a_cluster_at_offset_0_too() -> None:
    external = Geometry(9, 4, external_data=True)
    sweep = Sweep(batch_of([L2_COPIED, L2_COPIED | SIZE, L2_COPIED | L2_ZERO, 0]), external)
    assert sweep.count == 2 and sweep.clusters().tolist() == [0, 1]


def test_a_sweep_reaches_from_the_first_to_the_last_cluster_of_each_table() -> None:
    packed = compressed_entry(20 * SIZE + 100, 2 * SIZE, GEOMETRY)
    reach = Sweep(batch_of([data(9), data(4)], [data(30), packed]), GEOMETRY).reach().tolist()
    assert reach[0][0] == 4 and reach[0][1] >= 9
    assert reach[1][0] == 20 and reach[1][1] >= 30


@pytest.mark.parametrize(
    ("first", "end", "expected"), [(0, 3, [0, 0]), (4, 6, [5, 5]), (5, 99, [0, 5]), (9, 4, [0, 0])]
)
def test_a_run_is_counted_within_the_window(first: int, end: int, expected: list[int]) -> None:
    seen = window(4, 6)
    seen.count_run(first, end, 5)
    assert seen.references.tolist() == expected


def test_tallies_add_up() -> None:
    one = Tally(1, 2, 3, {"a": 1}, 4, 5)
    one.add(Tally(10, 20, 30, {"a": 5, "b": 6}, 40, 50))
    assert one == Tally(11, 22, 33, {"a": 6, "b": 6}, 44, 55)
