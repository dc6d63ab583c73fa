"""What is planned for a copy: slabs with the data and the zeros of disks, each byte once, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import pytest

from qcow2c.copy import plan as slabs
from qcow2c.copy.buffers import SLAB_BYTES
from qcow2c.copy.plan import PlannedDisk, Slab, plan
from qcow2c.disk.disk import open_disk
from qcow2c.errors import CorruptData, MissingKey
from qcow2c.storage.sources import Memory
from tests.building import L2_COPIED, L2_ZERO, Builder, deflate

CLUSTER = 4096
MIB = 1 << 20


@contextmanager
def planned(*sources: Any, **how: Any) -> Iterator[list[PlannedDisk]]:
    """Open disks, one behind the other."""
    with ExitStack() as stack:
        found: list[PlannedDisk] = []
        for source in sources:
            disk = stack.enter_context(open_disk(source, **how))
            found.append(PlannedDisk(disk, found[-1].end if found else 0))
        yield found


def image(size: int, data: dict[int, bytes], zeros: Sequence[int] = (), backing: str = "") -> bytes:
    """Return an image with some clusters of data and some that read as zeros."""
    builder = Builder(size)
    for cluster, content in data.items():
        builder.data(cluster, content)
    for cluster in zeros:
        builder.entry(cluster, L2_ZERO)
    builder.backing_file = backing.encode()
    return builder.build()


def pieces(found: Sequence[Slab]) -> list[tuple[int, int, int]]:
    """Return start, end and depth of all pieces, adjacent ones of equal depth joined."""
    joined: list[tuple[int, int, int]] = []
    for piece in (piece for slab in found for piece in slab.pieces):
        start, end = piece.start, piece.start + piece.length
        if joined and joined[-1][1:] == (start, piece.depth):
            start = joined.pop()[0]
        joined.append((start, end, piece.depth))
    return joined


def zeros(found: Sequence[Slab]) -> list[tuple[int, int]]:
    return [ranges for slab in found for ranges in slab.zeros]


def test_only_data_is_planned_unless_zeros_are_asked_for() -> None:
    with planned(image(MIB, {0: b"a", 1: b"b", 9: b"c"}, zeros=(3, 4))) as disks:
        [slab] = plan(disks, MIB)
        assert (slab.start, slab.end, list(slab.zeros)) == (0, MIB, [])
        assert pieces([slab]) == [(0, 2 * CLUSTER, 0), (9 * CLUSTER, 10 * CLUSTER, 0)]
        [slab] = plan(disks, MIB, with_zeros=True)
        assert pieces([slab]) == [(0, 2 * CLUSTER, 0), (9 * CLUSTER, 10 * CLUSTER, 0)]
        covered = sorted([(start, end) for start, end, _ in pieces([slab])] + zeros([slab]))
        assert covered[0][0] == 0 and covered[-1][1] == MIB
        assert all(one[1] == other[0] for one, other in pairwise(covered))


def test_a_slab_without_data_has_any_size() -> None:
    size = 10 * SLAB_BYTES + 4 * CLUSTER
    with planned(image(size, {SLAB_BYTES // CLUSTER + 1: b"x"})) as disks:
        assert [(slab.start, slab.end) for slab in plan(disks)] == [(SLAB_BYTES, 2 * SLAB_BYTES)]
        found = list(plan(disks, with_zeros=True))
    assert [(slab.start, slab.end, bool(slab.pieces)) for slab in found] == [
        (0, SLAB_BYTES, False),
        (SLAB_BYTES, 2 * SLAB_BYTES, True),
        (2 * SLAB_BYTES, 10 * SLAB_BYTES, False),
        (10 * SLAB_BYTES, size, False),
    ]


def test_disks_lie_one_behind_the_other() -> None:
    """The second one begins within a slab, at a whole sector, and what is no sector of it yet is read as zeros."""
    with planned(b"a" * 700, b"", image(8192, {1: b"z"}), b"c" * 512, image_format=None) as disks:
        assert [(disk.start, disk.end) for disk in disks] == [(0, 1024), (1024, 1024), (1024, 9216), (9216, 9728)]
        [slab] = plan(disks)
        assert [(piece.start, piece.length) for piece in slab.pieces] == [(0, 700), (5120, 4096), (9216, 512)]
        buffer = memoryview(bytearray(b"?" * 16384))
        slabs.read(slab, buffer)
    expected = b"a" * 700 + bytes(324) + bytes(4096) + b"z".ljust(4096, b"\0") + b"c" * 512
    assert buffer[: slab.end] == expected
    assert buffer[slab.end :] == b"?" * (16384 - slab.end)


def test_what_the_top_layer_does_not_decide_is_left_out() -> None:
    top = image(16 * CLUSTER, {0: b"top"}, zeros=(1,), backing="x")
    below = image(8 * CLUSTER, {0: b"hidden", 1: b"hidden", 2: b"below"})
    with planned(top, backing=Memory(b"")) as disks:
        assert pieces(list(plan(disks, top_only=True))) == [(0, CLUSTER, 0)]
    with open_disk(below) as base, planned(top, backing=base.image) as disks:
        assert pieces(list(plan(disks))) == [(0, CLUSTER, 0), (2 * CLUSTER, 3 * CLUSTER, 1)]
        found = list(plan(disks, top_only=True, with_zeros=True))
        assert pieces(found) == [(0, CLUSTER, 0)]
        assert zeros(found) == [(CLUSTER, 2 * CLUSTER), (8 * CLUSTER, 16 * CLUSTER)], "behind the end of a short one"


def test_a_blind_plan_takes_all_for_data() -> None:
    with planned(image(SLAB_BYTES + CLUSTER, {}), b"x" * 512) as disks:
        found = list(plan(disks, blind=True, with_zeros=True))
    assert pieces(found) == [(0, SLAB_BYTES + CLUSTER + 512, 0)]
    assert {piece.offset for slab in found for piece in slab.pieces} == {-1}
    assert list(plan([])) == []


def test_a_part_of_a_disk() -> None:
    with open_disk(image(MIB, {0: b"a", 2: b"c", 9: b"d"})) as disk:
        part = PlannedDisk(disk, 0, first=CLUSTER + 100, length=CLUSTER)
        assert (part.start, part.end) == (-CLUSTER - 100, CLUSTER)
        [slab] = plan([part])
        assert pieces([slab]) == [(CLUSTER - 100, CLUSTER, 0)]
        buffer = memoryview(bytearray(CLUSTER))
        slabs.read(slab, buffer)
        assert buffer == bytes(CLUSTER - 100) + b"c".ljust(100, b"\0")
        [slab] = plan([part], blind=True)
        slabs.read(slab, buffer)
        assert buffer == bytes(CLUSTER - 100) + b"c".ljust(100, b"\0")


def test_compressed_and_lost_clusters_are_read_by_the_layer() -> None:
    builder = Builder(MIB)
    builder.data(0, b"a" * CLUSTER)
    builder.compressed(1, deflate(b"b" * CLUSTER))
    builder.data(2, b"c" * CLUSTER)
    with planned(builder.build()) as disks:
        [slab] = plan(disks)
        assert [piece.offset < 0 for piece in slab.pieces] == [False, True, False]
        buffer = memoryview(bytearray(MIB))
        slabs.read(slab, buffer)
    assert buffer[: 3 * CLUSTER] == b"a" * CLUSTER + b"b" * CLUSTER + b"c" * CLUSTER
    builder.entry(3, 1 << 30 | L2_COPIED)
    with planned(builder.build()) as disks:
        [slab] = plan(disks)
        with pytest.raises(CorruptData, match="past the end of the file"):
            slabs.read(slab, buffer)
    with planned(Builder(MIB, crypt_method=1).build()) as disks:
        assert list(plan(disks)) == []
    sealed = Builder(MIB, crypt_method=1)
    sealed.data(0, b"sealed")
    with planned(sealed.build()) as disks:
        [slab] = plan(disks)
        with pytest.raises(MissingKey):
            slabs.read(slab, buffer)


def test_what_lies_below_is_read_between_pieces_if_asked() -> None:
    top = image(8 * CLUSTER, {1: b"t" * CLUSTER}, backing="x")
    with planned(top, backing=Memory(b"b" * 4 * CLUSTER)) as disks:
        [slab] = plan(disks, top_only=True)
        buffer = memoryview(bytearray(b"?" * SLAB_BYTES))
        slabs.read(slab, buffer)
        assert buffer[: 3 * CLUSTER] == bytes(CLUSTER) + b"t" * CLUSTER + bytes(CLUSTER)
        slabs.read(slab, buffer, below=True)
        assert buffer[: 8 * CLUSTER] == b"b" * CLUSTER + b"t" * CLUSTER + b"b" * 2 * CLUSTER + bytes(4 * CLUSTER)


# --- zeros ----------------------------------------------------------------------------------------------------------


# --- the copy -------------------------------------------------------------------------------------------------------
