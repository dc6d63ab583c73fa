"""What L2 entries say after a change: clusters named, hidden, zeroed."""

from __future__ import annotations

import pytest

from qcow2c.format.tables import L2_COMPRESSED, L2_COPIED, L2_OFFSET, L2_ZERO
from tests.unit.writer.test_cow import CLUSTERS, Subject


def test_an_entry_that_says_so_already_is_not_touched() -> None:
    subject = Subject()
    size = subject.size
    host = subject.table.words[1] & L2_OFFSET
    subject.mapping.point(subject.table, size + 5, size + 9, host)
    assert subject.table.dirty == set()
    subject.mapping.point(subject.table, size, 3 * size, host + 100 * size)
    assert subject.table.words[1:3].tolist() == [L2_COPIED | host + 100 * size, L2_COPIED | host + 101 * size]
    assert subject.table.dirty == {0}


def test_a_compressed_extended_cluster_has_all_its_subclusters_afterwards() -> None:
    subject = Subject(extended=True)
    assert subject.table.words[8] & L2_COMPRESSED
    subject.mapping.point(subject.table, 4 * subject.size, 4 * subject.size + 1, 1 << 20)
    assert subject.table.words[8:10].tolist() == [L2_COPIED | 1 << 20, 0xFFFFFFFF]


@pytest.mark.parametrize(("extended", "zero"), [(False, [L2_ZERO]), (True, [0, 0xFFFFFFFF << 32])])
def test_a_backing_file_is_hidden_only_where_no_cluster_is_in_use(*, extended: bool, zero: list[int]) -> None:
    subject = Subject(extended=extended)
    assert not subject.mapping.hide_backing(subject.table, 6 * subject.size, 2 * subject.size)
    assert subject.table.dirty == set()
    assert subject.mapping.hide_backing(subject.table, 7 * subject.size, 2 * subject.size)
    words = subject.reader.geometry.l2_entry_words
    assert subject.table.words[7 * words : 9 * words].tolist() == zero * 2


def test_a_part_is_zero_already_only_if_nothing_must_be_given_back() -> None:
    subject = Subject()
    size = subject.size
    plain = [
        subject.mapping.is_plain_zero(subject.table, cluster * size, cluster * size + size, unmap=False)
        for cluster in range(CLUSTERS)
    ]
    assert plain == [False, False, False, True, False, False, False, True]
    subject.table.words[3] |= 1 << 20
    assert not subject.mapping.is_plain_zero(subject.table, 3 * size, 4 * size, unmap=True)
    assert subject.mapping.is_plain_zero(None, 7 * size, 8 * size, unmap=True), "no table, and nothing below"
    assert not subject.mapping.is_plain_zero(None, size, 2 * size, unmap=True)


def test_subclusters_read_as_zeros_and_the_others_stay() -> None:
    subject = Subject(extended=True)
    unit = subject.size // 32
    kept = subject.table.words[4]
    zero = subject.mapping._zero_subclusters
    start = 2 * subject.size + 3 * unit
    zero(subject.table, 2, kept, start, start + 2 * unit, whole=False)
    assert subject.table.words[4:6].tolist() == [kept, 0b11 << 35 | 0xFFFFFFFF & ~(0b11 << 3)]
    zero(subject.table, 2, 0, 2 * subject.size, 3 * subject.size, whole=True)
    assert subject.table.words[4:6].tolist() == [0, 0xFFFFFFFF << 32]
