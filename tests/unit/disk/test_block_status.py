"""Block status: segments of a chain end where a layer does, and know the holes of files."""

from __future__ import annotations

import random
from pathlib import Path

import qcow2c
from qcow2c.disk.block_status import END, segments
from qcow2c.disk.disk import Disk, open_disk
from qcow2c.disk.map_layers import DATA, OFFSET, PRESENT, ZERO, mapped_layers
from tests.building import Builder

CLUSTER = 4096


def found_by_qemu(disk: Disk) -> list[tuple[int, int, int, int]]:
    """Start, length, depth and flags of all segments."""
    return [found[:4] for found in segments(mapped_layers(disk.layer), 0, disk.size)]


def test_segments_of_a_chain_end_where_a_layer_ends() -> None:
    middle, top = Builder(4 * CLUSTER), Builder(8 * CLUSTER)
    middle.data(1, b"middle")
    top.data(5, b"top")
    for builder in middle, top:
        builder.backing_file = b"below"
    base = random.Random(1).randbytes(1000)
    with qcow2c.open(middle.build(), backing=base) as below, open_disk(top.build(), backing=below) as disk:
        assert found_by_qemu(disk) == [
            (0, 1000, 2, DATA | PRESENT | OFFSET),
            (1000, 24, 2, ZERO | PRESENT | OFFSET),
            (1024, 3072, 2, ZERO | PRESENT),
            (4096, 4096, 1, DATA | PRESENT | OFFSET),
            (8192, 8192, 2, ZERO | PRESENT),
            (16384, 4096, 1, ZERO | PRESENT),
            (20480, 4096, 0, DATA | PRESENT | OFFSET),
            (24576, 8192, 1, ZERO | PRESENT | END),
        ]
    with qcow2c.open(middle.build(), backing=False) as below, open_disk(top.build(), backing=below) as disk:
        # Nobody has decided about the end of the middle layer, and QEMU takes it for one.
        assert found_by_qemu(disk)[2:4] == [(8192, 8192, 1, ZERO | END), (16384, 4096, 1, ZERO | PRESENT)]


def test_segments_end_with_the_part_of_a_table_that_is_in_memory() -> None:
    builder = Builder(1 << 30, cluster_bits=16)
    with open_disk(builder.build()) as disk:
        assert [length for _, length, _, _ in found_by_qemu(disk)] == [512 << 20] * 2
    builder = Builder((256 << 30) + (32 << 20), cluster_bits=16)
    with open_disk(builder.build()) as disk:
        found = found_by_qemu(disk)
        assert [length for _, length, _, _ in found] == [32 << 20] * (256 * 32 + 1)
        assert {flags for _, _, _, flags in found[:-1]} == {ZERO} and found[-1][3] == ZERO | END


def test_segments_of_an_image_with_holes_know_the_holes(tmp_path: Path) -> None:
    """The hole at the end of the file, and what is behind the end, are one."""
    path = tmp_path / "preallocated"
    builder = Builder(8 << 20)
    for cluster in range(2000):
        builder.data(cluster, b"")
    start = builder.end - 2000 * CLUSTER
    image = builder.build()
    with path.open("wb") as file:
        file.write(image[: 2 * CLUSTER * 16])
        file.truncate(len(image))
    assert start < len(image)
    with open_disk(path) as disk:
        [mapped] = mapped_layers(disk.layer)
        found = [part[:4] for part in segments([mapped._replace(preallocated=True)], 0, disk.size)]
    assert sum(length for _, length, _, _ in found) == 8 << 20
    assert found[0][3] == DATA | PRESENT | OFFSET
    assert any(flags & (DATA | ZERO | OFFSET) == DATA | ZERO | OFFSET for _, _, _, flags in found)
