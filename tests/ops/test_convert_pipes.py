"""Copies to what cannot seek, and by sharing space: pipes that take little at a time, files that clone."""

from __future__ import annotations

import os
import random
import threading
from array import array
from io import BytesIO
from typing import Any

import pytest

import qcow2c
from qcow2c.builder.options import CreateOptions
from qcow2c.copy.image_pipe import ImagePipe
from qcow2c.copy.targets import Pipe
from qcow2c.disk.disk import open_disk
from qcow2c.errors import StoreError, UsageError
from qcow2c.ops.convert import How, convert, copy_disks, copy_stream
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Store
from tests.building import Builder
from tests.streams import Taken

MIB = 1 << 20
DISK = random.Random(1).randbytes(9 * MIB) + bytes(3 * MIB) + b"end".ljust(1024, b"\0")


def sent(source: Any, output_format: str, how: How | None = None, **create: Any) -> bytes:
    taken = Taken()
    with open_disk(source) as disk:
        copy_disks([disk], Pipe(taken, "pipe"), output_format, how or How(), **create)
    return bytes(taken.data)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": 512, "refcount_bits": 64},
        {"cluster_size": 2 * MIB},
        {"extended_l2": True},
        {"compat": "0.10", "cluster_size": 4096},
    ],
    ids=str,
)
@pytest.mark.parametrize("compressed", [False, True])
def test_an_image_in_one_stream(options: dict[str, Any], *, compressed: bool) -> None:
    image = sent(DISK, "qcow2", How(compressed=compressed), **options)
    with qcow2c.open(image) as opened:
        assert opened.pread(len(DISK) + 1, 0) == DISK
    assert qcow2c.check(image).exit_code == 0
    assert sent(image, "raw") == DISK


def test_what_is_refused_on_a_pipe() -> None:
    for create in ({"preallocation": "full"}, {"backing_file": "x", "backing_fmt": "raw"}, {"data_file": "x"}):
        with pytest.raises(UsageError, match="standard output takes a new image without"):
            sent(DISK, "qcow2", **create)
    options = CreateOptions(1 << 35, cluster_size=512, refcount_bits=64)
    everything = array("Q", [0, (1 << 35) // 512])
    with pytest.raises(UsageError, match="The image size is too large for file format 'qcow2'"):
        ImagePipe(lambda _data: None, options, everything)


def test_a_stream_into_every_kind_of_target() -> None:
    """What has to be in place before, or read in another order, goes through a file."""
    image = bytearray()
    convert(DISK, image, output_format="qcow2")
    for source in (DISK, bytes(image)):
        target = bytearray(b"!" * len(DISK))
        copy_stream(BytesIO(source), target, "raw", How(existing=True))
        assert target == DISK
        target = bytearray()
        copy_stream(BytesIO(source), target, "qcow2", How(), preallocation="metadata")
        with qcow2c.open(target) as opened:
            assert opened.pread(len(DISK), 0) == DISK
        taken = Taken()
        copy_stream(BytesIO(source), Pipe(taken, "pipe"), "qcow2", How())
        with qcow2c.open(bytes(taken.data)) as opened:
            assert opened.pread(len(DISK), 0) == DISK


def test_a_pipe_that_does_not_wait_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    got = bytearray()

    def read() -> None:
        while part := os.read(reading, 1 << 16):
            got.extend(part)

    reader = threading.Thread(target=read)
    with open(writing, "wb", buffering=0) as file, open_disk(DISK) as disk:
        reader.start()
        copy_disks([disk], Pipe(file, "pipe"), "raw", How())
    reader.join()
    os.close(reading)
    assert got == DISK


def test_a_pipe_that_fails() -> None:
    class Broken(Taken):
        def __init__(self, error: OSError) -> None:
            super().__init__()
            self._error = error

        def write(self, _data: memoryview) -> int:
            raise self._error

    for error, expected in ((BrokenPipeError(), BrokenPipeError), (OSError(28, "No space left"), StoreError)):
        with open_disk(DISK) as disk, pytest.raises(expected):
            copy_disks([disk], Pipe(Broken(error), "pipe"), "raw", How())


def test_bitmaps_need_a_new_image_that_can_hold_them() -> None:
    with pytest.raises(UsageError, match="Source lacks bitmap support"):
        convert(DISK, bytearray(), output_format="qcow2", bitmaps=True)
    image = Builder(MIB).build()
    for options in ({}, {"output_format": "qcow2", "compat": "0.10"}):
        with pytest.raises(UsageError, match="does not support bitmaps"):
            convert(image, bytearray(), bitmaps=True, **options)
    target = bytearray()
    convert(image, target, output_format="qcow2", bitmaps=True)
    assert qcow2c.check(target).exit_code == 0


# --- space that is shared -------------------------------------------------------------------------------------------


class Cloning(WritableMemory):
    """Memory that can take bytes of another store by itself, where they lie at whole blocks, and counts them."""

    def __init__(self, refuses_from: int = 1 << 60) -> None:
        super().__init__(bytearray())
        self.cloned = 0
        self._refuses_from = refuses_from

    def clone(self, source: Store, source_offset: int, offset: int, length: int) -> bool:
        if source_offset % 4096 or offset % 4096 or offset >= self._refuses_from:
            return False
        self.pwrite(source.pread(length, source_offset), offset)
        self.cloned += length
        return True


@pytest.mark.parametrize("refuses_from", [0, 5 * MIB, 1 << 60])
def test_what_can_be_cloned_is_not_read(refuses_from: int) -> None:
    image = bytearray()
    convert(DISK, image, output_format="qcow2")
    packed = bytearray()
    convert(DISK, packed, output_format="qcow2", compressed=True, cluster_size=4096)
    for source in (DISK, bytes(image), bytes(packed)):
        target = Cloning(refuses_from)
        convert(Memory(source), target)
        assert target.pread(len(DISK) + 1, 0) == DISK
        assert bool(target.cloned) or not refuses_from or source is packed
        whole = Cloning(refuses_from)
        convert(Memory(source), whole, sparse_size=0)
        assert whole.pread(len(DISK) + 1, 0) == DISK and not whole.cloned
