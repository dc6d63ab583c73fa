"""`Image` as a file, across threads, and its snapshots."""

from __future__ import annotations

import io
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import CorruptMetadata, LimitExceeded, UsageError
from tests.building import Builder, deflate


@pytest.fixture
def built() -> tuple[bytes, bytes]:
    """An image of 300 clusters, every third with data, and its content."""
    builder = Builder(300 * 512 + 77, cluster_bits=9)
    content = bytearray(300 * 512 + 77)
    for cluster in range(0, 300, 3):
        data = random.Random(cluster).randbytes(256) * 2
        content[cluster * 512 : cluster * 512 + 512] = data
        if cluster % 2:
            builder.data(cluster, data)
        else:
            builder.compressed(cluster, deflate(data), inside=cluster)
    return builder.build(), bytes(content)


def test_it_reads_like_a_file(built: tuple[bytes, bytes]) -> None:
    image_bytes, content = built
    with qcow2c.open(image_bytes) as image:
        assert image.size() == len(content)
        assert image.readable() and image.seekable() and not image.writable()
        assert image.read(1000) == content[:1000]
        assert image.tell() == 1000
        assert image.seek(-500, os.SEEK_CUR) == 500
        assert image.read(10) == content[500:510]
        assert image.seek(-10, os.SEEK_END) == len(content) - 10
        assert image.read() == content[-10:]
        assert image.read(5) == b""
        image.seek(0)
        assert image.readall() == content
        assert image.seek(len(content) + 100) == len(content) + 100
        assert image.read(1) == b""


def test_it_works_under_a_buffered_reader(built: tuple[bytes, bytes]) -> None:
    image_bytes, content = built
    reader = io.BufferedReader(qcow2c.open(image_bytes), 1000)
    assert reader.read(7) == content[:7]
    reader.seek(100_001)
    assert reader.peek(1)[:1] == content[100_001:100_002]
    assert reader.read() == content[100_001:]


def test_positional_reads_end_with_the_disk(built: tuple[bytes, bytes]) -> None:
    image_bytes, content = built
    with qcow2c.open(image_bytes) as image:
        assert image.pread(100, len(content) - 5) == content[-5:]
        assert image.pread(100, len(content) + 5) == b""
        buffer = bytearray(b"?" * 20)
        assert image.readinto_at(buffer, len(content) - 5) == 5
        assert bytes(buffer) == content[-5:] + b"?" * 15


@pytest.mark.parametrize(("length", "offset"), [(1, -1), (-1, 0), (-1, 512)])
def test_negative_positions_and_lengths_are_usage_errors(length: int, offset: int) -> None:
    with qcow2c.open(Builder().build()) as image, pytest.raises(UsageError, match="negative"):
        image.pread(length, offset)


def test_bad_seeks_and_offsets_are_usage_errors() -> None:
    with qcow2c.open(Builder().build()) as image:
        with pytest.raises(UsageError):
            image.seek(-1)
        with pytest.raises(UsageError):
            image.seek(0, 9)
        with pytest.raises(UsageError):
            image.readinto_at(bytearray(1), -1)


def test_a_closed_image_reads_nothing(built: tuple[bytes, bytes]) -> None:
    image = qcow2c.open(built[0])
    image.pread(100, 512 * 3)
    image.close()
    image.close()
    for use in (
        lambda: image.pread(100, 512 * 3),
        lambda: image.read(1),
        lambda: image.seek(0),
        image.tell,
        lambda: image.readinto_at(bytearray(1), 0),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_many_threads_read_at_once(built: tuple[bytes, bytes]) -> None:
    image_bytes, content = built
    with qcow2c.open(io.BytesIO(image_bytes)) as image:
        image.layer.l2_tables_limit = 2

        def reads(seed: int) -> bool:
            chosen = random.Random(seed)
            for _ in range(300):
                offset, length = chosen.randrange(len(content)), chosen.randrange(3000)
                if image.pread(length, offset) != content[offset : offset + length]:
                    return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(reads, range(16)))


