"""Dirty bitmaps while an image is written: marked before the first change, and complete before the mark goes."""

from __future__ import annotations

import qcow2c
from qcow2c.bitmaps.stored import load_bitmaps
from qcow2c.errors import CorruptMetadata
from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.format.tables import Table
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Memory, Store
from qcow2c.writer.allocation import Allocator
from qcow2c.writer.cache import MetadataCache
from qcow2c.writer.dirty_bitmaps import BitmapTracker
from tests.crash.recording import Kind, Recorder
from tests.unit.bitmaps.images import MIB, change, new_image, patched


def image() -> bytearray:
    data = new_image()
    change(data, lambda edit: edit.add("auto", 4096), lambda edit: edit.add("off", 4096, enabled=False))
    return data


def tracker(store: Store) -> tuple[BitmapTracker, MetadataCache]:
    header = Header.load(store)
    l1 = Table(layout.words(store.pread(header.l1_size * 8, header.l1_table_offset)), header.l1_table_offset)
    medium = Medium(store)
    cache = MetadataCache(medium, medium, header, l1, {})
    return BitmapTracker(cache, Allocator(cache), header), cache


def found(store: Store) -> dict[str, tuple[bool, list[tuple[int, int]]]]:
    """Return for each bitmap whether it is in use, and its ranges."""
    header = Header.load(store)
    return {
        bitmap.name: (bitmap.inconsistent, [] if bitmap.inconsistent else list(bitmap.ranges()))
        for bitmap in load_bitmaps(store, header)
    }


def test_an_enabled_bitmap_is_marked_durably_before_the_first_change_is_noted() -> None:
    recorder = Recorder()
    store = recorder.store(bytes(image()))
    subject, _ = tracker(store)
    assert recorder.log == []
    subject.note(0, 1)
    assert [event.kind for event in recorder.log] == [Kind.WRITE, Kind.FLUSH]
    assert found(store)["auto"] == (True, []) and not found(store)["off"][0]
    subject.note(100, 1)
    assert len(recorder.log) == 2, "one mark is enough"


def test_what_was_noted_is_stored_and_the_mark_goes_last() -> None:
    recorder = Recorder()
    store = recorder.store(bytes(image()))
    subject, _ = tracker(store)
    for place in ((0, 1), (5000, 4096), (MIB - 1, 1)):
        subject.note(*place)
    subject.finish()
    assert found(store) == {"auto": (False, [(0, 12288), (MIB - 4096, 4096)]), "off": (False, [])}
    flushes = [time for time, event in enumerate(recorder.log) if event.kind is Kind.FLUSH]
    record = load_bitmaps(store, Header.load(store))[0].record.span.offset
    [_, mark] = [time for time, event in enumerate(recorder.log) if event.offset // 512 == record // 512 and event.data]
    assert mark > flushes[-2] and flushes[-1] > mark


def test_nothing_is_written_where_nothing_changed() -> None:
    recorder = Recorder()
    subject, _ = tracker(recorder.store(bytes(image())))
    subject.finish()
    assert recorder.log == []


def test_changes_can_be_noted_again_afterwards() -> None:
    recorder = Recorder()
    store = recorder.store(bytes(image()))
    subject, _ = tracker(store)
    for at in (0, 40_960):
        subject.note(at, 1)
        subject.finish()
    assert found(store)["auto"] == (False, [(0, 4096), (40_960, 4096)])


def test_a_bitmap_that_is_not_understood_is_a_problem_of_the_whole_image() -> None:
    data = image()
    record = load_bitmaps(Memory(bytes(data)), Header.load(Memory(bytes(data))))[0].record
    broken = patched(data, record, 0, 1 << 60)
    subject, _ = tracker(Memory(bytes(broken)))
    assert isinstance(subject.problem, CorruptMetadata)
    subject.note(0, 1)
    subject.finish()


def test_the_engine_keeps_to_it() -> None:
    data = image()
    with qcow2c.open(data, "r+") as opened:
        opened.pwrite(b"x", 70_000)
    assert found(Memory(bytes(data)))["auto"] == (False, [(69_632, 4096)])
