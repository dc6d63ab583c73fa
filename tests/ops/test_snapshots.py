"""Internal snapshots are taken, applied, deleted and renamed: on files, on open images, and on bad images."""

from __future__ import annotations

import gc
import io
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c import structs
from qcow2c.errors import (
    CorruptMetadata,
    LimitExceeded,
    NoSuchSnapshot,
    Qcow2Error,
    StoreError,
    UnsupportedFeature,
    UsageError,
)
from qcow2c.format import derived, layout
from qcow2c.format.header import Header
from qcow2c.format.tables import L1_COPIED, L2_COPIED
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.structs import Limit
from tests.building import Builder, packed_words

KIB = 1024
SIZE = 64 * KIB


def made(size: int = SIZE, **options: Any) -> bytearray:
    data = bytearray()
    qcow2c.create(data, size, cluster_size=options.pop("cluster_size", 4096), **options)
    return data


def write(data: bytearray, content: bytes, at: int = 0) -> None:
    with qcow2c.open(data, "r+") as image:
        image.pwrite(content, at)


def disk(data: bytearray, length: int = 10) -> bytes:
    with qcow2c.open(data) as image:
        return bytes(image.pread(length, 0))


def listed(data: bytearray) -> list[tuple[str, str]]:
    with qcow2c.open(data) as image:
        return [(snapshot.id, snapshot.name) for snapshot in image.snapshots.list()]


# --- by name and by ID ----------------------------------------------------------------------------------------------


def test_a_snapshot_is_taken_renamed_applied_and_deleted() -> None:
    data = made()
    write(data, b"first")
    assert qcow2c.snapshots.create(data, "one", date=1_700_000_000.25) == "1"
    write(data, b"later")
    assert qcow2c.snapshots.create(data, "two") == "2"
    with qcow2c.open(data) as image:
        record = image.snapshots["one"].record
        assert (record.date_sec, record.date_nsec) == (1_700_000_000, 250_000_000)
        assert (record.disk_size, record.vm_state_size, record.icount) == (SIZE, 0, 0)
        assert image.snapshots["two"].record.date_sec > 1_700_000_000
    qcow2c.snapshots.rename(data, "one", "début")
    assert listed(data) == [("1", "début"), ("2", "two")]
    qcow2c.snapshots.apply(data, "1")
    assert disk(data, 5) == b"first"
    qcow2c.snapshots.delete(data, "two")
    assert listed(data) == [("1", "début")]
    assert qcow2c.check(data).exit_code == 0


def test_a_key_is_an_id_or_a_name_in_the_order_of_the_operation() -> None:
    data = made()
    for content, name in ((b"aaa", "2"), (b"bbb", "x"), (b"ccc", "x")):
        write(data, content)
        qcow2c.snapshots.create(data, name)
    qcow2c.snapshots.apply(data, "2")
    assert disk(data, 3) == b"bbb"
    qcow2c.snapshots.apply(data, "x")
    assert disk(data, 3) == b"bbb"
    qcow2c.snapshots.apply(data, "2", by=("name",))
    assert disk(data, 3) == b"aaa"
    qcow2c.snapshots.rename(data, "3", "y")
    qcow2c.snapshots.delete(data, "2")
    assert listed(data) == [("2", "x"), ("3", "y")]
    with pytest.raises(NoSuchSnapshot):
        qcow2c.snapshots.delete(data, "2", by=("name",))
    qcow2c.snapshots.delete(data, "2")
    assert listed(data) == [("3", "y")]


@pytest.mark.parametrize("act", ["apply", "delete", "rename"])
def test_an_unknown_snapshot_changes_nothing(act: str) -> None:
    data = made()
    before = bytes(data)
    with pytest.raises(NoSuchSnapshot, match="'\\\\ud800' not found"):
        getattr(qcow2c.snapshots, act)(data, "\ud800", *(["new"] if act == "rename" else []))
    assert data == before


