"""Free space: each cluster is given out once, holes of the file first."""

from __future__ import annotations

from collections.abc import Callable, Set

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcow2c.atomic.free_space import FreeSpace
from qcow2c.errors import LimitExceeded
from qcow2c.references.batches import SCAN_CLUSTERS

INSIDE = 60
"""Clusters of the file."""


def space(free: set[int], *, stray: Set[int] = frozenset()) -> FreeSpace:
    """Return the space of a file in which those clusters are free, and behind it all but `stray` ones."""

    def used(first: int, end: int) -> NDArray[np.bool_]:
        found = np.zeros(end - first, dtype=bool)
        for cluster in [*(set(range(INSIDE)) - free), *stray]:
            if first <= cluster < end:
                found[cluster - first] = True
        return found

    return FreeSpace(used, INSIDE)


def test_clusters_that_must_lie_together_go_into_the_first_hole_that_holds_them() -> None:
    found = space({3, 10, 11, 12, 20, 21})
    assert [found.take(2), found.take(2), found.take(1), found.take(1), found.take(1)] == [10, 20, 3, 12, 60]


def test_as_many_as_there_are_in_the_first_hole() -> None:
    found = space({3, 10, 11, 12})
    assert [found.take_some(2), found.take_some(2), found.take_some(9), found.take_some(4)] == [
        (3, 1),
        (10, 2),
        (12, 1),
        (60, 4),
    ]


def test_behind_the_file_lies_nothing_between_but_what_is_in_use() -> None:
    found = space({3}, stray={62, 1 << 40})
    assert [found.take_behind(2), found.take(3), found.take_behind(1), found.take_behind(5)] == [60, 63, 66, 67]


def test_more_clusters_than_are_looked_at_at_a_time_lie_together_behind_a_stray_one() -> None:
    stray = INSIDE + 3 * SCAN_CLUSTERS // 2
    assert space(set(), stray={stray}).take_behind(2 * SCAN_CLUSTERS) == stray + 1


@given(st.sets(st.integers(0, INSIDE - 1)), st.lists(st.tuples(st.sampled_from("tsb"), st.integers(1, 5)), max_size=30))
def test_no_cluster_in_use_is_given_out_and_none_twice(free: set[int], wishes: list[tuple[str, int]]) -> None:
    found = space(free)
    given_out: list[int] = []
    take: dict[str, Callable[[int], tuple[int, int]]] = {
        "t": lambda count: (found.take(count), count),
        "s": found.take_some,
        "b": lambda count: (found.take_behind(count), count),
    }
    for kind, count in wishes:
        first, clusters = take[kind](count)
        assert 1 <= clusters <= count
        given_out += range(first, first + clusters)
    assert len(given_out) == len(set(given_out))
    assert all(cluster in free or cluster >= INSIDE for cluster in given_out)


def test_a_file_that_would_grow_by_far_more_than_it_needs_is_refused() -> None:
    stray = {INSIDE + number * 8 for number in range(1000)}
    with pytest.raises(LimitExceeded, match="because of refcounts of clusters behind it"):
        space(set(), stray=stray).take_behind(10)
    assert space(set(), stray=stray).take_behind(7) == INSIDE + 1
