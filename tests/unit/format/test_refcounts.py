"""Refcounts of every width: one by one, by arrays, and in native words they are the same."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.format.refcounts import native_block, refcount, refcounts, stored_block, stored_ones, word_code


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
