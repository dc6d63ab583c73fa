"""Refcounts that a file stores: scattered ones are those of a window, and impossible blocks are told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.format.header import Header
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.walk import Walk
from qcow2c.storage.sources import Memory
from tests.building import Builder, packed_words


def stored_refcounts(blocks: bytes, table: list[int], *, cluster_bits: int, order: int) -> StoredRefcounts:
    """Return the refcounts of a file that holds nothing but blocks, from its second cluster on, and then the table."""
    header = Header.load(Memory(Builder(cluster_bits=cluster_bits, refcount_order=order).build()))
    data = bytes(1 << cluster_bits) + blocks
    header = replace(header, refcount_table_offset=len(data), refcount_table_clusters=1)
    return StoredRefcounts(Walk(Memory(data + packed_words(table)), header))


@given(st.integers(0, 6), st.binary(min_size=1024, max_size=1024), st.data())
def test_scattered_refcounts_are_those_of_the_window(order: int, blocks: bytes, data: st.DataObject) -> None:
    table = data.draw(st.lists(st.sampled_from([0, 512, 1024, 1 << 40, 700]), max_size=5))
    found = stored_refcounts(blocks, table, cluster_bits=9, order=order)
    count = max(1, len(table) << 12 - order)
    window = found.window(0, count)
    clusters = data.draw(st.lists(st.integers(0, count + 9), max_size=20))
    expected = [int(window[cluster]) if cluster < count else 0 for cluster in clusters]
    assert found.at(np.array(clusters, np.uint64)).tolist() == expected


@given(st.integers(0, 6), st.binary(min_size=1024, max_size=1024), st.data())
def test_a_window_is_the_whole_refcounts_cut_off_at_32_bits(order: int, blocks: bytes, data: st.DataObject) -> None:
    found = stored_refcounts(blocks, [512, 0, 1024], cluster_bits=9, order=order)
    end = 3 << 12 - order
    whole = [int(word, 2) for word in refcount_bits(blocks, 1 << order)]
    whole[len(whole) // 2 : len(whole) // 2] = [0] * (1 << 12 - order)
    first = data.draw(st.integers(0, end))
    count = data.draw(st.integers(0, end - first + 9))
    expected = (whole + [0] * 9)[first : first + count]
    assert found.counts(first, count).tolist() == expected
    assert found.window(first, count).tolist() == [min(refcount, (1 << 32) - 1) for refcount in expected]


def refcount_bits(blocks: bytes, width: int) -> list[str]:
    """Return each refcount as binary digits; those below a byte begin at its lowest bit."""
    if width >= 8:
        digits = "".join(f"{byte:08b}" for byte in blocks)
        return [digits[at : at + width] for at in range(0, len(digits), width)]
    return [f"{byte:08b}"[8 - at - width : 8 - at] for byte in blocks for at in range(0, 8, width)]


@given(st.lists(st.sampled_from([0, 4096, 512, 4096 + 512]), min_size=1, max_size=6))
def test_misaligned_refcount_blocks_are_unreadable(table: list[int]) -> None:
    found = stored_refcounts(bytes(8192), table, cluster_bits=12, order=4)
    per_block = 1 << 11
    expected = [bool(offset % 4096) for offset in table for _ in range(per_block)]
    assert found.unreadable(0, len(expected)).tolist() == expected
