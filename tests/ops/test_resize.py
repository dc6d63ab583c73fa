"""A disk of another size: what it shows, which clusters it has, what is refused, and that nothing of it comes back."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.atomic import refcounts, size
from qcow2c.disk import size as disk_size
from qcow2c.disk.size import grow
from qcow2c.errors import (
    CorruptMetadata,
    LimitExceeded,
    MissingKey,
    StoreError,
    UnsupportedFeature,
    UsageError,
)
from qcow2c.format import derived
from qcow2c.format.tables import L1_COPIED, L2_COPIED, Kind
from qcow2c.ops import bitmaps, snapshots
from qcow2c.storage.sources import WritableMemory
from qcow2c.structs import Limit
from tests.building import Builder

KIB, MIB = 1024, 1 << 20


def new(size: int = 100 * KIB, **options: Any) -> bytearray:
    data = bytearray()
    qcow2c.create(data, size, **{"cluster_size": 4096, **options})
    return data


def write(data: bytearray, *pieces: tuple[int, bytes]) -> None:
    with qcow2c.open(data, "r+") as image:
        for offset, content in pieces:
            image.pwrite(content, offset)


def disk(data: Any, **how: Any) -> bytes:
    """Return the whole disk of a sound image; a copy is looked at, because what is looked at cannot grow."""
    frozen = bytes(data) if isinstance(data, bytearray) else data
    assert qcow2c.check(frozen).exit_code == 0
    with qcow2c.open(frozen, **{name: bytes(value) for name, value in how.items()}) as image:
        return image.pread(image.size(), 0)


def over(base: bytes, size: int, **options: Any) -> tuple[bytearray, dict[str, Any]]:
    """Return an empty image, and how to open it over a backing file of those contents."""
    below = new(len(base))
    write(below, (0, base))
    names = {"backing_file": "base", "backing_fmt": "qcow2", "check_backing": False}
    return new(size, **names, **options), {"backing": bytes(below)}


# --- what it shows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 4096, 33 * KIB + 512, 100 * KIB, 100 * KIB + 512, 104 * KIB, 5 * MIB])
@pytest.mark.parametrize("options", [{}, {"extended_l2": True, "cluster_size": 16384}, {"compat": "0.10"}])
def test_what_is_kept_stays_and_what_is_new_is_zeros(size: int, options: dict[str, Any]) -> None:
    content = random.Random(1).randbytes(100 * KIB)
    data = new(**options)
    write(data, (0, content))
    qcow2c.resize(data, size, shrink=True)
    assert disk(data) == content[:size].ljust(size, b"\0")
    qcow2c.resize(data, 6 * MIB)
    assert disk(data) == content[:size].ljust(6 * MIB, b"\0")


def test_what_is_cut_off_gives_its_clusters_back() -> None:
    data = new(4 * MIB)
    write(data, (0, b"x" * 4 * MIB))
    qcow2c.resize(data, MIB, shrink=True)
    found = qcow2c.check(bytes(data))
    assert found.allocated_clusters == 256 and not found.leaks
    write(data, (0, b"y" * MIB))


@pytest.mark.parametrize("size", [MIB, MIB + 512, 5 * KIB])
@pytest.mark.parametrize(
    "options", [{}, {"extended_l2": True, "cluster_size": 16384}, {"cluster_size": 512}, {"compat": "0.10"}]
)
def test_the_file_of_a_smaller_disk_is_short(
    size: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refcounts, "SCAN_CLUSTERS", 64)
    content = random.Random(4).randbytes(2 * MIB)
    data = new(4 * MIB, preallocation="full", **options)
    write(data, (0, content))
    tables = len(data) - 4 * MIB  # They lie in front of the data.
    qcow2c.resize(data, size, shrink=True)
    assert disk(data) == content[:size]
    assert len(data) <= size + tables + 20 * options.get("cluster_size", 4096)


def test_the_end_of_the_file_is_not_cut_off_where_nobody_knows_what_is_used() -> None:
    data = new(4 * MIB, preallocation="metadata")
    before = len(data)
    qcow2c.resize(data, MIB, shrink=True, trust=True)
    assert disk(data) == bytes(MIB) and len(data) >= before


def test_bytes_that_another_program_left_behind_the_end_do_not_show() -> None:
    data = new(6 * KIB, cluster_size=65536)
    write(data, (0, b"x" * 6 * KIB))
    with qcow2c.open(bytes(data)) as image:
        run = next(image.layer.runs(0, 512))
    assert run.kind is Kind.DATA
    data[run.host_offset + 6 * KIB : run.host_offset + 65536] = b"stale" + b"s" * (58 * KIB - 5)
    qcow2c.resize(data, 80 * KIB)
    assert disk(data) == b"x" * 6 * KIB + bytes(74 * KIB)


def test_a_cluster_whose_rest_is_zeros_stays_where_it_is() -> None:
    data = new(6 * KIB, cluster_size=65536)
    write(data, (0, b"x" * 6 * KIB))
    with qcow2c.open(bytes(data)) as image:
        before = next(image.layer.runs(0, 512))
    qcow2c.resize(data, 60 * KIB)
    with qcow2c.open(bytes(data)) as image:
        assert next(image.layer.runs(0, 512)) == before


def test_a_compressed_cluster_at_the_end_is_cut() -> None:
    data = new(64 * KIB, cluster_size=65536)
    with qcow2c.open(data, "r+") as image:
        image.write_compressed(b"packed! " * 8192, 0)
    qcow2c.resize(data, 512, shrink=True)
    with qcow2c.open(bytes(data)) as image:
        assert next(image.layer.runs(0, 512)).kind is Kind.DATA
    qcow2c.resize(data, 64 * KIB)
    assert disk(data) == (b"packed! " * 64).ljust(64 * KIB, b"\0")


def test_tables_of_a_vm_state_that_is_left_behind_the_disk_do_not_become_part_of_it() -> None:
    builder = Builder(16 * KIB, cluster_bits=9)
    state = builder.put(b"state".ljust(512, b"s"))
    table = builder.put((state | L2_COPIED).to_bytes(8, "big").ljust(512, b"\0"))
    builder.l1.append(table | L1_COPIED)
    builder.fields["l1_size"] = len(builder.l1)
    data = bytearray(builder.build())
    assert qcow2c.check(bytes(data)).exit_code == 0
    qcow2c.resize(data, 64 * KIB)
    assert disk(data) == bytes(64 * KIB)


@pytest.mark.parametrize("options", [{}, {"extended_l2": True, "cluster_size": 16384}])
@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
def test_a_longer_backing_file_does_not_show(options: dict[str, Any], preallocation: Any) -> None:
    base = random.Random(2).randbytes(300 * KIB)
    data, how = over(base, 50 * KIB + 512, **options)
    qcow2c.resize(data, 400 * KIB, preallocation=preallocation, **how)
    assert disk(data, **how) == base[: 50 * KIB + 512].ljust(400 * KIB, b"\0")
    with qcow2c.open(bytes(data), backing=False) as image:
        kinds = {run.kind for run in image.layer.runs(64 * KIB, 300 * KIB)}
    expected = {"off": Kind.ZERO, "metadata": Kind.ZERO_ALLOCATED}
    assert kinds == {expected.get(preallocation, Kind.DATA)}


def test_a_backing_file_that_ends_earlier_needs_nothing() -> None:
    data, how = over(b"x" * 50 * KIB, 60 * KIB)
    qcow2c.resize(data, 100 * KIB, **how)
    with qcow2c.open(bytes(data), **how) as image:
        assert {run.kind for run in image.layer.runs(0, 100 * KIB)} == {Kind.UNALLOCATED}


def test_version_2_has_no_zero_clusters_to_hide_a_backing_file() -> None:
    base = b"x" * 100 * KIB
    data, how = over(base, 50 * KIB, compat="0.10")
    before = bytes(data)
    with pytest.raises(UnsupportedFeature, match="Failed to zero out new clusters: Operation not supported"):
        qcow2c.resize(data, 80 * KIB, **how)
    assert data == before
    qcow2c.resize(data, 51 * KIB, **how)  # It is a matter of bytes.
    qcow2c.resize(data, 80 * KIB, preallocation="full", **how)
    assert disk(data, **how) == base[: 50 * KIB].ljust(80 * KIB, b"\0")


@pytest.mark.parametrize("cluster_size", [512, 65536])
@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
def test_what_is_new_has_its_clusters(tmp_path: Path, cluster_size: int, preallocation: Any) -> None:
    path = tmp_path / "disk.qcow2"
    qcow2c.create(path, 100 * KIB + 512, cluster_size=cluster_size)
    occupied = path.stat().st_blocks
    qcow2c.resize(path, 900 * KIB, preallocation=preallocation)
    grown = (path.stat().st_blocks - occupied) * 512
    assert grown >= 750 * KIB if preallocation != "metadata" else grown < 600 * KIB
    with qcow2c.open(path) as image:
        assert {run.kind for run in image.layer.runs(100 * KIB, 800 * KIB)} <= {Kind.DATA, Kind.UNALLOCATED}
        assert {run.kind for run in image.layer.runs(101 * KIB, 799 * KIB)} == {Kind.DATA}
    assert disk(path) == bytes(900 * KIB)
    before = path.stat().st_size
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"x" * 799 * KIB, 101 * KIB)
    assert path.stat().st_size == before


def test_many_tables_are_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "BATCH_BYTES", 1024)
    data = new(10 * KIB, cluster_size=512)
    qcow2c.resize(data, 700 * KIB, preallocation="metadata")
    assert disk(data) == bytes(700 * KIB)
    assert qcow2c.check(bytes(data)).allocated_clusters == 1380


def test_snapshots_keep_their_size_and_what_they_hold() -> None:
    data, content = new(), random.Random(3).randbytes(100 * KIB)
    write(data, (0, content))
    snapshots.create(data, "before")
    qcow2c.resize(data, 10 * KIB + 512, shrink=True)
    write(data, (0, b"y" * 6000))
    qcow2c.resize(data, 200 * KIB)
    assert disk(data) == (b"y" * 6000 + content[6000 : 10 * KIB + 512]).ljust(200 * KIB, b"\0")
    with qcow2c.open(bytes(data)) as image:
        assert image.snapshots["before"].open().pread(MIB, 0) == content
    snapshots.apply(data, "before")
    assert disk(data) == content


def test_bitmaps_follow() -> None:
    data = new(100 * KIB)
    bitmaps.add(data, "b", granularity=512)
    write(data, (KIB, b"x" * KIB), (98 * KIB, b"x" * KIB))
    qcow2c.resize(data, 200 * KIB)
    qcow2c.resize(data, 98 * KIB + 512, shrink=True)
    qcow2c.resize(data, 100 * KIB)
    with qcow2c.open(bytes(data)) as image:
        assert list(image.bitmaps.find("b").ranges()) == [(KIB, KIB), (98 * KIB, 512)]
    assert disk(data)[98 * KIB :] == b"x" * 512 + bytes(1536)


@pytest.mark.parametrize("raw", [False, True])
def test_an_external_data_file_has_the_size_of_the_disk(*, raw: bool) -> None:
    guest = bytearray()
    data = new(100 * KIB, data_file="data", data_file_raw=raw, guest_data=guest)
    how = {"data_file": guest}
    with qcow2c.open(data, "r+", **how) as image:  # type: ignore[arg-type]
        image.pwrite(b"x" * 100 * KIB, 0)
    qcow2c.resize(data, 33 * KIB + 512, shrink=True, **how)  # type: ignore[arg-type]
    assert guest == b"x" * (33 * KIB + 512)
    guest += b"stale" * 10_000
    for preallocation in ("off", "metadata", "falloc", "full"):
        size = len(disk(data, **how)) + 50 * KIB
        qcow2c.resize(data, size, preallocation=preallocation, **how)  # type: ignore[arg-type]
        assert disk(data, **how) == guest == (b"x" * (33 * KIB + 512)).ljust(size, b"\0")
    with qcow2c.open(bytes(data), data_file=bytes(guest)) as image:
        new_part = {run.kind for run in image.layer.runs(40 * KIB, 40 * KIB)}
    assert new_part == {Kind.DATA} if raw else Kind.UNALLOCATED in new_part


def test_an_open_image_knows_its_new_size() -> None:
    data = new()
    bitmaps.add(data, "b")
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"x" * KIB, 0)
        assert grow(image, 200 * KIB) and not grow(image, 200 * KIB) and not grow(image, KIB)
        assert image.size() == 200 * KIB
        image.pwrite(b"y", 200 * KIB - 1)
        disk_size.resize(image, KIB)
        with pytest.raises(UsageError, match="do not lie on the disk of 1024 bytes"):
            image.pwrite(b"y", 200 * KIB - 1)
    assert disk(data) == b"x" * KIB


def test_the_same_size_changes_nothing() -> None:
    data = new()
    write(data, (0, b"x" * KIB))
    before = disk(data)
    qcow2c.resize(data, 100 * KIB)
    assert disk(data) == before


# --- what is refused ------------------------------------------------------------------------------------------------


def version_2_with_snapshot() -> bytearray:
    data = new(compat="0.10")
    snapshots.create(data, "s")
    return data


def with_inconsistent_bitmap() -> bytearray:
    data = new()
    bitmaps.add(data, "b")
    copy = bytearray(data)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"x", 0)
        image.flush()
        copy[:] = data
    return copy


def external_with_snapshot() -> bytearray:
    builder = Builder(100 * KIB, incompatible=derived.INCOMPATIBLE_FEATURES["data_file"].mask)
    builder.snapshot(b"s")
    return bytearray(builder.build())


REFUSED: dict[str, tuple[Callable[[], bytearray], int, dict[str, Any], type[Exception], str]] = {
    "no size": (new, 0, {}, UsageError, "New image size must be positive"),
    "too large": (new, 1 << 63, {}, UsageError, "New image size must be positive"),
    "no sectors": (new, 200_000, {}, UsageError, "The new size must be a multiple of 512"),
    "less": (new, KIB, {}, UsageError, "what is behind 1024 is lost only with shrink=True"),
    "preallocation of nothing": (
        new,
        100 * KIB,
        {"preallocation": "full"},
        UsageError,
        "Preallocation can only be used for growing images",
    ),
    "an unknown mode": (new, MIB, {"preallocation": "most"}, UsageError, "Unsupported preallocation mode 'most'"),
    "version 2": (version_2_with_snapshot, MIB, {}, UnsupportedFeature, "Can't resize a v2 image which has snapshots"),
    "a bitmap": (with_inconsistent_bitmap, MIB, {}, UsageError, "Bitmap 'b' is inconsistent and cannot be used"),
    "snapshots outside": (
        external_with_snapshot,
        MIB,
        {"data_file": bytearray(100 * KIB)},
        UnsupportedFeature,
        "Can't resize an image with an external data file which has snapshots",
    ),
    "the L1 table": (new, 1 << 50, {}, LimitExceeded, r"Failed to grow the L1 table: File too large \(4294967296 b"),
    "another format": (
        lambda: bytearray(b"KDMV".ljust(512, b"\0")),
        MIB,
        {},
        UnsupportedFeature,
        "image '<bytearray>' has format 'vmdk', not qcow2 or raw",
    ),
    "encrypted": (
        lambda: bytearray(Builder(100 * KIB, crypt_method=1).build()),
        MIB,
        {},
        MissingKey,
        "no key was given",
    ),
}


@pytest.mark.parametrize(("make", "size", "how", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(
    make: Callable[[], bytearray], size: int, how: dict[str, Any], kind: type[Exception], words: str
) -> None:
    data = make()
    content = bytes(data)
    with pytest.raises(kind, match=words):
        qcow2c.resize(data, size, **how)
    assert data[:512] == content[:512]


def test_shrinking_is_no_place_for_preallocation() -> None:
    with qcow2c.open(new(), "r+") as image, pytest.raises(UsageError, match="can't be used for shrinking an image"):
        disk_size.resize(image, KIB, preallocation="full")


def test_more_clusters_than_anybody_checks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = new()
    monkeypatch.setattr(Limit, "CHECKED_CLUSTERS", 100)
    with pytest.raises(LimitExceeded, match="231 clusters are more than a file may have, 100"):
        qcow2c.resize(data, MIB, preallocation="metadata", trust=True)


class _Small(WritableMemory):
    """A file that cannot be longer than this."""

    limit = 0

    def pwrite(self, data: Any, offset: int) -> None:
        if offset + len(data) > self.limit:
            raise StoreError("no space left")
        super().pwrite(data, offset)


def test_space_that_was_not_enough_is_given_back() -> None:
    store = _Small(new())
    before = bytes(store.pread(MIB, 0))
    store.limit = 500 * KIB
    with pytest.raises(StoreError, match="no space left"):
        qcow2c.resize(store, 10 * MIB, preallocation="full")
    assert store.pread(MIB, 0) == before


def test_a_table_that_is_damaged_is_not_believed() -> None:
    data = new(100 * KIB)
    write(data, (0, b"x" * 512))
    with qcow2c.open(bytes(data)) as image:
        table = image.layer.l1_table[0] & ~L1_COPIED
    data[table + 24 * 8 : table + 25 * 8] = b"\xff" * 8
    with pytest.raises(CorruptMetadata):
        qcow2c.resize(data, 99 * KIB, shrink=True)


# --- raw files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preallocation", ["off", "falloc", "full"])
def test_a_raw_file_grows_by_zeros(tmp_path: Path, preallocation: Any) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 1000)
    qcow2c.resize(path, 100_001, preallocation=preallocation, image_format="raw")
    assert path.read_bytes() == b"x" * 1000 + bytes(99_001)
    assert (path.stat().st_blocks * 512 >= 98 * KIB) is (preallocation != "off")


def test_a_raw_file_is_cut() -> None:
    data = bytearray(b"x" * 1000)
    with pytest.raises(UsageError, match="has 1024 bytes"):
        qcow2c.resize(data, 1010)
    qcow2c.resize(data, 10, shrink=True)
    assert data == b"x" * 10
    with pytest.raises(UsageError, match="Unsupported preallocation mode: metadata"):
        qcow2c.resize(data, 1010, preallocation="metadata")


# --- how long the file is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
@pytest.mark.parametrize("kib", [512, 1024, 4096])
def test_a_full_image_that_is_made_smaller_has_a_shorter_file(cluster_size: int, kib: int) -> None:
    """Half of a disk gone is half of its clusters gone: the rest, and what describes it, lies without holes."""
    data = new(kib * KIB, cluster_size=cluster_size)
    write(data, (0, b"x" * kib * KIB))
    before = len(data)
    qcow2c.resize(data, kib * KIB // 2, shrink=True)
    assert len(data) <= before - kib * KIB // 2 + 4 * cluster_size // 64
    assert disk(data) == b"x" * (kib * KIB // 2)


FOOTER = b"appended by another program"


@pytest.mark.parametrize("size", [256 * KIB, 512 * KIB, 2 * MIB])
def test_what_is_appended_to_the_file_stays(size: int) -> None:
    data = new(512 * KIB, cluster_size=4096)
    write(data, (0, b"x" * 512 * KIB))
    ours = len(data)
    data += FOOTER
    qcow2c.resize(data, size, shrink=True)
    assert data[ours:].startswith(FOOTER)
    assert disk(data) == (b"x" * 512 * KIB)[:size].ljust(size, b"\0")
    qcow2c.resize(data, 128 * KIB, shrink=True, drop_trailing=True)
    assert FOOTER not in data and len(data) < ours // 2
    assert disk(data) == b"x" * 128 * KIB


def test_a_raw_disk_whose_guest_wrote_a_header_of_its_own_is_not_cut_off(tmp_path: Path) -> None:
    """A small image at the start of a large disk, which is taken for that image."""
    inner = new(MIB)
    write(inner, (0, b"y" * MIB))
    path = tmp_path / "disk.raw"
    outer = bytes(inner).ljust(8 * MIB, b"\0") + b"the rest of the disk" * 1000
    path.write_bytes(outer)
    qcow2c.resize(path, 64 * KIB, shrink=True)
    assert path.read_bytes()[8 * MIB :].startswith(outer[8 * MIB :])


def test_what_lies_behind_the_disk_in_a_data_file_stays(tmp_path: Path) -> None:
    path, data = tmp_path / "image", tmp_path / "data"
    qcow2c.create(path, MIB, data_file=str(data))
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"x" * MIB, 0)
    with data.open("ab") as file:
        file.write(FOOTER)
    qcow2c.resize(path, 512 * KIB, shrink=True)
    assert data.read_bytes() == b"x" * 512 * KIB + bytes(512 * KIB) + FOOTER
    qcow2c.resize(path, 256 * KIB, shrink=True, drop_trailing=True)
    assert data.read_bytes() == b"x" * 256 * KIB


@pytest.mark.parametrize("made", ["off", "metadata"])
@pytest.mark.parametrize("grown", ["falloc", "full"])
def test_a_write_to_what_was_preallocated_needs_no_more_space(tmp_path: Path, made: str, grown: str) -> None:
    """Also in the cluster that the old disk ended in."""
    path, size = tmp_path / "disk", 2000 * 1024
    qcow2c.create(path, size, preallocation=made)
    qcow2c.resize(path, size + 80 * 1024, preallocation=grown)  # type: ignore[arg-type]
    before = os.stat(path).st_blocks
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"x" * 80 * 1024, size)
    assert os.stat(path).st_blocks <= before
    assert qcow2c.check(path).exit_code == 0
