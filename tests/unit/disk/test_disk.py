"""A disk as commands see it: raw or qcow2, whole sectors, and the snapshot that was meant."""

from __future__ import annotations

import pytest

from qcow2c.disk.disk import SnapshotKey, open_disk
from qcow2c.errors import UnsupportedFeature, UsageError
from qcow2c.storage.sources import Memory
from tests.building import Builder

SIZE = 4096


def with_snapshots() -> bytes:
    builder = Builder(4 * SIZE)
    builder.data(0, b"first")
    builder.snapshot(b"2", id_str=b"1")
    builder.data(0, b"second")
    builder.snapshot(b"named", id_str=b"2")
    builder.data(0, b"now")
    return builder.build()


@pytest.mark.parametrize(("length", "size"), [(0, 0), (1, 512), (512, 512), (700, 1024)])
def test_a_raw_disk_is_rounded_up_to_whole_sectors(length: int, size: int) -> None:
    with open_disk(b"x" * length, image_format="raw") as disk:
        assert (disk.size, disk.image_format, disk.image, disk.backing_format) == (size, "raw", None, None)
        buffer = bytearray(b"?" * size)
        disk.read_into(memoryview(buffer), 0)
    assert buffer == (b"x" * length).ljust(size, b"\0")


def test_the_format_is_detected_unless_it_is_given() -> None:
    image = Builder(4 * SIZE).build()
    with open_disk(image) as disk:
        assert (disk.image_format, disk.size) == ("qcow2", 4 * SIZE)
    with open_disk(image, image_format="raw") as disk:
        assert disk.size == len(image)
    with pytest.raises(UnsupportedFeature, match="vmdk"), open_disk(b"KDMV".ljust(512, b"\0")):
        pass


def test_what_lies_below_has_a_format() -> None:
    builder = Builder(4 * SIZE)
    for below, name in ((bytes(512), "raw"), (Builder(SIZE).build(), "qcow2")):
        with open_disk(builder.build(), backing=below) as disk:
            assert disk.backing_format == name


@pytest.mark.parametrize(
    ("snapshot", "content"),
    [
        (None, b"now"),
        ("1", b"first"),
        ("2", b"second"),
        ("named", b"second"),
        (SnapshotKey(name="2"), b"first"),
        (SnapshotKey(id="2", name="named"), b"second"),
    ],
)
def test_a_snapshot_is_meant_by_its_id_then_by_its_name(snapshot: str | SnapshotKey | None, content: bytes) -> None:
    with open_disk(with_snapshots(), snapshot=snapshot) as disk:
        buffer = bytearray(len(content))
        disk.read_into(memoryview(buffer), 0)
    assert buffer == content


@pytest.mark.parametrize("snapshot", ["3", SnapshotKey(id="1", name="named")])
def test_a_snapshot_that_is_not_there_is_refused(snapshot: str | SnapshotKey) -> None:
    with pytest.raises(UsageError, match="Can't find snapshot"), open_disk(with_snapshots(), snapshot=snapshot):
        pass
    with pytest.raises(UsageError, match="does not support"), open_disk(b"raw", snapshot="1", image_format="raw"):
        pass


def test_a_store_of_the_caller_stays_open() -> None:
    data = bytearray(Builder(4 * SIZE).build())
    store = Memory(data)
    with open_disk(store):
        pass
    assert store.pread(4, 0) == b"QFI\xfb"
