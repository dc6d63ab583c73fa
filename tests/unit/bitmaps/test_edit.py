"""Bitmaps: what is read of stored ones, and what changes when they are changed; everything else stays."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

import qcow2c
from qcow2c.bitmaps.edit import BitmapEdit, PlacedSpans, resized
from qcow2c.bitmaps.stored import store_clusters
from qcow2c.errors import CorruptMetadata, StoreError, UsageError
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange
from qcow2c.format.records import BitmapRecord
from qcow2c.format.tables import BITMAP_ALL_ONES, BITMAP_OFFSET
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Buffer
from qcow2c.structs import Limit
from tests.unit.bitmaps.images import KIB, MIB, bitmaps, change, dirty, marked, new_image, patched, with_writes


def test_a_cluster_of_ones_needs_no_data() -> None:
    data = new_image(16 * MIB, cluster_size=512)
    change(data, lambda edit: edit.add("a", 512), lambda edit: edit.add("b", 512, enabled=False))
    with_writes(data, (2 * MIB, 4 * MIB))
    change(data, lambda edit: edit.merge("b", edit.find("a")))
    assert list(bitmaps(data).find("b").table) == [0, 1, 1, 0, 0, 0, 0, 0]
    assert dirty(data, "b") == dirty(data, "a") == [(2 * MIB, 4 * MIB)]
    change(data, lambda edit: edit.enable("b"))
    with_writes(data, (2 * MIB, 512), (MIB, 512))
    assert dirty(data, "b") == [(MIB, 512), (2 * MIB, 4 * MIB)]
    assert 1 in bitmaps(data).find("b").table


def test_stale_bitmaps_are_gone_and_said_to_be() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    assert not bitmaps(data).stale
    data[95] &= 0xFE
    found = bitmaps(data)
    assert found.stale and len(found) == 0
    with qcow2c.open(data, "r+") as image, image.engine.changing_bitmaps() as edit:
        edit.add("b")
    assert [found.name for found in bitmaps(data)] == ["b"] and not bitmaps(data).stale
    assert qcow2c.check(bytes(data)).exit_code == 3


def test_a_broken_directory_is_refused_and_left_as_it_is() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    span = bitmaps(data)[0].record.span
    data[span.offset + 17] = 63
    with pytest.raises(CorruptMetadata, match="granularity_bits 63"):
        bitmaps(data)
    before = bytes(data)
    refused = pytest.raises(CorruptMetadata, match="granularity_bits 63")
    with qcow2c.open(data, "r+") as image, refused, image.engine.changing_bitmaps() as edit:
        edit.add("b")
    assert data == before
    torn = bytearray(before)
    torn[span.offset + 18] = 255
    with pytest.raises(CorruptMetadata, match="leaves the directory"):
        bitmaps(torn)


def test_actions_change_one_bitmap_and_leave_the_others() -> None:
    data = new_image()
    change(data, *[lambda edit, name=name: edit.add(name, 4096) for name in "abc"])
    with_writes(data, (0, 5000))
    change(data, lambda edit: edit.clear("a"), lambda edit: edit.enable("b", enabled=False))
    assert [(found.name, found.enabled) for found in bitmaps(data)] == [("a", True), ("b", False), ("c", True)]
    assert (dirty(data, "a"), dirty(data, "b"), dirty(data, "c")) == ([], [(0, 8192)], [(0, 8192)])
    with_writes(data, (MIB - 512, 512))
    change(data, lambda edit: edit.enable("b"), lambda edit: edit.remove("a"))
    assert [(found.name, found.enabled) for found in bitmaps(data)] == [("b", True), ("c", True)]
    assert (dirty(data, "b"), dirty(data, "c")) == ([(0, 8192)], [(0, 8192), (MIB - 4096, 4096)])
    change(data, lambda edit: edit.remove("c"), lambda edit: edit.remove("b"))
    store = Memory(bytes(data))
    assert Header.load(store).bitmaps is None and not Header.load(store).bitmaps_consistent


def test_nothing_is_written_where_nothing_changes() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    before = bytes(data)
    acts = (BitmapEdit.enable, BitmapEdit.clear, lambda edit, name: edit.merge(name, edit.find(name)))
    change(data, *[lambda edit, act=act: act(edit, "a") for act in acts])
    assert data == before


def test_what_is_made_and_unmade_in_one_go_leaves_nothing() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a", 512))
    with_writes(data, (0, 512))
    change(
        data,
        lambda edit: edit.add("b", 4096),
        lambda edit: edit.merge("b", edit.find("a")),
        lambda edit: edit.clear("b"),
        lambda edit: edit.remove("b"),
    )
    assert [found.name for found in bitmaps(data)] == ["a"]


def test_guest_writes_before_and_after_a_change_are_recorded() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a", 4096))
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"1", 0)
        with image.engine.changing_bitmaps() as edit:
            assert list(edit.find("a").ranges()) == [(0, 4096)]
            edit.add("b", 4096)
        image.pwrite(b"2", 40_960)
    assert dirty(data, "a") == [(0, 4096), (40_960, 4096)]
    assert dirty(data, "b") == [(40_960, 4096)]
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_a_change_that_is_given_up_leaves_the_bitmaps_and_no_leak() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a", 4096))
    with qcow2c.open(data, "r+") as image, pytest.raises(KeyError), image.engine.changing_bitmaps() as edit:
        edit.add("b")
        edit.remove("a")
        raise KeyError
    assert [found.name for found in bitmaps(data)] == ["a"]
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_a_header_without_room_leaves_no_leak() -> None:
    data = bytearray()
    qcow2c.create(data, MIB, cluster_size=512, backing_file="b" * 350, backing_fmt="raw", check_backing=False)
    refused = pytest.raises(UsageError, match="exceed the first cluster")
    with qcow2c.open(data, "r+", backing=False) as image, refused, image.engine.changing_bitmaps() as edit:
        edit.add("a")
    assert len(bitmaps(data)) == 0 and qcow2c.check(bytes(data)).exit_code == 0


class _FailingHeader(WritableMemory):
    """A file whose first sector cannot be written any more: it says so, and may write it all the same."""

    sound = True
    lands = False

    def pwrite(self, data: Buffer, offset: int) -> None:
        if offset or self.sound or self.lands:
            super().pwrite(data, offset)
        if not offset and not self.sound:
            self.sound = True
            raise StoreError("no more")


@pytest.mark.parametrize("lands", [False, True])
def test_where_the_header_fails_the_file_says_which_bitmaps_there_are(*, lands: bool) -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a", 4096))
    with_writes(data, (0, 1))
    store = _FailingHeader(data)
    with qcow2c.open(store, "r+") as image:
        with pytest.raises(StoreError), image.engine.changing_bitmaps() as edit:
            edit.clear("a")
            edit.add("b", 4096)
            store.sound, store.lands = False, lands
        image.pwrite(b"later", 40_960)
    assert [found.name for found in bitmaps(data)] == (["a", "b"] if lands else ["a"])
    assert dirty(data, "a") == ([(40_960, 4096)] if lands else [(0, 4096), (40_960, 4096)])
    assert qcow2c.check(bytes(data)).exit_code == 3


def test_only_removal_is_for_inconsistent_bitmaps() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"), lambda edit: edit.add("b"))
    data = marked(data, "a")
    for act in (
        lambda edit: edit.clear("a"),
        lambda edit: edit.enable("a"),
        lambda edit: edit.merge("a", edit.find("b")),
        lambda edit: edit.merge("b", edit.find("a")),
        lambda edit: edit.resize(2 * MIB),
    ):
        with pytest.raises(UsageError, match="Bitmap 'a' is inconsistent and cannot be used"):
            change(data, act)
    with_writes(data, (0, 1))
    assert dirty(data, "b") == [(0, 4096)] and bitmaps(data)[0].inconsistent
    change(data, lambda edit: edit.remove("a"))
    assert [found.name for found in bitmaps(data)] == ["b"]


def test_a_useless_table_of_an_inconsistent_bitmap_can_be_removed() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    record = bitmaps(data)[0].record
    data = patched(marked(data, "a"), record, 0, 1 << 60)
    change(data, lambda edit: edit.remove("a"))
    assert len(bitmaps(data)) == 0


WRONG = {
    "no name": (lambda edit: edit.add(""), "Bitmap name cannot be empty"),
    "taken": (lambda edit: edit.add("a"), "Bitmap already exists: a"),
    "no power of two": (lambda edit: edit.add("b", 1000), "Granularity must be power of 2 and at least 512"),
    "too fine": (lambda edit: edit.add("b", 256), "Granularity must be power of 2 and at least 512"),
    "negative": (lambda edit: edit.add("b", -4096), "Granularity must be power of 2 and at least 512"),
    "too coarse": (lambda edit: edit.add("b", 1 << 32), r"Granularity exceeds maximum \(2147483648 bytes\)"),
    "a long name": (lambda edit: edit.add("n" * 1024), r"Name length exceeds maximum \(1023 characters\)"),
    "a name in two": (lambda edit: edit.add("a\0b"), "Name has a byte 0"),
    "none to remove": (lambda edit: edit.remove("b"), "Dirty bitmap 'b' not found"),
    "none to clear": (lambda edit: edit.clear("b"), "Dirty bitmap 'b' not found"),
    "none to enable": (lambda edit: edit.enable("b"), "Dirty bitmap 'b' not found"),
    "none to merge into": (lambda edit: edit.merge("b", edit.find("a")), "Dirty bitmap 'b' not found"),
    "another size": (lambda edit: edit.merge("a", edit.find("a"), 512), "size is 1048576, source size is 512"),
    "no disk left": (lambda edit: edit.resize(0), "cannot be kept for a disk without bytes"),
    "too large a disk": (lambda edit: edit.resize(1 << 60), "would be too large"),
}


@pytest.mark.parametrize(("act", "complaint"), WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_refused(act: Callable[[BitmapEdit], None], complaint: str) -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    with pytest.raises(UsageError, match=complaint):
        change(data, act)
    assert [found.name for found in bitmaps(data)] == ["a"]


def test_version_2_and_disks_of_no_bytes_have_no_bitmaps() -> None:
    with pytest.raises(UsageError, match=r"Can't make bitmap 'a' persistent in .*: Cannot store .* in qcow2 v2 files"):
        change(new_image(compat="0.10"), lambda edit: edit.add("a"))
    with pytest.raises(UsageError, match="no bytes"):
        change(new_image(0), lambda edit: edit.add("a"))
    with pytest.raises(UsageError, match="Too much space will be occupied by the bitmap"):
        change(new_image(1 << 50, cluster_size=2 * MIB), lambda edit: edit.add("a", 512))


def test_there_is_room_for_so_many_bitmaps() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    with qcow2c.open(data, "r+") as image, image.engine.changing_bitmaps() as edit:
        known = edit.records[0]
        edit.records *= Limit.BITMAPS
        with pytest.raises(UsageError, match="Maximum number of persistent bitmaps is already reached"):
            edit.add("b")
        longest = BitmapRecord(known.span, 0, 1, 0, 1, 16, b"n" * 1023, b"")
        edit.records[1:] = [longest] * (Limit.BITMAP_DIRECTORY_BYTES // 1048)
        with pytest.raises(UsageError, match="Not enough space in the bitmap directory"):
            edit.add("b" * 1000)
        edit.records[1:] = []


@pytest.mark.parametrize(("cluster_size", "granularity"), [(512, 4096), (16384, 16384), (2 * MIB, 65536)])
def test_the_granularity_follows_from_the_cluster_size(cluster_size: int, granularity: int) -> None:
    data = new_image(cluster_size=cluster_size)
    change(data, lambda edit: edit.add("a"))
    assert bitmaps(data)[0].granularity == granularity


def test_a_source_that_cannot_be_read_leaves_the_target_and_no_leak() -> None:
    source = new_image(64 * MIB, cluster_size=512)
    change(source, lambda edit: edit.add("a", 512))
    with_writes(source, (0, 512), (60 * MIB, 512))
    broken = patched(source, bitmaps(source)[0].record, 30, 1 << 40)
    data = new_image(64 * MIB, cluster_size=512)
    change(data, lambda edit: edit.add("b", 512))
    with qcow2c.open(data, "r+") as image, image.engine.changing_bitmaps() as edit:
        with pytest.raises(CorruptMetadata, match="leaves the file"):
            edit.merge("b", bitmaps(broken)[0])
        edit.enable("b", enabled=False)
    assert dirty(data, "b") == [] and not bitmaps(data)[0].enabled
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_placed_clusters_go_in_groups_and_are_counted_as_runs() -> None:
    placed: list[int] = []

    def place(data: bytes) -> int:
        placed.append(len(data))
        return sum(placed) + (1 << 30)

    table = array("Q", bytes(80))
    data = b"\1".ljust(400 << 10, b"\0")
    store_clusters([(1, data), (2, data), (4, bytes(len(data))), (7, data)], table, place)
    assert placed == [800 << 10, 400 << 10]
    assert table[2] - table[1] == len(data) and not table[4] and table[7] & BITMAP_OFFSET
    runs = PlacedSpans()
    for offset, length in ((0, 10), (10, 5), (20, 1)):
        runs.add(offset, length)
    assert runs == [(0, 15), (20, 1)]


# --- other disk sizes -----------------------------------------------------------------------------------------------


def resize(data: bytearray, size: int) -> None:
    """Change the size of a disk whose L1 table has room, with its bitmaps."""
    with qcow2c.open(data, "r+") as image:
        engine, layer = image.engine, image.layer
        edit = resized(layer.store, Header.load(layer.store), engine.place, size)
        made = edit.header_change() if edit.changed else HeaderChange()
        engine.change_header(made._replace(fields={**made.fields, "size": size}))
        engine.session.release(edit.released)
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_a_larger_disk_has_no_new_bits() -> None:
    data = new_image(1280 * KIB + 512)
    change(data, lambda edit: edit.add("a", 64 * KIB))
    with_writes(data, (0, 1), (1280 * KIB, 512))
    change(data, lambda edit: edit.add("ones", 512))
    data = patched(data, bitmaps(data)[1].record, 0, BITMAP_ALL_ONES)
    resize(data, 2 * MIB)
    assert dirty(data, "a") == [(0, 64 * KIB), (1280 * KIB, 64 * KIB)]
    assert dirty(data, "ones") == [(0, 1280 * KIB + 512)]
    assert [len(found.table) for found in bitmaps(data)] == [1, 1]


def test_a_smaller_disk_forgets_its_bits_for_good() -> None:
    data = new_image(64 * MIB, cluster_size=4096)
    change(data, lambda edit: edit.add("a", 512), lambda edit: edit.add("b", 512))
    with_writes(data, (0, 64 * MIB))
    with qcow2c.open(data, "r+") as image:
        image.discard(0, 64 * MIB)
    assert dirty(data, "a") == [(0, 64 * MIB)]
    # The L1 table has as many entries for both sizes: for the test, so that the size alone may change.
    resize(data, 63 * MIB + 512)
    assert dirty(data, "a") == [(0, 63 * MIB + 512)]
    resize(data, 64 * MIB)
    assert dirty(data, "a") == dirty(data, "b") == [(0, 63 * MIB + 512)]


def test_clean_bitmaps_stay_where_they_are() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    before = bitmaps(data)[0].record
    resize(data, 2 * MIB)
    assert bitmaps(data)[0].record == before
