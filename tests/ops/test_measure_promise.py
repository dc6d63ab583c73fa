"""No copy is longer than measure says: over sizes, data, clusters, refcounts, versions, compression and bitmaps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import qcow2c
from qcow2c.builder.options import NewImageOptions
from qcow2c.ops.measure import measure

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def source(folder: Path, size: int, writes: int, bitmaps: int, *, seed: int) -> Path:
    """Make a disk with some random data, and bitmaps of several granularities that record it."""
    path = folder / "source.qcow2"
    qcow2c.create(path, size, cluster_size=4096)
    for number in range(bitmaps):
        qcow2c.bitmap.add(path, f"bitmap {number}", granularity=512 << number)
    chance = random.Random(seed)
    with qcow2c.open(path, "r+") as image:
        for _ in range(writes):
            length = min(size, chance.choice((512, 4096, 70_000, MIB)))
            image.pwrite(chance.randbytes(length), chance.randrange(0, size - length + 1, 512))
    return path


@st.composite
def creations(draw: st.DrawFn) -> NewImageOptions:
    cluster_size = draw(st.sampled_from([512, 4096, 65536, 2 * MIB]))
    if draw(st.booleans()):
        return NewImageOptions(cluster_size=cluster_size, compat="0.10")
    extended = cluster_size >= 16384 and draw(st.booleans())
    bits = draw(st.sampled_from([1, 16, 64]))
    return NewImageOptions(cluster_size=cluster_size, refcount_bits=bits, extended_l2=extended)


@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from([4096, MIB, 64 * MIB - 512, 64 * MIB, 65 * MIB, 200 * MIB]),
    writes=st.integers(0, 8),
    bitmaps=st.integers(0, 3),
    seed=st.integers(0, 99),
    create=creations(),
    compressed=st.booleans(),
)
@example(size=64 * MIB, writes=1, bitmaps=0, seed=0, create=NewImageOptions(cluster_size=65536), compressed=False)
@example(size=64 * MIB, writes=1, bitmaps=2, seed=0, create=NewImageOptions(cluster_size=65536), compressed=False)
@example(
    size=MIB, writes=4, bitmaps=3, seed=0, create=NewImageOptions(cluster_size=512, refcount_bits=64), compressed=False
)
def test_no_copy_is_longer_than_measured(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    writes: int,
    bitmaps: int,
    seed: int,
    create: NewImageOptions,
    *,
    compressed: bool,
) -> None:
    folder = tmp_path_factory.mktemp("measured")
    path = source(folder, size, writes, bitmaps, seed=seed)
    with_bitmaps = bool(bitmaps) and create.get("compat") != "0.10"
    promised = measure(path, output_format="qcow2", **create)
    copy = folder / "copy.qcow2"
    qcow2c.convert(path, copy, output_format="qcow2", compressed=compressed, bitmaps=with_bitmaps, **create)
    assert copy.stat().st_size <= promised.required + (promised.bitmaps or 0 if with_bitmaps else 0)
    assert qcow2c.check(copy).exit_code == 0
    for file in (path, copy):
        file.unlink()


@pytest.mark.parametrize("size", [64 * MIB, 600 * MIB, 9 * GIB, 20 * GIB])
@pytest.mark.parametrize("cluster_size", [4096, 65536, 2 * MIB])
def test_sparse_raw_disks_of_any_size_keep_the_promise(size: int, cluster_size: int, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(size)
        for place in range(4):
            file.seek(place * (size // 4))
            file.write(b"data")
    promised = measure(disk, output_format="qcow2", image_format="raw", cluster_size=cluster_size)
    copy = tmp_path / "copy.qcow2"
    qcow2c.convert(disk, copy, output_format="qcow2", image_format="raw", cluster_size=cluster_size)
    assert copy.stat().st_size <= promised.required


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocated_copies_are_as_long_as_a_full_disk(mode: str, tmp_path: Path) -> None:
    path = source(tmp_path, 2 * MIB, 3, 0, seed=1)
    promised = measure(path, output_format="qcow2", preallocation=mode)
    copy = tmp_path / "copy.qcow2"
    qcow2c.convert(path, copy, output_format="qcow2", preallocation=mode)
    assert copy.stat().st_size <= promised.fully_allocated