def test_snapshots_read_as_they_were_taken() -> None:
    builder = Builder(cluster_bits=12)
    builder.data(0, b"before")
    builder.snapshot(b"first", id_str=b"7", disk_size=3 * 4096)
    builder.data(0, b"after")
    with qcow2c.open(builder.build()) as image:
        assert list(image.snapshots) == ["first"] and len(image.snapshots) == 1
        snapshot = image.snapshots["first"]
        assert image.snapshots["7"].record is snapshot.record
        assert (snapshot.id, snapshot.name, snapshot.disk_size, snapshot.vm_state_size) == ("7", "first", 12288, 0)
        assert "first" in repr(snapshot) and image.snapshots.list() == (snapshot,)
        with pytest.raises(KeyError):
            image.snapshots["second"]
        with snapshot.open() as then:
            assert then.size() == 3 * 4096
            assert then.read(6) == b"before"
            assert then.backing is None
        assert image.pread(5, 0) == b"after"
        assert image.geometry.cluster_size == 4096


def test_a_broken_snapshot_does_not_open_except_to_salvage() -> None:
    builder = Builder(cluster_bits=12)
    builder.data(0, b"x")
    builder.snapshot(b"bad", l1_table_offset=4096 + 512)
    image_bytes = builder.build()
    with qcow2c.open(image_bytes) as image, pytest.raises(CorruptMetadata, match="not cluster-aligned"):
        image.snapshots["bad"].open()
    with qcow2c.open(image_bytes, on_error="zero") as image, image.snapshots["bad"].open() as then:
        assert then.notices[0].rule == "snapshot.l1_table_offset"


def vm_builder(vm_state_size: int) -> Builder:
    builder = Builder(4 * 4096, cluster_bits=12)
    builder.data(0, b"disk")
    builder.l1.append(0)
    state = b"registers and memory"
    for cluster in range(2):
        builder.data(512 + cluster, state[cluster * 10 :] * 100)
    builder.fields["l1_size"] = 2
    builder.fields["l1_table_offset"] = builder.allocate(16)
    builder.snapshot(b"running", vm_state_size=vm_state_size)
    return builder


def test_the_vm_state_lies_behind_the_disk() -> None:
    with qcow2c.open(vm_builder(5000).build()) as image:
        snapshot = image.snapshots["running"]
        assert snapshot.vm_state_size == 5000
        state = snapshot.vm_state()
        expected = (b"registers and memory" * 100).ljust(4096, b"\0") + (b"and memory" * 100)[:904]
        assert state.read() == expected
        assert state.seek(10) == 10
        assert state.read(10) == b"and memory"
        assert state.seek(-1, os.SEEK_END) == 4999


def test_a_vm_state_larger_than_its_mapping_is_refused() -> None:
    with qcow2c.open(vm_builder(1 << 40).build()) as image, pytest.raises(LimitExceeded, match="VM state"):
        image.snapshots["running"].vm_state()


def test_the_size_is_a_method_and_the_same_for_those_who_seek(built: tuple[bytes, bytes]) -> None:
    image_bytes, content = built
    with qcow2c.open(image_bytes) as image:
        assert image.size() == image.seek(0, os.SEEK_END) == len(content)
        assert not hasattr(io.BufferedReader(image), "size")


def test_extents_are_those_of_map(examples: Path) -> None:
    with qcow2c.open(examples / "demo.qcow2") as image:
        whole = list(image.extents())
        assert whole == list(qcow2c.map(image)) == list(qcow2c.map(examples / "demo.qcow2"))
        first: qcow2c.Extent = next(image.extents(4096, length=512))
        assert (first.start, first.length, first.offset) == (4096, 512, (whole[0].offset or 0) + 4096)
        with image.snapshots["before-update"].open() as before:
            assert list(before.extents()) != whole
        for start, length in ((-1, None), (0, -1)):
            with pytest.raises(UsageError, match="negative"):
                image.extents(start, length)
    with pytest.raises(UsageError, match="closed"):
        image.extents()


def test_extents_show_what_was_just_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qcow2c.create(path, 1 << 20)
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"x" * 65536, 65536)
        assert [(one.start, one.data) for one in image.extents()] == [(0, False), (65536, True), (131072, False)]
