"""Reading compressed clusters in bulk gives what reading them one by one gives."""

from __future__ import annotations

import random

import pytest

import qcow2c
from qcow2c.errors import CorruptData
from qcow2c.layers.compressed import read_compressed
from qcow2c.storage.sources import Memory
from tests.building import Builder, deflate

CLUSTER = 4096


def image(order: list[int], gap: int = 0) -> tuple[Builder, bytes]:
    """Return an image of compressed clusters whose data lies in an order, and its disk."""
    chooser = random.Random(3)
    disk = [bytes(chooser.choices(b"abcd", k=CLUSTER)) for _ in order]
    builder = Builder(len(order) * CLUSTER)
    for index in order:
        builder.compressed(index, deflate(disk[index]))
        if gap:
            builder.allocate(gap)
    return builder, b"".join(disk)


@pytest.mark.parametrize("gap", [0, 200])
@pytest.mark.parametrize("order", [[*range(40)], [*range(39, -1, -1)], [*range(1, 40, 2), *range(0, 40, 2)]])
def test_in_any_order_and_any_part(order: list[int], gap: int) -> None:
    builder, disk = image(order, gap)
    with qcow2c.open(builder.build()) as opened:
        for start, end in ((0, len(disk)), (100, len(disk) - 100), (CLUSTER, 3 * CLUSTER + 5), (7, 9)):
            buffer = bytearray(end - start)
            read_compressed(opened.layer, memoryview(buffer), start)
            assert buffer == disk[start:end]


def test_what_is_not_compressed_is_read_all_the_same() -> None:
    builder, disk = image([0, 1, 2, 3])
    builder.entry(2, 0)
    with qcow2c.open(builder.build()) as opened:
        buffer = bytearray(len(disk))
        read_compressed(opened.layer, memoryview(buffer), 0)
    assert buffer == disk[: 2 * CLUSTER] + bytes(CLUSTER) + disk[3 * CLUSTER :]


def test_one_bad_cluster_is_named_or_salvaged_and_the_others_are_read() -> None:
    builder, disk = image([0, 1, 2, 3])
    builder.compressed(1, b"\xff" * 64)
    data = builder.build()
    buffer = bytearray(len(disk))
    with qcow2c.open(Memory(data)) as opened, pytest.raises(CorruptData, match="guest bytes 0x1000"):
        read_compressed(opened.layer, memoryview(buffer), 0)
    with qcow2c.open(Memory(data), on_error="zero") as opened:
        read_compressed(opened.layer, memoryview(buffer), 0)
        assert [lost.guest.offset for lost in opened.salvaged] == [CLUSTER]
    assert buffer == disk[:CLUSTER] + bytes(CLUSTER) + disk[2 * CLUSTER :]
