"""A copy on its way: slabs arrive in order, an error anywhere ends it, streams are copied up to their end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from qcow2c.copy.buffers import SLAB_BYTES
from qcow2c.copy.plan import Piece, PlannedDisk, Scope, Slab
from qcow2c.copy.targets import Target
from qcow2c.copy.transfer import Copying, DiskCopy, StreamCopy
from qcow2c.disk.disk import open_disk
from qcow2c.errors import StoreError
from qcow2c.storage.sources import Memory


@contextmanager
def planned(*sources: Any, **how: Any) -> Iterator[list[PlannedDisk]]:
    """Open disks, one behind the other."""
    with ExitStack() as stack:
        found: list[PlannedDisk] = []
        for source in sources:
            disk = stack.enter_context(open_disk(source, **how))
            found.append(PlannedDisk(disk, found[-1].end if found else 0))
        yield found


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

    def take(self, slab: Slab, _buffer: memoryview, prepared: bytes) -> None:
        if self.fails_in == "take" and slab.start:
            raise StoreError("take fails")
        self.disk[len(self.disk) :] = bytes(slab.start - len(self.disk))
        self.disk += prepared

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
    def progress(_done: int, _size: int) -> None:
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
        StreamCopy(Trickle(b"")).read(slab, Scope(), memoryview(bytearray(512)))
