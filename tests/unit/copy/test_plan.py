"""What is planned for a copy: slabs with the data and the zeros of disks, each byte once, and how they are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import pytest

from qcow2c.copy import plan as slabs
from qcow2c.copy.buffers import SLAB_BYTES, Buffers, Closed
from qcow2c.copy.plan import Piece, PlannedDisk, Slab, plan
from qcow2c.copy.targets import Release, Target
from qcow2c.copy.transfer import Copying, DiskCopy, StreamCopy
from qcow2c.copy.zero_detection import data_ranges
from qcow2c.disk.disk import open_disk
from qcow2c.errors import CorruptData, MissingKey, StoreError
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
        [slab] = plan(disks)
        assert (slab.start, slab.end, list(slab.zeros)) == (0, MIB, [])
        assert pieces([slab]) == [(0, 2 * CLUSTER, 0), (9 * CLUSTER, 10 * CLUSTER, 0)]
        [slab] = plan(disks, with_zeros=True)
        assert pieces([slab]) == [(0, 2 * CLUSTER, 0), (9 * CLUSTER, 10 * CLUSTER, 0)]
        covered = sorted([(start, end) for start, end, _ in pieces([slab])] + zeros([slab]))
        assert covered[0][0] == 0 and covered[-1][1] == MIB
        assert all(one[1] == other[0] for one, other in pairwise(covered))


def test_a_slab_without_data_has_any_size() -> None:
    size = 10 * SLAB_BYTES + MIB
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


@pytest.mark.parametrize(
    ("words", "unit", "expected"),
    [
        ("xxxx", 8, [(0, 32)]),
        ("....", 8, []),
        ("x..x", 8, [(0, 8), (24, 32)]),
        (".x..", 8, [(8, 16)]),
        (".x..", 16, [(0, 16)]),
        (".x...", 16, [(0, 16)]),
        ("....x", 16, [(32, 40)]),
        ("..x..", 1024, [(0, 40)]),
        (".....", 1024, []),
        (".x.x.x..", 24, [(0, 48)]),
    ],
)
def test_ranges_with_data(words: str, unit: int, expected: list[tuple[int, int]]) -> None:
    """Each letter is eight bytes; only the last one of them is ever set."""
    buffer = b"".join(b"\0\0\0\0\0\0\0\1" if word == "x" else bytes(8) for word in words)
    assert data_ranges(memoryview(buffer), unit) == expected


# --- the copy -------------------------------------------------------------------------------------------------------


class Collected(Target):
    """Keeps what it takes."""

    def __init__(self) -> None:
        super().__init__(0)
        self.disk = bytearray()
        self.finished = -1
        self.fails_in = ""

    def prepare(self, slab: Slab, buffer: memoryview) -> bytes:
        if self.fails_in == "prepare" and slab.start:
            raise StoreError("prepare fails")
        return bytes(buffer[: slab.end - slab.start])

    def take(self, slab: Slab, buffer: memoryview, prepared: bytes, release: Release) -> None:
        if self.fails_in == "take" and slab.start:
            raise StoreError("take fails")
        self.disk[len(self.disk) :] = bytes(slab.start - len(self.disk))
        self.disk += prepared
        release()

    def finish(self, size: int) -> None:
        self.finished = size


class Fails(Memory):
    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        if offset:
            raise StoreError("reading fails")
        return super().readinto_at(buffer, offset)


CONTENT = b"".join(bytes([1 + number]) * SLAB_BYTES for number in range(12)) + b"end".ljust(512, b"\0")


def copied(copy: Copying) -> Collected:
    target = Collected()
    copy.run(target)
    return target


@pytest.mark.parametrize("threads", [1, 2, 16, None])
def test_slabs_reach_the_target_in_order(threads: int | None) -> None:
    before = threading.active_count()
    with planned(CONTENT) as disks:
        target = copied(DiskCopy(disks, threads=threads))
    assert target.finished == len(CONTENT)
    assert target.disk == CONTENT
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 16])
def test_an_error_anywhere_ends_a_copy_and_all_of_its_threads(threads: int) -> None:
    before = threading.active_count()
    for fails_in in ("prepare", "take", "read"):
        source = Fails(CONTENT) if fails_in == "read" else Memory(CONTENT)
        target = Collected()
        target.fails_in = fails_in
        with planned(source) as disks, pytest.raises(StoreError, match="fails"):
            DiskCopy(disks, threads=threads).run(target)
        assert target.finished == -1
        assert threading.active_count() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_who_is_told_of_progress_may_end_the_copy(error: type[BaseException]) -> None:
    def progress(done: int, size: int) -> None:
        raise error("enough")

    before = threading.active_count()
    target = Collected()
    with planned(CONTENT) as disks, pytest.raises(error, match="enough"):
        DiskCopy(disks, progress=progress).run(target)
    assert threading.active_count() == before


def test_a_stream_is_copied_up_to_its_end() -> None:
    """In parts of any size; its last sector is filled up."""
    for length in (0, 1, 512, SLAB_BYTES - 1, SLAB_BYTES, SLAB_BYTES + 1, 3 * SLAB_BYTES):
        copy = StreamCopy(Trickle(CONTENT[:length]))
        target = copied(copy)
        assert copy.size == target.finished == -(-length // 512) * 512
        assert target.disk == CONTENT[:length].ljust(copy.size, b"\0")


class Trickle:
    """A file that gives a part of what it is asked for, and fails at its end if it should."""

    def __init__(self, data: bytes, error: OSError | None = None) -> None:
        self._data = memoryview(data)
        self._error = error

    def readinto(self, buffer: memoryview) -> int:
        if self._error is not None and not self._data:
            raise self._error
        count = min(len(buffer), len(self._data), 1_000_000)
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def test_a_stream_that_cannot_be_read_on_is_an_error() -> None:
    for length in (0, 100, SLAB_BYTES):
        broken = Trickle(bytes(length), OSError(5, "Input/output error"))
        with pytest.raises(StoreError, match="Could not read the source: Input/output error"):
            copied(StreamCopy(broken))


def test_a_pipe_that_does_not_wait_is_waited_for() -> None:
    """Whoever has the other end of standard input may have made it so; nothing is no end."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def write() -> None:
        for part in (b"a" * 512, b"b" * 512):
            waiting.wait(0.05)
            os.write(writing, part)
        os.close(writing)

    waiting = threading.Event()
    writer = threading.Thread(target=write)
    with open(reading, "rb", buffering=0) as file:
        writer.start()
        assert copied(StreamCopy(file)).disk == b"a" * 512 + b"b" * 512
    writer.join()


def test_a_stream_has_no_slab_that_is_yet_to_be_read() -> None:
    slab = Slab(0, 512, [Piece(0, 512, None, 0, -1)], ())
    with pytest.raises(AssertionError):
        StreamCopy(Trickle(b"")).read(slab, memoryview(bytearray(512)))


def test_buffers_are_used_again_and_nobody_waits_for_one_for_ever() -> None:
    buffers = Buffers(2)
    first, second = buffers.take(), buffers.take()
    assert first is not second and len(first) == len(second) == SLAB_BYTES
    got: list[memoryview] = []
    waiting = threading.Thread(target=lambda: got.append(buffers.take()))
    waiting.start()
    buffers.give(first)
    waiting.join(20)
    assert got[0] is first
    outcome: list[bool] = []

    def wait() -> None:
        try:
            buffers.take()
        except Closed:
            outcome.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    buffers.close()
    waiting.join(20)
    assert outcome == [True]
