"""Bitmaps held against sets of numbers: what is recorded, merged at two granularities, and kept for another size."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

import qcow2c
from qcow2c.bitmaps.edit import resized
from qcow2c.bitmaps.stored import Bitmap
from qcow2c.format.header import Header

SECTOR = 512
sizes = st.integers(1, 40_000).map(lambda sectors: sectors * SECTOR)
granularities = st.integers(9, 20).map(lambda bits: 1 << bits)
clusters = st.sampled_from((512, 1024, 4096))
places = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 300_000)), max_size=6)


def ranges_of(size: int, drawn: Iterable[tuple[float, int]]) -> list[tuple[int, int]]:
    """Return drawn ranges within a disk."""
    return [(start, min(length, size - start)) for start, length in ((int(at * size), length) for at, length in drawn)]


def marked(ranges: Iterable[tuple[int, int]], granularity: int) -> set[int]:
    """Return the numbers of the bits that ranges touch."""
    return {bit for at, length in ranges for bit in range(at // granularity, (at + length - 1) // granularity + 1)}


def as_ranges(bits: set[int], granularity: int, size: int) -> list[tuple[int, int]]:
    """Return the guest ranges of bits, in order, adjacent ones as one."""
    found: list[tuple[int, int]] = []
    for bit in sorted(bits):
        start, end = bit * granularity, min((bit + 1) * granularity, size)
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return [(start, end - start) for start, end in found]


def make(size: int, cluster_size: int, granularity: int, written: list[tuple[int, int]]) -> bytearray:
    """Return an image with a bitmap in which ranges are dirty."""
    data = bytearray()
    qcow2c.create(data, size, cluster_size=cluster_size)
    with qcow2c.open(data, "r+") as image:
        with image.engine.changing_bitmaps() as edit:
            edit.add("a", granularity)
        for offset, length in written:
            image.write_zeroes(offset, length)
    return data


def bitmap(data: bytearray, name: str) -> Bitmap:
    with qcow2c.open(bytes(data)) as image:
        return image.bitmaps.find(name)


@given(sizes, clusters, granularities, granularities, places, places)
def test_merging_sets_every_bit_that_a_dirty_bit_touches(
    size: int, cluster_size: int, one: int, other: int, first: list[tuple[float, int]], second: list[tuple[float, int]]
) -> None:
    written, more = ranges_of(size, first), ranges_of(size, second)
    data = make(size, cluster_size, one, written)
    with qcow2c.open(data, "r+") as image:
        with image.engine.changing_bitmaps() as edit:
            edit.enable("a", enabled=False)
            edit.add("b", other)
        for offset, length in more:
            image.write_zeroes(offset, length)
    with qcow2c.open(data, "r+") as image, image.engine.changing_bitmaps() as edit:
        edit.merge("b", edit.find("a"))
    dirty = as_ranges(marked(written, one), one, size)
    assert list(bitmap(data, "a").ranges()) == dirty
    assert list(bitmap(data, "b").ranges()) == as_ranges(marked([*dirty, *more], other), other, size)
    assert qcow2c.check(bytes(data)).exit_code == 0


@given(sizes, sizes, clusters, granularities, places)
def test_another_size_keeps_the_bits_that_have_a_place(
    size: int, later: int, cluster_size: int, granularity: int, drawn: list[tuple[float, int]]
) -> None:
    written = ranges_of(size, drawn)
    data = make(size, cluster_size, granularity, written)
    with qcow2c.open(data, "r+") as image:
        engine, layer = image.engine, image.layer
        for wanted in (later, max(size, later)):
            if layer.geometry.l1_entries(wanted) > layer.header.l1_size:
                return  # The L1 table would have to grow, too: not the business of bitmaps.
            header = Header.load(layer.store)
            edit = resized(layer.store, header, engine.place, wanted)
            made = edit.header_change()
            engine.change_header(made._replace(fields={**made.fields, "size": wanted}))
            engine.session.release(edit.released)
    kept = {bit for bit in marked(written, granularity) if bit * granularity < later}
    assert list(bitmap(data, "a").ranges()) == as_ranges(kept, granularity, max(size, later))
    assert qcow2c.check(bytes(data)).exit_code == 0
