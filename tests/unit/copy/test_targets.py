"""Targets of a copy: each ends with the bytes of the plan, and what is not part of it stays."""

from __future__ import annotations

import io
import os
import threading
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qcow2c
from qcow2c.copy.plan import Piece, Slab
from qcow2c.copy.targets import ImageTarget, Pipe, RawPipe, RawTarget, Target
from qcow2c.errors import StoreError
from qcow2c.storage.sources import WritableMemory

SIZE = 4096
UNIT = 512

parts = st.lists(st.tuples(st.sampled_from("dzk"), st.integers(1, 5)), min_size=1, max_size=8)
"""Parts of a disk, in units: data, zeros, and what no layer decides (kept)."""


def slab_of(drawn: list[tuple[str, int]]) -> tuple[Slab, bytearray, list[tuple[int, int, str]]]:
    """Return a slab with its bytes, and what each part is."""
    buffer, pieces, zeros, told = bytearray(), [], [], []
    for number, (kind, units) in enumerate(drawn):
        start, length = len(buffer), units * UNIT
        buffer += bytes([number + 1]) * length if kind == "d" else bytes(length)
        if kind == "d":
            pieces.append(Piece(start, length, None, 0, -1))
        if kind == "z":
            zeros.append((start, start + length))
        told.append((start, start + length, kind))
    return Slab(0, len(buffer), pieces, tuple(zeros)), buffer, told


def run(target: Target, slab: Slab, buffer: bytearray) -> None:
    view = memoryview(buffer)
    target.take(slab, view, target.prepare(slab, view))
    view = memoryview(bytearray(b"?" * len(buffer)))
    buffer_before, buffer[:] = bytes(buffer), view  # The buffer can be used again.
    target.finish(slab.end)
    buffer[:] = buffer_before


@given(parts)
def test_a_new_raw_file_holds_the_disk(drawn: list[tuple[str, int]]) -> None:
    slab, buffer, _ = slab_of(drawn)
    data = bytearray()
    run(RawTarget(WritableMemory(data), unit=UNIT), slab, buffer)
    assert data == buffer


@given(parts, st.sampled_from([0, UNIT]))
def test_in_an_existing_raw_file_only_what_was_asked_for_changes(drawn: list[tuple[str, int]], unit: int) -> None:
    slab, buffer, told = slab_of(drawn)
    data = bytearray(b"o" * (len(buffer) + 100))
    expected = bytearray(data)
    for start, end, kind in told:
        if kind != "k":
            expected[start:end] = buffer[start:end]
    run(RawTarget(WritableMemory(data), unit=unit, wipe=True), slab, buffer)
    assert data == expected


@given(parts)
def test_in_an_existing_image_only_what_was_asked_for_changes(drawn: list[tuple[str, int]]) -> None:
    slab, buffer, told = slab_of(drawn)
    size = max(len(buffer), SIZE)
    data = bytearray()
    qcow2c.create(data, size, cluster_size=SIZE)
    expected = bytearray(b"o" * size)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(bytes(expected), 0)
        run(ImageTarget(image, unit=UNIT, wipe=True), slab, buffer)
    for start, end, kind in told:
        if kind != "k":
            expected[start:end] = buffer[start:end]
    with qcow2c.open(bytes(data)) as image:
        assert image.readall() == expected
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_a_pipe_gets_zeros_for_what_no_slab_holds() -> None:
    sent = bytearray()
    target = RawPipe(sent.extend)
    for start in (SIZE, 3 * SIZE):
        slab = Slab(start, start + 4, [Piece(start, 4, None, 0, -1)], ())
        target.take(slab, memoryview(b"data....")[:4], None)
    target.finish(4 * SIZE)
    assert sent == bytes(SIZE) + b"data" + bytes(2 * SIZE - 4) + b"data" + bytes(SIZE - 4)


class Partial(io.BytesIO):
    """A file that takes little at a time."""

    def write(self, data: object) -> int:
        return super().write(memoryview(data)[:3])  # type: ignore[arg-type]


def test_all_bytes_go_through_a_pipe_that_takes_a_part() -> None:
    file = Partial()
    Pipe(file, "out").write(memoryview(b"0123456789"))
    assert file.getvalue() == b"0123456789"


def test_a_pipe_that_nobody_reads_and_one_that_fails_are_told_apart() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", buffering=0) as file, pytest.raises(BrokenPipeError):
        Pipe(file, "out").write(memoryview(b"x"))
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(StoreError, match="write to 'out': No space"),
    ):
        Pipe(file, "out").write(memoryview(b"x"))


def test_a_pipe_that_does_not_wait_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    content = b"x" * (1 << 20)
    got = bytearray()

    def read(file: BinaryIO) -> None:
        while piece := file.read(65536):
            got.extend(piece)

    with open(reading, "rb", buffering=0) as source:
        reader = threading.Thread(target=read, args=(source,))
        reader.start()
        with open(writing, "wb", buffering=0) as file:
            Pipe(file, "out").write(memoryview(content))
        reader.join(20)
    assert got == content
