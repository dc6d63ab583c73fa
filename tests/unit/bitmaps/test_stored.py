"""Stored bitmaps: which ranges are dirty, which granularity they have, and what is wrong with broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from qcow2c.bitmaps.stored import Bitmap, without_rest
from qcow2c.errors import CorruptMetadata, Span, UsageError
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapRecord
from qcow2c.format.tables import BITMAP_ALL_ONES
from qcow2c.storage.sources import Memory
from tests.unit.bitmaps.images import KIB, MIB, bitmaps, change, dirty, marked, new_image, patched, with_writes


def test_writes_are_dirty_ranges_in_units_of_the_granularity() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("fine", 512), lambda edit: edit.add("usual"))
    with_writes(data, (1000, 100), (10_000, 50_000), (60_000, 1), (MIB - 1, 1))
    assert dirty(data, "fine") == [(512, 1024), (9728, 50688), (MIB - 512, 512)]
    assert dirty(data, "usual") == [(0, 4096), (8192, 53248), (MIB - 4096, 4096)]
    fine, usual = bitmaps(data)
    assert (fine.granularity, usual.granularity, repr(fine)) == (512, 4096, "<Bitmap 'fine'>")
    assert fine.enabled and not fine.inconsistent
    assert bitmaps(data)[:1][0].name == "fine" and len(bitmaps(data)) == 2


def test_the_last_range_ends_with_the_disk() -> None:
    data = new_image(MIB + 512)
    change(data, lambda edit: edit.add("a", 64 * KIB))
    with_writes(data, (MIB, 512))
    assert dirty(data, "a") == [(MIB, 512)]


def test_ranges_go_over_clusters_of_the_bitmap_in_one() -> None:
    data = new_image(16 * MIB, cluster_size=512)
    change(data, lambda edit: edit.add("a", 512))
    with_writes(data, (MIB, 8 * MIB), (10 * MIB, 512))
    assert dirty(data, "a") == [(MIB, 8 * MIB), (10 * MIB, 512)]
    entries = bitmaps(data).find("a").table
    assert len(entries) == 8 and entries[6] == entries[7] == 0


def test_bitmaps_are_found_by_name_and_by_position(examples: Path) -> None:
    with qcow2c.open(examples / "demo.qcow2") as image:
        bitmaps = image.bitmaps
        found: qcow2c.Bitmap = bitmaps["since-monday"]
        assert found is bitmaps[0] is bitmaps.find("since-monday")
        assert (found.name, found.granularity, found.enabled, found.inconsistent) == (
            "since-monday",
            65536,
            True,
            False,
        )
        assert "since-monday" in bitmaps and found in bitmaps and "other" not in bitmaps and bitmaps[:] == (found,)
        assert repr(bitmaps) == "<Bitmaps ['since-monday']>"
        with pytest.raises(KeyError, match="other"):
            bitmaps["other"]


def test_bits_behind_the_disk_are_not_read() -> None:
    data = new_image(MIB + 512)
    change(data, lambda edit: edit.add("a", 64 * KIB))
    record = bitmaps(data)[0].record
    ones = patched(data, record, 0, BITMAP_ALL_ONES)
    assert dirty(ones, "a") == [(0, MIB + 512)]
    assert bitmaps(ones)[0].read(0, 4096) == b"\xff\xff\x01".ljust(4096, b"\0")
    assert without_rest(b"\xff\xff", -5) == bytes(2)


BROKEN_ENTRIES = {
    "a reserved bit": (1 << 60, "reserved bits"),
    "misaligned data": (512 + 4096, "not cluster-aligned"),
    "data past the end": (1 << 40, "leaves the file"),
}


@pytest.mark.parametrize(("entry", "complaint"), BROKEN_ENTRIES.values(), ids=BROKEN_ENTRIES)
def test_a_broken_entry_is_told(entry: int, complaint: str) -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    broken = patched(data, bitmaps(data)[0].record, 0, entry)
    with pytest.raises(CorruptMetadata, match=complaint) as raised:
        dirty(broken, "a")
    assert raised.value.where is not None


def test_a_table_past_the_end_is_told() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    store = Memory(bytes(data))
    bitmap = Bitmap(store, Header.load(store), BitmapRecord(Span(0, 0), 1 << 30, 1, 2, 1, 16, b"a", b""))
    with pytest.raises(CorruptMetadata, match="table of bitmap 'a' leaves the file"):
        list(bitmap.ranges())


def test_an_inconsistent_bitmap_has_no_ranges() -> None:
    data = new_image()
    change(data, lambda edit: edit.add("a"))
    broken = marked(data, "a")
    assert bitmaps(broken)[0].inconsistent
    with pytest.raises(UsageError, match="Bitmap 'a' is inconsistent and cannot be used"):
        dirty(broken, "a")
