"""Guest bytes: what qcow2c reads equals what the real qemu-img converts, whichever way it is read."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import MissingKey, Qcow2Error
from tests.corpus.case import HostileCase
from tests.corpus.hostile import CASES, make_case

from .conftest import run_qemu_img
from .images import RECIPES
from .workshop import RealImage

MIB = 1024 * 1024
OPEN = [recipe.name for recipe in RECIPES if recipe.whole and not recipe.sealed]
SEALED = [recipe.name for recipe in RECIPES if recipe.sealed]
SNAPSHOTS = [(recipe.name, snapshot) for recipe in RECIPES for snapshot in recipe.snapshots]


def read_in_steps(image: qcow2c.Image, step: int) -> bytes:
    pieces = []
    while piece := image.read(step):
        pieces.append(piece)
    return b"".join(pieces)


def assert_same(ours: bytes, theirs: bytes, where: int = 0) -> None:
    """Compare without printing megabytes: name the first byte that differs."""
    if ours != theirs:
        first = next(
            (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        pytest.fail(
            f"guest offset {where + first:#x} of {where:#x}+{len(theirs):#x} (got {len(ours):#x} bytes): "
            f"{ours[first : first + 8].hex()} instead of {theirs[first : first + 8].hex()}"
        )


def assert_disk(image: qcow2c.Image, theirs: bytes, size: int) -> None:
    """The whole disk equals `theirs`; QEMU rounds the size down to sectors, so a tail is compared in length only."""
    assert image.size() == size
    assert size // 512 * 512 == len(theirs)
    ours = read_in_steps(image, MIB + 1234)
    assert len(ours) == size
    assert_same(ours[: len(theirs)], theirs)


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_whole_disk_equals_qemu_img_convert(image: RealImage) -> None:
    size = int.from_bytes(image.path.read_bytes()[24:32], "big")
    with qcow2c.open(image.path) as disk:
        assert_disk(disk, image.guest_data(), size)


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_random_preads_equal_the_converted_disk(image: RealImage) -> None:
    theirs = image.guest_data()
    source = random.Random(image.recipe.name)
    cluster = 1 << image.path.read_bytes()[23]
    with qcow2c.open(image.path) as disk:
        for _ in range(150):
            length = source.choice((0, 1, 7, 511, 512, 513, 4096, cluster, cluster + 13, 3 * cluster))
            offset = source.randrange(len(theirs) + 1)
            if source.random() < 0.5:
                offset = max(0, offset // cluster * cluster - source.choice((0, 1, 512)))
            wanted = theirs[offset : offset + length]
            assert_same(disk.pread(length, offset)[: len(wanted)], wanted, offset)


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_buffered_reader_walks_the_disk(image: RealImage) -> None:
    theirs = image.guest_data()
    with qcow2c.open(image.path) as disk, io.BufferedReader(disk, 70_000) as reader:
        for offset in range(0, len(theirs), 600_001):
            reader.seek(offset)
            wanted = theirs[offset : offset + 3001]
            assert_same(reader.read(3001)[: len(wanted)], wanted, offset)
        reader.seek(0)
        assert_same(reader.read(len(theirs)), theirs)


@pytest.mark.parametrize(
    "image", ["chain-of-three", "compressed-zstd-64k", "extended-64k-backing-shorter"], indirect=True
)
def test_threads_read_one_image_at_once(image: RealImage) -> None:
    theirs = image.guest_data()
    source = random.Random(5)
    places = [source.randrange(len(theirs)) for _ in range(400)]
    with qcow2c.open(image.path) as disk, ThreadPoolExecutor(4) as pool:
        for offset, piece in zip(places, pool.map(lambda at: disk.pread(5000, at), places), strict=True):
            wanted = theirs[offset : offset + 5000]
            assert_same(piece[: len(wanted)], wanted, offset)


@pytest.mark.parametrize(("name", "snapshot"), SNAPSHOTS)
def test_snapshot_is_the_disk_of_its_time(name: str, snapshot: str, made: Callable[[str], RealImage]) -> None:
    image = made(name)
    with qcow2c.open(image.path) as disk:
        found = disk.snapshots[snapshot]
        with found.open() as old:
            ours = read_in_steps(old, MIB)
            assert old.size() == found.disk_size == len(ours)
    at_active_size = image.guest_data(snapshot)
    common = min(len(ours), len(at_active_size))
    assert_same(ours[:common], at_active_size[:common])
    if len(ours) != len(at_active_size):
        assert_same(ours, image.applied_snapshot(snapshot))


@pytest.mark.parametrize("image", SEALED, indirect=True)
def test_encrypted_data_needs_a_key_and_says_so(image: RealImage) -> None:
    with qcow2c.open(image.path) as disk:
        assert disk.size() == len(image.guest_data())
        with pytest.raises(MissingKey):
            disk.pread(512, 0)


@pytest.mark.usefixtures("requires_qemu")
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.askable and not case.heavy],
    ids=lambda case: case.name,
)
def test_hostile_image_gives_the_bytes_of_qemu_img_or_an_error(case: HostileCase, tmp_path: Path) -> None:
    """Where both read a malformed image, they read the same; where only one does, there is an error, no guess."""
    path = make_case(case, tmp_path)
    theirs_path = tmp_path / "theirs.raw"
    theirs = run_qemu_img(path.parent, "convert", "-f", "qcow2", "-O", "raw", path.name, str(theirs_path))
    try:
        with qcow2c.open(path) as disk:
            size = disk.size()
            assert size < 2**40 or theirs.status != 0
            ours = [disk.pread(MIB, at) for at in range(0, min(size, 64 * MIB), MIB)]
    except Qcow2Error:
        return
    if theirs.status == 0:
        with theirs_path.open("rb") as converted:
            wanted = converted.read(64 * MIB)
        assert_same(b"".join(ours)[: len(wanted)], wanted)
