"""A block device as a store: its size, its zeros, and an end that moves while it is open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import qcow2c
from qcow2c.storage.block_device import BlockDevice
from qcow2c.storage.file_part import FilePart
from qcow2c.storage.sources import open_store
from qcow2c.testing import Made, WritableStoreContract
from tests.loop_device import loop_device, requires_loop

MIB = 1 << 20

pytestmark = requires_loop


@contextmanager
def device_with(content: bytes, *, writable: bool) -> Iterator[Made]:
    """Make a device whose first bytes are the content: devices have whole sectors, and contents of any length."""
    with TemporaryDirectory() as folder, loop_device(Path(folder) / "content", 4 * MIB) as device:
        with closing(open_store(device, writable=True)) as store:
            if writable:
                store.truncate(0)
                store.pwrite(content, 0)
                yield Made(store, lambda: Path(device).read_bytes()[: store.size()])
                return
            store.pwrite(content, 4 * MIB - len(content))
        with closing(open_store(device)) as whole:
            yield Made(FilePart(whole, 4 * MIB - len(content)), lambda: Path(device).read_bytes()[-len(content) :])


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "content").write_bytes(b"old " * (MIB // 4))
    with loop_device(tmp_path / "content", MIB) as device:
        yield device


def test_size_is_that_of_the_device(device: str) -> None:
    with closing(open_store(device)) as store:
        assert isinstance(store, BlockDevice)
        assert store.size() == store.capacity() == MIB
        assert store.pread(8, MIB - 4) == b"old " and store.pread(4, MIB) == b""
        buffer = bytearray(8)
        assert store.readinto_at(memoryview(buffer), MIB - 4) == 4
        assert [part for part in store.extents(0, 2 * MIB)] == [(qcow2c.errors.Span(0, MIB), True)]


def test_write_and_flush_reach_the_device(device: str) -> None:
    with closing(open_store(device, writable=True)) as store:
        store.pwritev([b"one", b"two"], 1000)
        store.flush()
    assert Path(device).read_bytes()[998:1010] == b"d onetwod ol"


@pytest.mark.parametrize(("offset", "length"), [(0, MIB), (512, 4096), (3, 7), (510, 5), (511, 2049), (MIB - 5, 5)])
def test_zeros_replace_exactly_their_range(device: str, offset: int, length: int) -> None:
    with closing(open_store(device, writable=True)) as store:
        store.write_zeroes(offset, length)
    content = b"old " * (MIB // 4)
    assert Path(device).read_bytes() == content[:offset] + bytes(length) + content[offset + length :]


def test_punch_leaves_what_is_beside_it(device: str) -> None:
    with closing(open_store(device, writable=True)) as store:
        store.punch(1000, 100_000)
        store.punch(10, 20)
        store.punch(MIB - 10, 4096)
    left = Path(device).read_bytes()
    content = b"old " * (MIB // 4)
    assert left[:1000] == content[:1000] and left[101_000:] == content[101_000:]


def test_write_past_the_end_says_how_large_it_is(device: str) -> None:
    with closing(open_store(device, writable=True)) as store:
        with pytest.raises(qcow2c.StoreError, match="it has 1048576 bytes") as caught:
            store.pwrite(b"12345", MIB - 4)
        assert caught.value.errno == 28
        with pytest.raises(qcow2c.StoreError, match="Cannot grow device files"):
            store.truncate(MIB + 1)
        with pytest.raises(qcow2c.StoreError, match="Cannot grow device files"):
            store.require_capacity(MIB + 1)
        with pytest.raises(qcow2c.StoreError):
            store.allocate(MIB, 1)
        assert store.size() == MIB


def test_emptied_device_is_as_an_empty_file_until_it_is_closed(device: str) -> None:
    with closing(open_store(device, writable=True)) as store:
        store.truncate(0)
        assert store.size() == 0 and store.pread(10, 0) == b""
        store.pwrite(b"new", 9000)
        assert store.size() == 9003 and store.pread(20_000, 0) == bytes(9000) + b"new"
        store.truncate(10_000)
        assert store.pread(20_000, 9003) == bytes(997)
        store.truncate(9001)
        store.allocate(9500, 10)
        assert store.pread(20_000, 9000) == b"n" + bytes(509)
    assert Path(device).read_bytes()[10_000:] == (b"old " * (MIB // 4))[10_000:]
    with closing(open_store(device)) as store:
        assert store.size() == MIB


def test_beginning_of_the_old_content_goes_before_anything_new_comes(device: str) -> None:
    with closing(open_store(device, writable=True)) as store:
        store.truncate(0)
        assert Path(device).read_bytes()[:4] == b"old "
        store.pwrite(b"new", 0)
    assert Path(device).read_bytes()[:4096] == b"new" + bytes(4093)


def test_only_one_can_have_it_for_writing(device: str) -> None:
    with closing(open_store(device, writable=True)):
        with pytest.raises(qcow2c.StoreError, match="busy"):
            open_store(device, writable=True)
        with closing(open_store(device)) as reader:
            assert reader.size() == MIB


def test_two_nodes_of_a_device_are_one_identity(device: str, tmp_path: Path) -> None:
    other = tmp_path / "node"
    os.mknod(other, os.stat(device).st_mode, os.stat(device).st_rdev)
    with closing(open_store(device)) as one, closing(open_store(other)) as same:
        assert one.identity() == same.identity()


def test_device_is_never_removed(device: str) -> None:
    with closing(open_store(device, writable=True)) as store:
        assert isinstance(store, BlockDevice)
        store.remove()
        store.flush_name()
        store.require_name()
    assert os.path.exists(device)


def test_device_that_an_image_names_in_its_own_directory_is_not_opened(device: str, tmp_path: Path) -> None:
    os.mknod(tmp_path / "base", os.stat(device).st_mode, os.stat(device).st_rdev)
    image = tmp_path / "over.qcow2"
    qcow2c.create(image, MIB, backing_file="base", backing_fmt="raw")
    with pytest.raises(qcow2c.GateRefused, match="it is a device"):
        qcow2c.open(image)
    for gate in ("any", [tmp_path]):
        with qcow2c.open(image, gate=gate) as opened:
            assert opened.pread(4, 0) == b"old "


class TestBlockDevices(WritableStoreContract):
    make = staticmethod(device_with)
