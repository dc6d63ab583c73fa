"""Mapping one run at a time and mapping by arrays are the same, on any entries whatever, errors included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from hypothesis import example, given
from hypothesis import strategies as st

from qcow2c import structs
from qcow2c.disk import map_arrays
from qcow2c.disk.map import plain_columns
from qcow2c.disk.map_layers import Columns, MappedLayer, mapped_layers
from qcow2c.disk.opening import open_image
from qcow2c.errors import CorruptMetadata
from qcow2c.format import derived
from qcow2c.image import Image
from qcow2c.layers.layer import RawLayer
from qcow2c.storage.sources import Memory
from tests.building import L2_COMPRESSED, L2_COPIED, L2_ZERO, Builder

EXTENDED = derived.INCOMPATIBLE_FEATURES["extended_l2"].mask


class Drawn:
    """An image, and what was drawn to make it."""

    def __init__(self, recipe: str, image: bytes) -> None:
        self.recipe = recipe
        self.image = image

    def __repr__(self) -> str:
        return f"Drawn({self.recipe})"


Told = tuple[list[tuple[int, int, int, int, int]], str]


def told(batches: Iterator[Columns]) -> Told:
    """Return all runs, and the error that ended them."""
    runs: list[tuple[int, int, int, int, int]] = []
    try:
        for columns in batches:
            runs += zip(*columns, strict=True)
    except CorruptMetadata as error:
        return runs, str(error)
    return runs, ""


def assert_equal(layers: Sequence[MappedLayer], start: int, end: int, window_entries: int) -> None:
    one = told(plain_columns(layers, start, end))
    many = told(map_arrays.columns(layers, start, end, window_entries=window_entries))
    assert many == one
    runs, error = one
    assert [at for at, *_ in runs[1:]] == [at + length for at, length, *_ in runs[:-1]]
    if not error:
        assert (runs[0][0], runs[-1][0] + runs[-1][1]) == (start, end)


def words(cluster_bits: int) -> st.SearchStrategy[int]:
    """Return L2 entries: mostly sound and near each other, now and then anything."""
    place = st.integers(0, 40).map(lambda cluster: cluster << cluster_bits)
    sound = st.builds(
        lambda offset, flags: offset | flags,
        place,
        st.sampled_from((0, L2_COPIED, L2_COPIED, L2_COPIED, L2_ZERO, L2_COPIED | L2_ZERO)),
    )
    compressed = st.integers(0, 1 << 20).map(lambda offset: offset | L2_COMPRESSED)
    return st.one_of(st.just(0), sound, sound, sound, compressed)


@st.composite
def images(draw: st.DrawFn, *, size: int) -> Drawn:
    """Draw an image with entries at will; no data is there, as a map reads none."""
    extended = draw(st.booleans())
    cluster_bits = 14 if extended else draw(st.sampled_from((9, 10, 12)))
    builder = Builder(size, cluster_bits=cluster_bits, incompatible=EXTENDED if extended else 0)
    clusters = -(-size >> cluster_bits)
    for first in draw(st.lists(st.integers(0, clusters - 1), max_size=4)):
        count = min(draw(st.integers(1, 12)), clusters - first)
        entry, step = draw(words(cluster_bits)), draw(st.sampled_from((0, 1 << cluster_bits, 2 << cluster_bits)))
        bitmap = draw(st.one_of(st.just(structs.UINT32[-1]), st.integers(0, structs.UINT64[-1]), st.just(0)))
        for index in range(count):
            builder.entry(first + index, entry + step * index & structs.UINT64[-1], bitmap)
    if draw(st.integers(0, 9)) == 0:
        builder.entry(draw(st.integers(0, clusters - 1)), draw(st.integers(0, structs.UINT64[-1])))
    if draw(st.integers(0, 9)) == 0:
        builder.l1[draw(st.integers(0, len(builder.l1) - 1))] = draw(st.integers(0, 1 << 56))
    recipe = f"size={size} cluster_bits={cluster_bits} extended={extended} l1={builder.l1} l2={sparse(builder)}"
    return Drawn(recipe, builder.build())


def sparse(builder: Builder) -> dict[int, dict[int, int]]:
    return {row: {index: word for index, word in enumerate(table) if word} for row, table in builder.l2.items()}


@given(
    chain=st.lists(st.integers(1, 300).flatmap(lambda sectors: images(size=sectors * 512)), min_size=1, max_size=3),
    raw=st.none() | st.integers(0, 100_000),
    window_entries=st.sampled_from((1, 3, 64, 1 << 19)),
    cut=st.tuples(st.integers(0, 200_000), st.integers(1, 200_000)),
)
def test_one_run_at_a_time_and_arrays_agree(
    chain: list[Drawn], raw: int | None, window_entries: int, cut: tuple[int, int]
) -> None:
    with ExitStack() as stack:
        below = None if raw is None else open_raw_overlay(stack, raw)
        for drawn in reversed(chain):
            below = stack.enter_context(open_image(drawn.image, backing=below or False))
        assert below is not None
        layers = mapped_layers(below.layer)
        size = layers[0].size
        assert_equal(layers, 0, size, window_entries)
        start = cut[0] % size
        assert_equal(layers, start, min(size, start + cut[1]), window_entries)


def open_raw_overlay(stack: ExitStack, size: int) -> Image:
    """Return an empty image over a raw file of `size` bytes."""
    overlay = Builder(200 * 512, cluster_bits=9).build()
    return stack.enter_context(open_image(overlay, backing=Memory(bytes(size))))


@given(size=st.integers(1, 10_000), start=st.integers(0, 9_999), window_entries=st.sampled_from((1, 1 << 19)))
@example(size=1, start=0, window_entries=1)
def test_a_raw_disk_is_mapped_alike(size: int, start: int, window_entries: int) -> None:
    layers = mapped_layers(RawLayer(Memory(bytes(size))))
    assert_equal(layers, min(start, size - 1), layers[0].size, window_entries)
