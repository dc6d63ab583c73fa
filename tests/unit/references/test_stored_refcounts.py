"""Refcounts that a file stores: scattered ones are those of a window, and impossible blocks are told apart."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.format.geometry import Geometry
from qcow2c.references.stored_refcounts import Refcounts
from qcow2c.storage.sources import Memory


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
