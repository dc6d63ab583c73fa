"""Allocation: which clusters are free, and in which order they are given out."""

from __future__ import annotations

from array import array
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.errors import LimitExceeded
from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.format.tables import Table
from qcow2c.references.cluster_set import ClusterSet
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import WritableMemory
from qcow2c.structs import Limit
from qcow2c.writer.allocation import Allocator, Forbidden, zero_runs
from qcow2c.writer.cache import MetadataCache
from tests.building import Builder


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


# --- clusters that are given out ---

SIZE = 4096


def opened(builder: Builder, *, forbidden: Forbidden | None = None) -> tuple[Allocator, MetadataCache]:
    store = WritableMemory(bytearray(builder.build()))
    header = Header.load(store)
    l1 = Table(layout.words(store.pread(header.l1_size * 8, header.l1_table_offset)), header.l1_table_offset)
    medium = Medium(store)
    cache = MetadataCache(medium, medium, header, l1, {})
    return Allocator(cache, forbidden=forbidden), cache


def with_holes(*free: int) -> Builder:
    """An image of 40 clusters in use, but for those."""
    builder = Builder(1 << 22)
    builder.allocate((40 - builder.end // SIZE) * SIZE)
    builder.build()
    builder.fields["refcount_table_offset"] = 0
    for cluster in free:
        builder.refcounts[cluster] = 0
    return builder


def test_free_clusters_in_the_file_are_given_out_before_it_grows() -> None:
    allocator, cache = opened(with_holes(20, 21, 30))
    assert [allocator.allocate(1)[:2] for _ in range(3)] == [(20, 1), (21, 1), (30, 1)]
    behind = allocator.allocate(1)
    assert behind.first >= cache.geometry.clusters(cache.medium.store.size()) and behind.fresh
    assert all(cache.refcount(cluster) == 1 for cluster in (20, 21, 30, behind.first))


def test_a_run_with_room_for_all_is_preferred() -> None:
    allocator, _ = opened(with_holes(20, 30, 31, 32))
    assert allocator.allocate(3)[:2] == (30, 3)
    assert allocator.allocate(1)[:2] == (20, 1)


def test_clusters_of_the_file_are_not_fresh_and_none_is_so_twice() -> None:
    allocator, _ = opened(with_holes(20))
    assert not allocator.allocate(1).fresh
    new = allocator.allocate(5)
    assert new.fresh
    allocator.abandon(new)
    again = allocator.allocate(5)
    assert again.first == new.first and not again.fresh


def test_what_is_taken_back_is_free_and_uncounted() -> None:
    allocator, cache = opened(with_holes(20, 21))
    taken = allocator.allocate(2)
    allocator.abandon(taken)
    assert [cache.refcount(cluster) for cluster in (20, 21)] == [0, 0]
    assert allocator.allocate(2)[:2] == (20, 2)


def test_a_released_cluster_is_given_out_only_after_the_commit() -> None:
    allocator, cache = opened(with_holes(20))
    cache.release(10)
    assert allocator.allocate(1).first == 20 and allocator.allocate(1).first > 39
    cache.commit()
    assert allocator.allocate(1).first == 10


def test_forbidden_clusters_are_never_given_out() -> None:
    allocator, _ = opened(with_holes(20, 21, 22), forbidden=ClusterSet([(20, 22), (40, 50)]))
    given = {allocator.allocate(1).first for _ in range(5)}
    assert 22 in given and not given & {20, 21, *range(40, 50)}


def test_refcount_blocks_are_made_where_they_lack_and_count_themselves() -> None:
    builder = Builder(1 << 22, cluster_bits=9, refcount_order=6)
    allocator, cache = opened(builder)
    given = 0
    while given < 64 * 64:  # As many as the refcount table can describe.
        extent = allocator.allocate(50)
        given += extent.clusters
        assert all(cache.refcount(cluster) == 1 for cluster in range(extent.first, extent.first + extent.clusters))
    for index, offset in enumerate(cache.refcount_table.words):
        if offset:
            assert cache.refcount(offset >> 9) == 1, index
    assert cache.refcount(cache.refcount_table.host_offset >> 9) == 1
    assert len(cache.refcount_table.words) > 64, "a longer refcount table was needed"


def test_a_refcount_that_was_too_low_is_set_as_far_as_it_can_be() -> None:
    allocator, cache = opened(with_holes())
    allocator.raise_refcount(10, 500)
    assert cache.refcount(10) == 500
    with pytest.raises(LimitExceeded, match="70000 references, above 65535"):
        allocator.raise_refcount(10, 70_000)


# --- compressed data ---


def test_compressed_data_is_packed_behind_the_data_before_it() -> None:
    allocator, cache = opened(with_holes(20, 21, 22))
    places = [allocator.allocate_bytes(1500) for _ in range(4)]
    assert places == [20 * SIZE + 1500 * number for number in range(4)]
    assert [cache.refcount(cluster) for cluster in (20, 21, 22)] == [3, 2, 0]


def test_packing_ends_where_the_next_cluster_is_not_free() -> None:
    allocator, cache = opened(with_holes(20, 30))
    assert allocator.allocate_bytes(3000) == 20 * SIZE
    assert allocator.allocate_bytes(3000) == 30 * SIZE
    assert [cache.refcount(cluster) for cluster in (20, 30)] == [1, 1]


def test_a_cluster_is_shared_only_as_far_as_its_refcount_can_say() -> None:
    builder = Builder(1 << 20, refcount_order=1)
    allocator, cache = opened(builder)
    places = [allocator.allocate_bytes(100) // SIZE for _ in range(5)]
    assert [places.count(cluster) for cluster in sorted(set(places))] == [3, 2]
    assert all(cache.refcount(cluster) <= 3 for cluster in places)


def test_room_that_was_not_needed_is_free_again() -> None:
    allocator, cache = opened(with_holes(20, 21))
    at = allocator.allocate_bytes(5000)
    allocator.abandon_bytes(at, 5000)
    assert [cache.refcount(cluster) for cluster in (20, 21)] == [0, 0]
    assert allocator.allocate(2)[:2] == (20, 2)


def test_a_full_refcount_table_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limit, "REFCOUNT_TABLE_BYTES", 512)
    allocator, _ = opened(Builder(1 << 20, cluster_bits=9, refcount_order=6))
    with pytest.raises(LimitExceeded, match="refcount table"):
        for _ in range(200):
            allocator.allocate(64)
