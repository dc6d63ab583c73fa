"""Allocation: which clusters are free, and in which order they are given out."""

from __future__ import annotations

from array import array
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from qcow2c.writer.allocation import zero_runs


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
