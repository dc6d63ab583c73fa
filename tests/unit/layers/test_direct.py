"""Small reads that go straight to the file give what all others give, and leave to those whatever is not simple."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import StoreError, UsageError
from qcow2c.layers.direct import IN_NO_FILE, NOT_SIMPLE, run_start

CLUSTER = 4096
SIZE = 600 * CLUSTER
FAR = 3 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image with data, zeros, compressed and no clusters, and one L2 table that is not there."""
    image = tmp_path / "image"
    qcow2c.create(image, FAR, cluster_size=CLUSTER)
    with qcow2c.open(image, "r+") as disk:
        disk.pwrite(random.Random(1).randbytes(3 * CLUSTER), CLUSTER)
        disk.write_compressed(b"c" * CLUSTER, 5 * CLUSTER)
        disk.pwrite(b"z" * CLUSTER, 6 * CLUSTER)
        disk.write_zeroes(6 * CLUSTER, CLUSTER)
    return image


def test_each_small_read_is_part_of_a_large_one(path: Path) -> None:
    with qcow2c.open(path) as disk:
        whole = bytearray(8 * CLUSTER)
        disk.readinto_at(whole, 0)
        chooser = random.Random(2)
        for _ in range(500):
            offset, length = chooser.randrange(8 * CLUSTER), chooser.choice([0, 1, 512, CLUSTER])
            assert disk.pread(length, offset) == whole[offset : offset + length].ljust(length, b"\0")
        assert disk.pread(CLUSTER, FAR - CLUSTER) == disk.pread(2 * CLUSTER, FAR - CLUSTER) == bytes(CLUSTER)


def test_a_read_over_a_missing_table_goes_on_with_the_next_one(tmp_path: Path) -> None:
    covered = CLUSTER * CLUSTER // 8
    qcow2c.create(tmp_path / "image", 4 * covered, cluster_size=CLUSTER)
    with qcow2c.open(tmp_path / "image", "r+") as disk:
        disk.pwrite(b"x" * CLUSTER, covered)
    with qcow2c.open(tmp_path / "image") as disk:
        for start, length in ((0, 4 * covered), (covered - 1, 2), (0, covered + 1), (0, covered)):
            expected = (bytes(covered) + b"x" * CLUSTER).ljust(4 * covered, b"\0")[start : start + length]
            assert disk.pread(length, start) == expected


def test_what_is_simple_and_what_is_not(path: Path) -> None:
    with qcow2c.open(path) as disk:
        locate = disk.layer.locate
        assert locate(CLUSTER, 1) == NOT_SIMPLE, "the table is not loaded"
        disk.pread(1, CLUSTER)
        host = locate(CLUSTER, CLUSTER)
        assert host > 0 and host % CLUSTER == 0
        assert locate(CLUSTER + 7, 1) == host + 7
        assert locate(CLUSTER, CLUSTER + 1) == NOT_SIMPLE, "beyond the cluster's end"
        assert [locate(number * CLUSTER, 1) for number in (5, 6)] == [NOT_SIMPLE] * 2
        assert locate(0, 1) == locate(FAR - 1, 1) == IN_NO_FILE


def test_over_a_backing_file_nothing_is_zeros_by_itself(path: Path, tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "top", backing_file="image", backing_fmt="qcow2")
    with qcow2c.open(tmp_path / "top") as top, qcow2c.open(path) as below:
        assert top.pread(CLUSTER, CLUSTER) == below.pread(CLUSTER, CLUSTER) != bytes(CLUSTER)
        assert top.layer.locate(0, 1) == NOT_SIMPLE


def test_wrong_ranges_and_closed_images_are_refused_there_too(path: Path) -> None:
    disk = qcow2c.open(path)
    with disk:
        disk.pread(1, CLUSTER)
        for length, offset in ((-1, CLUSTER), (-1, 0), (1, -1)):
            with pytest.raises(UsageError, match="negative"):
                disk.pread(length, offset)
    with pytest.raises(UsageError, match="closed"):
        disk.pread(1, CLUSTER)


def test_a_file_that_cannot_be_read_is_an_error_of_ours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with qcow2c.open(path) as disk:
        disk.pread(1, CLUSTER)
        monkeypatch.setattr("os.pread", fails)
        monkeypatch.setattr("os.preadv", fails)
        monkeypatch.setattr(disk, "_read_directly", fails)
        with pytest.raises(StoreError, match="Input/output error"):
            disk.pread(1, CLUSTER)


def test_a_run_of_plain_clusters_is_one_place(tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "image", SIZE, cluster_size=CLUSTER)
    with qcow2c.open(tmp_path / "image", "r+") as disk:
        disk.pwrite(b"x" * (4 * CLUSTER), 2 * CLUSTER)
        disk.pwrite(b"y" * CLUSTER, 9 * CLUSTER)
        disk.pwrite(b"z" * CLUSTER, 8 * CLUSTER)
    with qcow2c.open(tmp_path / "image") as disk:
        disk.pread(1, 0)
        locate = disk.layer.locate
        start = locate(2 * CLUSTER, 1)
        for first, length in ((0, 4 * CLUSTER), (5, 3 * CLUSTER), (CLUSTER - 1, 2), (CLUSTER, 1), (7, 9)):
            assert run_start(locate, 2 * CLUSTER + first, length, CLUSTER) == start + first
        for first, length in ((CLUSTER, 2 * CLUSTER), (5 * CLUSTER, 2 * CLUSTER), (8 * CLUSTER, 2 * CLUSTER), (0, 1)):
            assert run_start(locate, first, length, CLUSTER) == NOT_SIMPLE
