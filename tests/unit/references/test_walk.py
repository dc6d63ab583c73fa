"""The walk: every owner of clusters is named, each table is read once, and what is not in the file is zeros."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from qcow2c.errors import LimitExceeded
from qcow2c.format import derived
from qcow2c.format.header import Header
from qcow2c.references.walk import ACTIVE, BATCH_BYTES, Owner, Walk, distinct_tables
from qcow2c.storage.sources import LocalFile, Memory
from tests.building import L1_COPIED, L2_COPIED, Builder, deflate, packed_words

BITS = derived.INCOMPATIBLE_FEATURES
EXTENDED_L2, DATA_FILE = BITS["extended_l2"].mask, BITS["data_file"].mask


def test_the_walk_names_every_owner() -> None:
    builder = Builder(1 << 22, cluster_bits=12)
    builder.data(0, b"x")
    builder.compressed(9, deflate(bytes(4096)))
    builder.one_bitmap(0)
    builder.snapshot(b"a")
    builder.data(100, b"new")
    store = Memory(builder.build())
    walk = Walk(store, Header.load(store))
    owners = {references.owner for references in walk if len(references.offsets)}
    assert owners == {
        Owner.HEADER,
        Owner.L1_TABLE,
        Owner.SNAPSHOT_L1_TABLE,
        Owner.SNAPSHOT_TABLE,
        Owner.REFCOUNT_TABLE,
        Owner.REFCOUNT_BLOCK,
        Owner.BITMAP_DIRECTORY,
        Owner.BITMAP_TABLE,
        Owner.L2_TABLE,
        Owner.SNAPSHOT_L2_TABLE,
        Owner.DATA,
        Owner.COMPRESSED,
        Owner.SNAPSHOT_DATA,
        Owner.SNAPSHOT_COMPRESSED,
    }
    assert [state.index for state in walk.states()] == [ACTIVE, 0]


def test_l2_tables_in_holes_of_the_file_are_not_read(tmp_path: Path) -> None:
    builder = Builder(1 << 40, cluster_bits=16)
    builder.data(0, b"x")
    base = builder.end + (100 << 16)
    for index in range(1, 500):
        builder.l1[index] = base + index * 65536
    path = tmp_path / "sparse"
    path.write_bytes(builder.build())
    with path.open("r+b") as file:
        file.truncate(base + 600 * 65536)
    store = LocalFile(path)
    walk = Walk(store, Header.load(store))
    assert len(walk.l2_tables().offsets) == 500
    assert len(walk.stored_tables().offsets) == 1
    store.close()


# --- L2 tables and what they name ---


def walked(builder: Builder) -> Walk:
    store = Memory(builder.build())
    return Walk(store, Header.load(store))


def test_a_table_that_two_states_name_is_read_once_and_counts_twice() -> None:
    builder = Builder(1 << 22)
    builder.data(0, b"x")
    builder.data(600, b"y")
    shared = builder.l1[0]
    builder.snapshot(b"one")
    l1_of_snapshot = max(offset for offset, data in builder.parts.items() if len(data) == 8 * len(builder.l1))
    words = [int.from_bytes(builder.parts[l1_of_snapshot][at : at + 8], "big") for at in range(0, 16, 8)]
    builder.parts[l1_of_snapshot] = packed_words([shared, *words[1:], *[0] * (len(builder.l1) - 2)])
    found = walked(builder).l2_tables()
    assert found.offsets.tolist() == sorted(found.offsets.tolist())
    counts = dict(zip(found.offsets.tolist(), zip(found.active, found.snapshot, strict=True), strict=True))
    assert counts[shared & ~L1_COPIED] == (1, 1)
    assert sorted(tuple(map(int, pair)) for pair in counts.values()) == [(0, 1), (1, 0), (1, 1)]


def test_distinct_tables_are_those_of_the_entries_with_how_often_each_is_named() -> None:
    words = np.array([0, L1_COPIED | 8192, 4096, 8192, 0, L1_COPIED | 4096, 8192], dtype=np.uint64)
    offsets, times = distinct_tables(words.copy())
    assert (offsets.tolist(), times.tolist()) == ([4096, 8192], [2, 3])
    assert [len(part) for part in distinct_tables(np.zeros(5, dtype=np.uint64))] == [0, 0]


def test_words_past_the_end_of_the_file_are_zeros_and_a_torn_one_ends_in_zeros() -> None:
    builder = Builder()
    end = len(builder.build())
    store = Memory(builder.build() + b"\0" * 7 + b"\1" + b"torn")
    walk = Walk(store, Header.load(store))
    assert walk.words(end, 3).tolist() == [1, int.from_bytes(b"torn") << 32, 0]
    assert walk.words(end + 4096, 2).tolist() == [0, 0]
    assert walk.words(1 << 62, 2).tolist() == [0, 0]


def test_a_batch_holds_the_entries_of_its_tables_and_zeros_behind_the_file() -> None:
    builder = Builder(1 << 23)
    for table in range(3):
        builder.entry(512 * table + 5, (table + 1) << 20 | L2_COPIED)
    data = builder.build()
    store = Memory(data)
    walk = Walk(store, Header.load(store))
    found = walk.l2_tables()
    batch = walk.batch(found, 0, 3)
    assert batch.entries.shape == (3, 512) and batch.bitmaps is None
    assert sorted(int(row[5]) for row in batch.entries) == [n << 20 | L2_COPIED for n in (1, 2, 3)]
    cut = Walk(Memory(data[: int(found.offsets[2]) + 8 * 5]), Header.load(store))
    assert not cut.batch(found, 2, 3).entries.any()


def test_an_extended_table_has_its_bitmaps_apart() -> None:
    builder = Builder(1 << 20, cluster_bits=14, incompatible=EXTENDED_L2)
    builder.entry(3, 1 << 20 | L2_COPIED, 7 << 32 | 9)
    walk = walked(builder)
    batch = walk.batch(walk.l2_tables(), 0, 1)
    assert batch.bitmaps is not None and batch.entries.shape == batch.bitmaps.shape == (1, 1024)
    assert (int(batch.entries[0, 3]), int(batch.bitmaps[0, 3])) == (1 << 20 | L2_COPIED, 7 << 32 | 9)


def test_batches_cover_all_rows_in_order() -> None:
    builder = Builder(16 << 30, cluster_bits=21)
    for table in range(9):
        builder.l1[table % len(builder.l1)] = (table + 1) << 21
    walk = walked(builder)
    ranges = list(walk.batches(walk.l2_tables()))
    assert ranges[0][0] == 0 and ranges[-1][1] == len(walk.l2_tables().offsets)
    assert all(one[1] == other[0] for one, other in pairwise(ranges))
    assert all((end - start) << 21 <= BATCH_BYTES for start, end in ranges)


def test_a_snapshot_whose_l1_table_cannot_be_is_not_walked() -> None:
    builder = Builder(1 << 22)
    builder.data(0, b"x")
    builder.snapshot(b"one", l1_table_offset=4097)
    walk = walked(builder)
    assert [state.walkable for state in walk.states()] == [True, False]
    assert all(not references.owner.name.startswith("SNAPSHOT_L") or not len(references.offsets) for references in walk)


def test_tables_that_overlap_are_refused_before_they_are_read() -> None:
    builder = Builder(1 << 20, cluster_bits=9)
    for snapshot in range(30):
        builder.snapshot(b"s", id_str=b"%d" % snapshot, l1_table_offset=512, l1_size=(1 << 22) - snapshot)
    with pytest.raises(LimitExceeded, match="L1 tables overlap"):
        walked(builder).l2_tables()


def test_nothing_is_referred_to_where_guest_data_is_elsewhere() -> None:
    builder = Builder(1 << 20, incompatible=DATA_FILE)
    builder.entry(0, L2_COPIED)
    builder.entry(9, 9 << 12 | L2_COPIED)
    walk = walked(builder)
    assert list(walk.data(walk.batch(walk.l2_tables(), 0, 1))) == []