@pytest.mark.parametrize(
    ("ids", "new"),
    [
        ([b"7", b"3"], "8"),
        ([b"x"], "1"),
        ([b" +41abc"], "42"),
        ([b"-5"], "1"),
        ([b"99999999999999999999999"], "0"),
    ],
)
def test_a_new_id_follows_the_largest_as_a_c_program_reads_it(ids: list[bytes], new: str) -> None:
    builder = Builder(4096, cluster_bits=9)
    for id_str in ids:
        builder.snapshot(b"s", id_str=id_str)
    data = bytearray(builder.build())
    assert qcow2c.snapshots.create(data, "new") == new


def test_names_are_bytes_that_are_cut_off_where_qemu_does_so() -> None:
    data = made()
    qcow2c.snapshots.create(data, "")
    qcow2c.snapshots.create(data, "\udcff\udcfe")
    qcow2c.snapshots.create(data, "ä" * 200)
    assert [name for _, name in listed(data)] == ["", "\udcff\udcfe", "ä" * 127 + "\udcc3"]
    qcow2c.snapshots.delete(data, "")
    qcow2c.snapshots.rename(data, "\udcff\udcfe", "b" * 300)
    assert [name for _, name in listed(data)] == ["b" * 255, "ä" * 127 + "\udcc3"]


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_cannot_be_stored_is_refused(name: str) -> None:
    data = made()
    qcow2c.snapshots.create(data, "one")
    before = bytes(data)
    with pytest.raises(UsageError, match="cannot be the name of a snapshot"):
        qcow2c.snapshots.create(data, name)
    with pytest.raises(UsageError, match="cannot be the name of a snapshot"):
        qcow2c.snapshots.rename(data, "one", name)
    assert data == before


@pytest.mark.parametrize("date", [-1.0, 2.0**32, float("nan"), float("inf")])
def test_a_date_that_cannot_be_stored_is_refused(date: float) -> None:
    with pytest.raises(UsageError, match="seconds after 1970"):
        qcow2c.snapshots.create(made(), "x", date=date)


def test_what_nobody_knows_of_a_record_stays() -> None:
    builder = Builder(4096, cluster_bits=9)
    extra = structs.SNAPSHOT_EXTRA_DATA.build({"vm_state_size_large": 0, "disk_size": 4096, "icount": 5})
    builder.snapshot(b"old", extra_data=extra + b"from the future", vm_clock_nsec=77)
    data = bytearray(builder.build())
    qcow2c.snapshots.create(data, "new")
    qcow2c.snapshots.rename(data, "old", "a longer name")
    with qcow2c.open(data) as image:
        record = image.snapshots["a longer name"].record
        assert record.extra_data == extra + b"from the future"
        assert (record.vm_clock_nsec, record.icount, record.id_str) == (77, 5, b"1")


# --- copied bits, sizes, empty disks --------------------------------------------------------------------------------


def test_copied_bits_of_a_snapshot_are_not_believed() -> None:
    """QEMU copies the L1 table before it clears them."""
    data = made()
    write(data, b"x" * SIZE)
    qcow2c.snapshots.create(data, "one")
    with qcow2c.open(data) as image:
        record = image.snapshots["one"].record
    at, count = record.l1_table_offset, record.l1_size
    words = layout.words(bytes(data[at : at + 8 * count]))
    data[at : at + 8 * count] = packed_words([word | L1_COPIED for word in words])
    qcow2c.snapshots.apply(data, "one")
    assert qcow2c.check(data).exit_code == 0
    write(data, b"y" * 100)
    with qcow2c.open(data) as image:
        assert image.snapshots["one"].open().pread(SIZE, 0) == b"x" * SIZE


def test_a_disk_without_a_cluster_and_one_without_a_size() -> None:
    for size in (0, SIZE):
        data = made(size)
        qcow2c.snapshots.create(data, "empty")
        qcow2c.snapshots.create(data, "empty, too")
        qcow2c.snapshots.apply(data, "empty")
        qcow2c.snapshots.delete(data, "empty")
        assert qcow2c.check(data).exit_code == 0 and len(listed(data)) == 1


