"""Refcounts that will be: those that are stored, and the change of the references, cluster by cluster."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.atomic.refcounts import RefcountChange, ReferenceDelta, block_of
from qcow2c.errors import CorruptMetadata, LimitExceeded
from qcow2c.format.header import Header
from qcow2c.format.refcounts import refcounts
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.walk import ACTIVE, State, Walk
from qcow2c.storage.sources import Memory
from tests.building import Builder, deflate

SIZE = 4096


def walked(builder: Builder) -> Walk:
    store = Memory(builder.build())
    return Walk(store, Header.load(store))


def change_of(builder: Builder) -> tuple[Walk, ReferenceDelta, RefcountChange]:
    walk = walked(builder)
    delta = ReferenceDelta(walk)
    return walk, delta, RefcountChange(walk, StoredRefcounts(walk), delta, walk.header.refcount_order)


def filled(**options: int) -> Builder:
    builder = Builder(1 << 22, **options)
    for guest in (0, 1, 5):
        builder.data(guest, b"x")
    builder.compressed(7, deflate(b"y" * SIZE), inside=SIZE - 5)
    return builder


def active(walk: Walk) -> np.ndarray:
    header = walk.header
    return walk.l1_table(State(ACTIVE, header.l1_table_offset, header.l1_size, header.size))


def test_without_a_change_all_stays_as_it_is_stored() -> None:
    builder = filled()
    _, _, change = change_of(builder)
    found = change.counts(0, 30).tolist()
    assert found == [builder.refcounts[cluster] for cluster in range(30)]
    assert not change.sharing_changes() and change.changed_blocks(anew=False) == []


def test_everything_that_a_table_reaches_counts_once_more() -> None:
    builder = filled()
    walk, delta, change = change_of(builder)
    delta.add_tables(active(walk), 1)
    expected = Counter({builder.l1[0] // SIZE % (1 << 40): 1})
    for references in walk.data(walk.batch(walk.l2_tables(), 0, 1)):
        for at, length in zip(references.offsets.tolist(), references.lengths.tolist(), strict=True):
            expected.update(range(at // SIZE, (at + length - 1) // SIZE + 1))
    grown = {cluster: int(count) for cluster, count in enumerate(delta.counts) if count}
    assert grown == dict(expected) and len(grown) >= 6
    assert change.sharing_changes(), "what was one's own is shared now"


def test_what_is_added_and_taken_away_again_is_no_change() -> None:
    walk, delta, change = change_of(filled())
    delta.add_tables(active(walk), 2)
    delta.add_tables(active(walk), -2)
    assert not delta.counts.any() and change.changed_blocks(anew=False) == []


def test_what_nothing_refers_to_any_more_is_free() -> None:
    builder = filled()
    walk, delta, change = change_of(builder)
    before = StoredRefcounts(walk).counts(0, 64)
    delta.add_tables(active(walk), -1)
    freed = {
        cluster for edges in change.freed(64) for start, end in edges.reshape(-1, 2) for cluster in range(start, end)
    }
    after = change.counts(0, 64)
    assert freed == {cluster for cluster in range(64) if before[cluster] and not after[cluster]} and len(freed) >= 6
    assert change.end(64) == max(np.flatnonzero(after)) + 1


def test_clusters_behind_the_file_can_be_counted_as_soon_as_they_are_placed() -> None:
    walk, delta, change = change_of(filled())
    far = 10 * walk.geometry.clusters(walk.size) + (1 << 17)
    delta.add_run(far, 3, 1)
    assert change.counts(far - 1, 5).tolist() == [0, 1, 1, 1, 0]
    assert change.changed_blocks(anew=False) == [far >> walk.geometry.refcount_block_bits]


def test_references_to_what_no_file_holds_are_refused() -> None:
    _, delta, _ = change_of(filled())
    with pytest.raises(CorruptMetadata, match="past the end of the file"):
        delta.add_run(1 << 40, 1, -1)


def test_more_references_than_a_refcount_can_say_are_refused() -> None:
    _, delta, change = change_of(filled(refcount_order=1))
    delta.add_run(0, 1, 3)
    with pytest.raises(LimitExceeded, match="cluster 0 would have more references than a refcount can say, 3"):
        change.counts(0, 1)


def test_fewer_references_than_none_are_refused() -> None:
    _, delta, change = change_of(filled())
    delta.add_run(40, 1, -1)
    with pytest.raises(CorruptMetadata, match="cluster 40 has fewer references"):
        change.counts(40, 1)


def test_refcounts_of_scattered_clusters_come_in_their_order() -> None:
    _, delta, change = change_of(filled())
    delta.add_run(3000, 2, 5)
    clusters = np.array([3001, 0, 1 << 30, 3000, 0], dtype=np.int64)
    assert change.at(clusters).tolist() == [5, 1, 0, 5, 1]


@pytest.mark.parametrize("order", range(7))
def test_blocks_of_another_width_describe_other_clusters(order: int) -> None:
    walk, delta, change = change_of(filled())
    change.order = order
    assert 1 << change.block_bits == SIZE * 8 >> order
    delta.add_run(5000, 1, 1)
    per_block = 1 << change.block_bits
    assert change.changed_blocks(anew=True) == sorted(
        {0, walk.geometry.clusters(walk.size) // per_block, 5000 // per_block}
    )


@given(st.integers(0, 6), st.data())
def test_a_block_holds_its_counts(order: int, data: st.DataObject) -> None:
    most = (1 << (1 << order)) - 1
    counts = data.draw(st.lists(st.integers(0, most), min_size=64, max_size=64))
    assert refcounts(block_of(np.array(counts, dtype=np.uint64), order), order).tolist() == counts
