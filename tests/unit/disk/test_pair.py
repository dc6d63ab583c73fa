"""Two disks side by side: the same bytes of the same file are known by their places, and reading goes through them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qcow2c
from qcow2c.disk.disk import Disk, open_disk
from qcow2c.disk.map_layers import DATA, OFFSET, ZERO
from qcow2c.disk.pair import BY_LAYER, NOTHING, PiecePair, Side, pairs
from qcow2c.storage.sources import Memory, Store
from tests.building import Builder, deflate

SIZE = 4096


def sides(one: Disk, other: Disk) -> tuple[Side, Side]:
    stores: list[Store] = []
    return Side(0, one, stores), Side(1, other, stores)


def test_one_file_has_one_number_for_both_disks() -> None:
    base = Memory(b"base".ljust(SIZE, b"\0"))
    top = Builder(4 * SIZE)
    with qcow2c.open(top.build(), backing=base) as image, open_disk(base, image_format="raw") as raw:
        over, below = sides(Disk(image.layer, "over", image), raw)
        run = (0, SIZE, 1, DATA | OFFSET, 0)
        assert over.place(run, 100) == below.place((0, SIZE, 0, DATA | OFFSET, 0), 100)
        assert over.place((0, SIZE, 0, DATA | OFFSET, 0), 100) != below.place((0, SIZE, 0, DATA | OFFSET, 0), 100)


def test_zeros_are_nowhere_and_what_has_no_place_is_the_layers_business() -> None:
    with open_disk(bytes(SIZE), image_format="raw") as raw:
        side, _ = sides(raw, raw)
    assert side.place((0, SIZE, 0, ZERO | OFFSET, 0), 7) == (NOTHING, 0)
    assert side.place((512, SIZE, 0, DATA, 0), 700) == (BY_LAYER, 700)


def test_pieces_are_read_one_after_the_other_and_zeros_left_alone() -> None:
    builder = Builder(8 * SIZE)
    place = builder.data(1, b"plain" * 800)
    builder.compressed(2, deflate(b"packed".ljust(SIZE, b"!")))
    with open_disk(builder.build()) as disk:
        side, _ = sides(disk, disk)
        zeros = PiecePair(0, 512, ((NOTHING, 0), (NOTHING, 0)))
        plain = PiecePair(SIZE, 512, ((0, place), (0, place)))
        more = PiecePair(SIZE + 512, 512, ((0, place + 512), (0, place + 512)))
        packed = PiecePair(2 * SIZE, 512, ((BY_LAYER, 2 * SIZE), (BY_LAYER, 2 * SIZE)))
        buffer = memoryview(bytearray(b"?" * 2048))
        side.read([zeros, plain, more, packed], buffer)
    assert buffer == b"?" * 512 + (b"plain" * 800)[:1024] + b"packed".ljust(512, b"!")
    assert zeros.holds == (False, False) and packed.holds == (True, True)


def test_where_the_file_is_cut_short_the_layers_say_what_that_means() -> None:
    data = b"abc" * 100
    with open_disk(data, image_format="raw") as disk:
        side, _ = sides(disk, disk)
        buffer = memoryview(bytearray(b"?" * 512))
        side.read([PiecePair(0, 512, ((0, 0), (0, 0)))], buffer)
    assert buffer == data.ljust(512, b"\0")


cuts = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(cuts, cuts)
def test_runs_of_both_are_cut_wherever_one_of_them_ends(one: list[int], other: list[int]) -> None:
    def segments(lengths: list[int]) -> list[tuple[int, int, int, int, int]]:
        ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
        return [(end - length, length, 0, DATA, 0) for end, length in zip(ends, lengths, strict=True)]

    first, second = segments(one), segments(other)
    found = list(pairs(iter(first), iter(second), 0))
    assert [start for start, *_ in found] == [0, *[end for _, end, *_ in found[:-1]]]
    assert found[-1][1] == min(sum(one), sum(other))
    for start, end, mine, theirs in found:
        assert start < end
        assert all(run[0] <= start and end <= run[0] + run[1] for run in (mine, theirs))


@pytest.mark.parametrize(("one", "other"), [([], [(0, 9, 0, DATA, 0)]), ([(0, 9, 0, DATA, 0)], [])])
def test_where_one_has_nothing_there_are_no_pairs(one: list[object], other: list[object]) -> None:
    assert list(pairs(iter(one), iter(other), 0)) == []  # type: ignore[arg-type]