def test_space_is_given_back() -> None:
    class Punched(WritableMemory):
        def punch(self, offset: int, length: int) -> None:
            holes.append((offset, length))

    holes: list[tuple[int, int]] = []
    data = made()
    write(data, b"x" * SIZE)
    qcow2c.snapshots.create(data, "full")
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"y" * SIZE, 0)
    qcow2c.snapshots.delete(Punched(data), "full")
    assert sum(length for _, length in holes) >= SIZE


# --- refused --------------------------------------------------------------------------------------------------------


def test_an_image_with_an_external_data_file_cannot_have_snapshots() -> None:
    data = bytearray(Builder(4096, incompatible=4, extensions=[]).build())
    for act in ("create", "apply", "delete"):
        with (
            pytest.raises(UnsupportedFeature, match="external data file")
            if act != "delete"
            else pytest.raises(NoSuchSnapshot)
        ):
            getattr(qcow2c.snapshots, act)(data, "x")


def with_bitmap() -> bytearray:
    data = made()
    qcow2c.snapshots.create(data, "one")
    with qcow2c.open(data, "r+") as image, image.engine.changing_bitmaps() as edit:
        edit.add("bits", 4096, enabled=True)
    return data


def test_an_image_with_bitmaps_does_not_go_back_but_all_else_is_possible() -> None:
    data = with_bitmap()
    before = bytes(data)
    for key in ("one", "unknown"):
        with pytest.raises(UsageError, match="Device has active dirty bitmaps"):
            qcow2c.snapshots.apply(data, key)
    assert data == before
    qcow2c.snapshots.create(data, "two")
    qcow2c.snapshots.delete(data, "one")
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"noted", 0)
        image.snapshots.create("three")
        image.pwrite(b"noted, too", 40960)
        with pytest.raises(UsageError, match="dirty bitmaps"):
            image.snapshots.apply("two")
    with qcow2c.open(data) as image:
        assert [start for start, _ in image.bitmaps.find("bits").ranges()] == [0, 40960]
    assert qcow2c.check(data).exit_code == 0


def test_a_broken_bitmap_directory_does_not_let_the_disk_go_back() -> None:
    data = with_bitmap()
    extension = Header.load(Memory(bytes(data))).bitmaps
    assert extension is not None
    at = extension.bitmap_directory_offset + derived.BITMAP_DIRECTORY_HEADER["name_size"].offset
    data[at] = 0xFF
    with pytest.raises(CorruptMetadata):
        qcow2c.snapshots.apply(data, "one")
    before = bytes(data)
    with pytest.raises(CorruptMetadata):
        qcow2c.snapshots.create(data, "two")
    assert data == before


def test_no_snapshot_is_taken_where_check_refuses_the_bitmaps_extension() -> None:
    data = with_bitmap()
    header = Header.load(Memory(bytes(data)))
    (found,) = (part for part in header.extensions if part.type == structs.ExtensionType.BITMAPS)
    at = found.span.end - 8  # The offset of the directory.
    data[at : at + 8] = (int.from_bytes(data[at : at + 8]) + 1).to_bytes(8)
    before = bytes(data)
    assert "not cluster-aligned" in (qcow2c.check(before).failed or "")
    with pytest.raises(CorruptMetadata):
        qcow2c.snapshots.create(data, "two")
    assert data == before


def records(count: int, *, name: bytes = b"", extra: bytes = b"") -> bytes:
    """Return an image of size 0 with many snapshots."""
    builder = Builder(0, cluster_bits=16)
    plain = structs.SNAPSHOT_EXTRA_DATA.build({"vm_state_size_large": 0, "disk_size": 0, "icount": 0})
    builder.snapshot(name, extra_data=plain + extra, l1_table_offset=0, l1_size=0)
    for offset in [offset for offset in builder.parts if offset]:
        builder.refcounts[offset >> 16] = 0
    builder.snapshots *= count
    return builder.build()


