"""Bitmaps that break a rule: what says so, how one is removed, how all are given up; nothing of the disk is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import qcow2c
from qcow2c.bitmaps.edit import BitmapEdit
from qcow2c.disk.image_info import ImageInfo
from qcow2c.errors import CorruptMetadata, UsageError
from qcow2c.format.header import Header
from qcow2c.format.records import read_bitmaps
from qcow2c.storage.sources import Memory
from qcow2c.structs import ExtensionType
from tests.unit.bitmaps.images import bitmaps, dirty, new_image, patched, with_writes


def change(data: bytearray, *acts: Callable[[BitmapEdit], object]) -> None:
    with qcow2c.open(data, "r+") as image, image.engine.changing_bitmaps() as edit:
        for act in acts:
            act(edit)


BREAKS = {
    "granularity": (17, 63),
    "type": (16, 7),
    "flags": (15, 0x80),
    "table": (7, 1),
    "extra data": (23, 1),
}
"""Bytes of a record that are changed, and to what."""


def with_broken(what: str) -> bytearray:
    """An image with bitmaps "a", which is broken, and "b", which has bits, and data behind them."""
    data = new_image()
    change(data, lambda edit: edit.add("a"), lambda edit: edit.add("b", 4096))
    with_writes(data, (0, 5000))
    at, value = BREAKS[what]
    data[bitmaps(data)[0].record.span.offset + at] = value
    return data


@pytest.mark.parametrize("what", sorted(set(BREAKS) - {"extra data", "table"}))
def test_a_broken_bitmap_can_be_removed_and_the_others_stay(what: str) -> None:
    data = with_broken(what)
    with pytest.raises(CorruptMetadata, match="'a'"):
        change(data, lambda edit: edit.remove("b"), lambda edit: edit.add("c"))
    change(data, lambda edit: edit.remove("a"), lambda edit: edit.add("c"))
    assert [found.name for found in bitmaps(data)] == ["b", "c"]
    assert dirty(data, "b") == [(0, 8192)]
    assert qcow2c.check(bytes(data)).exit_code == 3


def test_removing_one_of_two_broken_bitmaps_and_writing_leaves_no_bitmap_that_may_lie() -> None:
    data = with_broken("type")
    span = spans(data)[1]
    data[span + 16] = 9
    with qcow2c.open(data, "r+") as image:
        with image.engine.changing_bitmaps() as edit:
            edit.remove("a")
        image.pwrite(b"x" * 512, 0)
        with pytest.raises(CorruptMetadata), image.engine.changing_bitmaps() as edit:
            edit.remove("b")
    with qcow2c.open(data) as image:
        assert image.bitmaps.stale and not len(image.bitmaps)


def test_a_missing_name_changes_nothing_beside_a_broken_bitmap() -> None:
    data = with_broken("type")
    before = bytes(data)
    with pytest.raises(UsageError, match="not found"):
        change(data, lambda edit: edit.remove("nosuch"))
    assert data == before


def test_a_directory_that_cannot_be_read_is_given_up_by_a_repair_only() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"), lambda edit: edit.add("b"))
    data[spans(data)[0] + 18] = 0xFF
    before = bytes(data)
    with pytest.raises(CorruptMetadata, match=r"leaves the directory, .* check -r all gives up"):
        change(data, lambda edit: edit.remove("b"))
    assert data == before


def spans(data: bytearray) -> list[int]:
    """Return where the records of the bitmaps are."""
    store = Memory(bytes(data))
    return [record.span.offset for record in read_bitmaps(store, Header.load(store)).records]


@pytest.mark.parametrize("what", BREAKS)
def test_info_shows_the_bitmaps_and_which_is_broken(what: str) -> None:
    facts = qcow2c.info(bytes(with_broken(what)))
    assert isinstance(facts, ImageInfo)
    shown = facts["format-specific"]["data"]
    assert "bitmap 'a'" in shown["bitmaps-broken"] or what == "extra data"
    assert qcow2c.check(bytes(with_broken(what))).exit_code == 1


@pytest.mark.parametrize("what", BREAKS)
def test_a_repair_gives_up_broken_bitmaps_and_frees_nothing(what: str) -> None:
    data = with_broken(what)
    before = bytes(data)
    assert qcow2c.repair(data, "leaks").exit_code == 1 and data == before
    planned = qcow2c.repair(data, "all", dry_run=True)
    assert data == before
    found = qcow2c.repair(data, "all")
    assert planned.actions == found.actions and found.exit_code == planned.exit_code == 3
    assert found.corruptions_fixed == 1 and found.leaks_fixed == 0
    assert sum(old != new for old, new in zip(before, data, strict=True)) == 1, "more than a bit of the header"
    with qcow2c.open(data) as image:
        assert image.bitmaps.stale and image.pread(5000, 0) == b"x" * 5000
    assert qcow2c.repair(data, "leaks").leaks_fixed == 0
    assert qcow2c.repair(data, "leaks", allow_data_loss=True).exit_code == 0


def test_an_extension_that_leads_nowhere_is_shown_and_given_up() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    (found,) = (part for part in Header.load(Memory(bytes(data))).extensions if part.type == ExtensionType.BITMAPS)
    data[found.span.end - 1] += 1  # The offset of the directory.
    facts = qcow2c.info(bytes(data))
    assert isinstance(facts, ImageInfo)
    assert "not cluster-aligned" in (facts.bitmaps_broken or "")
    assert "not cluster-aligned" in (qcow2c.check(bytes(data)).failed or "")
    assert qcow2c.repair(data, "all").exit_code == 3
    assert "bitmaps-broken" not in str(qcow2c.info(bytes(data)))


@pytest.mark.parametrize("enabled", [True, False])
def test_a_bitmap_with_a_broken_table_can_be_removed(*, enabled: bool) -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a", enabled=enabled), lambda edit: edit.add("b"))
    broken = patched(data, next(found.record for found in bitmaps(data) if found.name == "a"), 0, 1 << 60)
    if enabled:
        with pytest.raises(CorruptMetadata, match="reserved"):
            change(broken, lambda edit: edit.add("c"))
    change(broken, lambda edit: edit.remove("a"))
    assert [found.name for found in bitmaps(broken)] == ["b"]
    assert qcow2c.check(bytes(broken)).exit_code in (0, 3)