def test_there_are_no_more_snapshots_than_qemu_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limit, "SNAPSHOTS", 500)  # Of 65536, which hostile images have.
    data = bytearray(records(500))
    before = bytes(data)
    with pytest.raises(LimitExceeded, match="500 snapshots"):
        qcow2c.snapshots.create(data, "one more")
    assert data == before
    qcow2c.snapshots.delete(data, "1", trust=True)
    assert qcow2c.snapshots.create(data, "the last", trust=True) == "2"


def test_the_snapshot_table_does_not_become_larger_than_qemu_reads() -> None:
    long = records(1024, name=b"n" * 64871, extra=b"e" * 600)
    data = bytearray(long)
    with pytest.raises(LimitExceeded, match="would exceed 67108864 bytes"):
        qcow2c.snapshots.create(data, "n" * 255)
    assert data == long


def hostile_l1(**fields: Any) -> bytearray:
    builder = Builder(64 * 512, cluster_bits=9)
    builder.data(0, b"data")
    builder.snapshot(b"one")
    builder.snapshot(b"bad", id_str=b"2", **fields)
    return bytearray(builder.build())


def low_refcounts() -> bytearray:
    builder = Builder(64 * 512, cluster_bits=9)
    offset = builder.data(0, b"data")
    builder.snapshot(b"bad", id_str=b"2")
    builder.refcounts[offset // 512] = 1
    return bytearray(builder.build())


def wild_entries() -> bytearray:
    builder = Builder(64 * 512, cluster_bits=9)
    builder.data(0, b"data")
    builder.snapshot(b"bad", id_str=b"2")
    builder.entry(5, (1 << 55) | L2_COPIED)
    builder.l1[0] |= 0
    return bytearray(builder.build())


def wild_tables() -> bytearray:
    builder = Builder(128 * 512, cluster_bits=9)
    builder.data(0, b"data")
    builder.snapshot(b"bad", id_str=b"2")
    builder.l1[1] = (1 << 54) | L1_COPIED
    return bytearray(builder.build())


def wild_compressed() -> bytearray:
    builder = Builder(64 * 512, cluster_bits=9)
    builder.snapshot(b"bad", id_str=b"2")
    builder.entry(5, (1 << 62) | (1 << 50))
    return bytearray(builder.build())


HOSTILE: dict[str, Callable[[], bytearray]] = {
    "past the end": lambda: hostile_l1(l1_table_offset=1 << 40),
    "far past the end": lambda: hostile_l1(l1_table_offset=(1 << 64) - 512),
    "misaligned": lambda: hostile_l1(l1_table_offset=513),
    "on the header": lambda: hostile_l1(l1_table_offset=0),
    "on the active L1 table": lambda: hostile_l1(l1_table_offset=512),
    "too long": lambda: hostile_l1(l1_size=(1 << 32) - 1),
    "too short": lambda: hostile_l1(l1_size=0),
    "for a huge disk": lambda: hostile_l1(disk_size=1 << 62),
    "refcounts too low": low_refcounts,
    "entries that lead nowhere": wild_entries,
    "tables that are nowhere": wild_tables,
    "compressed data that is nowhere": wild_compressed,
}


@pytest.mark.parametrize("act", ["create", "apply", "delete", "rename"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_image_is_refused_and_nothing_is_written(case: str, act: str) -> None:
    data = HOSTILE[case]()
    before = bytes(data)
    words = {"create": ("new",), "rename": ("2", "new")}.get(act, ("2",))
    with pytest.raises(CorruptMetadata):
        getattr(qcow2c.snapshots, act)(data, *words)
    assert data == before


def test_what_was_never_counted_cannot_be_let_go_of() -> None:
    builder = Builder(64 * 512, cluster_bits=9)
    offset = builder.data(0, b"data")
    builder.snapshot(b"bad")
    builder.refcounts[offset // 512] = 0
    data = bytearray(builder.build())
    before = bytes(data)
    with pytest.raises(CorruptMetadata, match="has fewer references than are to be taken away"):
        qcow2c.snapshots.delete(data, "bad", trust=True)
    assert data == before


def test_a_snapshot_table_that_cannot_be_read_is_not_changed() -> None:
    builder = Builder(4096, cluster_bits=9)
    builder.snapshot(b"bad", extra_data=bytes(2000))
    data = bytearray(builder.build())
    with pytest.raises(CorruptMetadata, match="extra data"):
        qcow2c.snapshots.create(data, "new", trust=True)


@pytest.mark.parametrize("act", ["create", "apply", "delete", "rename"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_image_that_is_trusted_ends_in_an_error_of_the_tree_at_worst(case: str, act: str) -> None:
    data = HOSTILE[case]()
    words = {"create": ("new",), "rename": ("2", "new")}.get(act, ("2",))
    try:
        getattr(qcow2c.snapshots, act)(data, *words, trust=True)
    except Qcow2Error as error:
        assert str(error)
    with qcow2c.open(data) as image:
        assert image.pread(4, 0) == (b"data" if "compressed" not in case else bytes(4))


# --- on an open image -----------------------------------------------------------------------------------------------


def test_an_open_image_goes_on_after_each_change() -> None:
    data = made()
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"first", 0)
        one = image.snapshots.create("one", date=5)
        assert (one.id, one.name, one.record.date_sec) == ("1", "one", 5)
        image.pwrite(b"later", 0)
        two = image.snapshots.create("two")
        image.pwrite(b"now", 60 * KIB)
        image.snapshots.rename(one, "début")
        assert one.name == "début" and list(image.snapshots) == ["début", "two"]
        with one.open() as old:
            assert old.pread(5, 0) == b"first"
            image.snapshots.apply("1")
            assert image.pread(5, 0) == b"first" and image.pread(3, 60 * KIB) == bytes(3)
            image.pwrite(b"again", 0)
            assert old.pread(5, 0) == b"first"
        assert two.open().pread(5, 0) == b"later"
        image.snapshots.delete(two)
        assert image.snapshots.list() == (one,)
    assert disk(data, 5) == b"again" and listed(data) == [("1", "début")]
    assert qcow2c.check(data).exit_code == 0


def test_what_is_open_of_a_deleted_snapshot_says_so() -> None:
    data = made()
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"x" * 100, 0)
        snapshot, other = image.snapshots.create("gone"), image.snapshots.create("kept")
        disks, vm_state = (snapshot.open(), other.open()), snapshot.vm_state()
        assert disks[0].pread(1, 0) == b"x" and vm_state.read() == b""
        image.snapshots.delete("gone")
        image.pwrite(b"y" * SIZE, 0)
        for act in (lambda: disks[0].pread(1, 0), disks[0].readall, snapshot.open, snapshot.vm_state):
            with pytest.raises(UsageError, match=r"snapshot 'gone' of .* was deleted"):
                act()
        assert disks[1].pread(100, 0) == b"x" * 100
        for key in (snapshot, "gone", "1"):
            with pytest.raises(NoSuchSnapshot):
                image.snapshots.apply(key)


def test_a_deletion_that_fails_leaves_the_snapshot_readable() -> None:
    class Full(WritableMemory):
        full = False

        def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
            if self.full:
                raise StoreError("no space")
            super().pwrite(data, offset)

    store = Full(made())
    with qcow2c.open(store, "r+") as image:
        image.pwrite(b"x" * 100, 0)
        snapshot = image.snapshots.create("kept")
        opened = snapshot.open()
        image.flush()
        store.full = True
        with pytest.raises(StoreError, match="no space"):
            image.snapshots.delete("kept")
        store.full = False
        assert opened.pread(3, 0) == b"xxx" and image.snapshots.list() == (snapshot,)
        image.snapshots.delete("kept")
    assert listed(bytearray(store.pread(store.size(), 0))) == []


def test_the_size_of_the_disk_follows() -> None:
    builder = Builder(16 * 512, cluster_bits=9)
    builder.data(0, b"data")
    builder.snapshot(b"small", disk_size=3000)
    builder.snapshot(b"large", id_str=b"2", disk_size=20000)
    data = bytearray(builder.build())
    with qcow2c.open(data, "r+") as image:
        for name, size in (("small", 3000), ("large", 20000), ("small", 3000)):
            image.snapshots.apply(name)
            assert image.size() == size == len(image.pread(1 << 20, 0)) == image.seek(0, io.SEEK_END)
            image.pwrite(b"end", size - 3)
            with pytest.raises(UsageError, match="do not lie on the disk"):
                image.pwrite(b"end", size - 2)
        engine = image.engine
        for act in (
            lambda: engine.write(memoryview(b"late"), 19_000),
            lambda: engine.write_zeroes(19_000, 1000, unmap=True),
            lambda: engine.discard(10_240, 5120),
            lambda: engine.write_compressed(memoryview(bytes(512)), 10_240),
        ):
            with pytest.raises(UsageError, match="leave the disk of 3000 bytes"):
                act()  # As a call does that was let in before the disk became smaller.
    assert qcow2c.check(data).exit_code == 0


def test_an_overlay_sees_its_open_base_go_back() -> None:
    data, overlay = made(), bytearray()
    qcow2c.create(overlay, SIZE, backing_file="base", backing_fmt="qcow2", check_backing=False)
    with qcow2c.open(data, "r+") as base, qcow2c.open(overlay, backing=base) as top:
        base.pwrite(b"first", 0)
        base.snapshots.create("one")
        base.pwrite(b"later", 0)
        assert top.pread(5, 0) == b"later"
        base.snapshots.apply("one")
        assert top.pread(5, 0) == b"first"


def test_a_read_only_image_does_not_change_its_snapshots() -> None:
    data = made()
    qcow2c.snapshots.create(data, "one")
    with qcow2c.open(data) as image:
        for act in (lambda: image.snapshots.create("x"), lambda: image.snapshots.delete("one")):
            with pytest.raises(io.UnsupportedOperation):
                act()


def test_the_snapshots_of_an_image_keep_it_open() -> None:
    data = made()
    snapshots = qcow2c.open(data, "r+").snapshots
    assert snapshots.create("one") == snapshots["one"]
    state = snapshots["one"].open()
    with snapshots["one"].vm_state() as vm_state:
        del snapshots
        assert vm_state.read() == b""
    assert state.pread(1, 0) == b"\0"
    state.close()
    assert qcow2c.check(data).exit_code == 0


def test_nothing_that_an_image_holds_leads_back_to_it(tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "a", 1 << 20)
    gc.disable()
    try:
        image = qcow2c.open(tmp_path / "a", "r+")
        image.pwrite(b"x", 0)
        for name in ("one", "two"):
            image.snapshots.create(name)
        image.snapshots.delete("one")
        with image.snapshots["two"].open() as state:
            state.pread(1, 0)
        with pytest.raises(UsageError):
            image.pwrite(b"x", 1 << 20)
        image.layer.table(0)
        with pytest.warns(ResourceWarning, match="unclosed <Image '.*/a' r\\+>"):
            del image
        qcow2c.open(tmp_path / "a", "r+").close()
    finally:
        gc.enable()


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_an_image_is_marked_and_settled_again_around_each_change(*, lazy: bool, trust: bool) -> None:
    data = made(lazy_refcounts=lazy)
    with qcow2c.open(data, "r+", trust=trust) as image:
        for number in range(4):
            image.pwrite(bytes([number + 1]) * 9000, number * 5000)
            image.flush()
            assert Header.load(Memory(bytes(data))).dirty == lazy
            if number % 2:
                image.snapshots.create(f"s{number}")
                assert not Header.load(Memory(bytes(data))).dirty
    assert qcow2c.check(data).exit_code == 0


def undercounted() -> bytearray:
    """Return a dirty image; a cluster of its disk has refcount 0."""
    dirty = derived.INCOMPATIBLE_FEATURES["dirty"].mask
    builder = Builder(64 * 512, cluster_bits=9, incompatible=dirty, compatible_features=1)
    offset = builder.data(1, b"uncounted")
    builder.data(0, b"counted")
    builder.refcounts[offset // 512] = 0
    return bytearray(builder.build())


@pytest.mark.parametrize("first", ["nothing", "a write", "a failure"])
def test_what_was_not_counted_is_counted_once(first: str) -> None:
    data = undercounted()
    with qcow2c.open(data, "r+") as image:
        if first == "a write":
            image.pwrite(b"COUNTED", 0)
        elif first == "a failure":
            with pytest.raises(NoSuchSnapshot):
                image.snapshots.apply("none")
        image.snapshots.create("one")
        for number in range(30):
            image.pwrite(bytes([number]) * 512, (number + 10) * 512)
        image.snapshots.create("two")
        assert image.pread(9, 512) == b"uncounted"
        assert image.snapshots["one"].open().pread(9, 512) == b"uncounted"
    assert qcow2c.check(data).exit_code == 0


def test_an_image_whose_new_state_cannot_be_read_is_closed() -> None:
    class Dying(WritableMemory):
        header_writes = -1

        def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
            super().pwrite(data, offset)
            if not offset and self.header_writes >= 0:
                self.header_writes += 1

        def pread(self, length: int, offset: int) -> bytes:
            if self.header_writes > 0:
                raise StoreError("the disk has died")
            return super().pread(length, offset)

    store = Dying(made())
    image = qcow2c.open(store, "r+")
    image.pwrite(b"x", 0)
    image.flush()
    store.header_writes = 0
    with pytest.raises(StoreError, match="died"):
        image.snapshots.create("one")
    assert image.closed
    with pytest.raises(ValueError, match="closed"):
        image.pread(1, 0)
    store.header_writes = -1
    with qcow2c.open(store) as again:
        assert list(again.snapshots) == ["one"]


def test_threads_read_and_write_while_snapshots_come_and_go() -> None:
    data = made(256 * KIB)
    problems: list[BaseException] = []
    done = threading.Event()
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"k" * 4096, 0)
        kept = image.snapshots.create("kept").open()

        def hammer(index: int) -> None:
            chooser, at = random.Random(index), (index + 1) * 32 * KIB
            try:
                while not done.is_set():
                    content = bytes([chooser.randrange(256)]) * chooser.randrange(1, 9000)
                    image.pwrite(content, at)
                    assert image.pread(len(content), at) == content
                    assert kept.pread(4096, 0) == b"k" * 4096
                    for snapshot in image.snapshots.list():
                        try:
                            assert snapshot.open().pread(4096, 0) == b"k" * 4096
                        except UsageError as error:
                            assert "deleted" in str(error)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=hammer, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for number in range(12):
            image.snapshots.create(f"s{number}")
            if number % 2:
                image.snapshots.delete(f"s{number - 1}")
                image.snapshots.rename(f"s{number}", f"t{number}")
        done.set()
        for thread in threads:
            thread.join()
    assert not problems
    assert qcow2c.check(data).exit_code == 0


def test_to_open_an_image_and_look_at_its_snapshots_imports_no_numpy(tmp_path: Any) -> None:
    data = made()
    qcow2c.snapshots.create(data, "one")
    path = tmp_path / "image"
    path.write_bytes(data)
    code = f"""
import sys, qcow2c
for mode in ("r", "r+"):
    with qcow2c.open({str(path)!r}, mode) as image:
        with image.snapshots["one"].open() as disk:
            disk.pread(10, 0)
        assert "numpy" not in sys.modules and "qcow2c.atomic.successor" not in sys.modules, mode
"""
    subprocess.run([sys.executable, "-c", code], check=True)
