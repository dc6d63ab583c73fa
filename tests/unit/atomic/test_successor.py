"""A successor: an image that changes as a whole by one write of its first sector, refcounts and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import qcow2c
from qcow2c.atomic.successor import Successor, changing, stored_words
from qcow2c.errors import CorruptMetadata, ImageLocked, LimitExceeded, StoreError
from qcow2c.format.header import Header
from qcow2c.storage.sources import Memory, WritableMemory
from tests.building import L2_COPIED, Builder, deflate
from tests.crash.recording import Kind, Recorder, crash_states

SIZE = 4096


def filled() -> Builder:
    builder = Builder(1 << 22)
    for guest in range(4):
        builder.data(guest, bytes([guest + 1]) * SIZE)
    builder.compressed(9, deflate(b"c" * SIZE))
    return builder


def image() -> bytearray:
    return bytearray(filled().build())


def changed(data: bytearray, change: Callable[[Successor], object], **how: bool) -> Header:
    with changing(WritableMemory(data)) as successor:
        change(successor)
        successor.switch(**how)
    assert qcow2c.check(bytes(data)).exit_code == 0
    return Header.load(Memory(bytes(data)))


def test_a_change_of_nothing_keeps_the_disk_and_sound_refcounts() -> None:
    data = image()
    with qcow2c.open(bytes(data)) as before:
        expected = before.readall()
    changed(data, lambda _successor: None)
    with qcow2c.open(bytes(data)) as after:
        assert after.readall() == expected


def test_nothing_of_the_present_image_is_touched_before_the_switch() -> None:
    data = image()
    before = bytes(data)
    with changing(WritableMemory(data)) as successor:
        successor.place(b"new" * 5000)
        successor.set_active(np.zeros(len(successor.active_l1()), dtype=np.uint64))
        successor.set_fields(size=512)
    assert data[: len(before)] == before


@pytest.mark.parametrize("discard", [False, True])
def test_a_crash_leaves_what_was_or_what_will_be(*, discard: bool) -> None:
    recorder = Recorder()
    before = bytes(image())
    with changing(recorder.store(before)) as successor:
        words = successor.active_l1()
        successor.add_references(words, -1)
        successor.set_active(np.zeros(len(words), dtype=np.uint64))
        successor.switch(discard=discard)
    seen = set()
    for state in crash_states(recorder, 1):
        assert qcow2c.check(Memory(state.files[0])).exit_code == 0, state.story
        with qcow2c.open(Memory(state.files[0])) as found:
            seen.add(found.pread(5 * SIZE, 0))
    with qcow2c.open(before) as found:
        assert seen == {found.pread(5 * SIZE, 0), bytes(5 * SIZE)}


def test_the_first_sector_is_written_alone_between_two_flushes() -> None:
    recorder = Recorder()
    with changing(recorder.store(bytes(image()))) as successor:
        successor.set_fields(size=1 << 21)
        successor.switch()
    times = [time for time, event in enumerate(recorder.log) if event.kind is Kind.WRITE and event.offset == 0]
    assert len(times) == 1 and len(recorder.log[times[0]].data) == 512
    assert [recorder.log[time].kind for time in (times[0] - 1, times[0] + 1)] == [Kind.FLUSH, Kind.FLUSH]


def test_what_is_placed_lies_in_free_space_and_is_counted() -> None:
    data = bytearray(filled().build())
    placed: list[int] = []

    def change(successor: Successor) -> None:
        words = successor.active_l1()
        successor.count(successor.header.l1_table_offset, len(words) * 8, -1)
        placed.append(successor.place(stored_words(words)))
        successor.set_fields(l1_table_offset=placed[0])

    old = Header.load(Memory(bytes(data))).l1_table_offset
    header = changed(data, change)
    assert header.l1_table_offset == placed[0] != old


def test_space_that_is_let_go_of_is_given_back_only_if_asked_for() -> None:
    for discard in (False, True):
        recorder = Recorder()
        store = recorder.store(bytes(image()))
        with changing(store) as successor:
            words = successor.active_l1()
            successor.add_references(words, -1)
            successor.set_active(np.zeros(len(words), dtype=np.uint64))
            successor.switch(discard=discard)
        assert any(event.kind is Kind.PUNCH for event in recorder.log) == discard


def test_the_file_ends_with_the_last_cluster_in_use_if_asked_for() -> None:
    builder = filled()
    builder.allocate(50 * SIZE, references=0)
    data = bytearray(builder.build())
    longer = len(data)
    changed(data, lambda successor: successor.renew_refcounts(), shorten=True)
    assert len(data) <= longer - 40 * SIZE


def test_a_table_that_is_shared_loses_its_copied_bits() -> None:
    data = image()

    with changing(WritableMemory(data)) as successor:
        words = successor.active_l1()
        successor.add_references(words, 1)
        found = successor.set_active(words, holders=2)
    assert found[0] and not int(found[0]) >> 63
    l2 = np.frombuffer(bytes(data[int(found[0]) :][:SIZE]), ">u8")
    assert l2[0] and not any(int(word) & L2_COPIED for word in l2)


@pytest.mark.parametrize("order", [0, 3, 6])
def test_refcounts_of_another_width_are_all_written_anew(order: int) -> None:
    data = image()
    with changing(WritableMemory(data), refcount_order=order) as successor:
        successor.switch()
    assert Header.load(Memory(bytes(data))).refcount_order == order
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_an_image_in_use_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(image())
    with qcow2c.open(path, "r+"), pytest.raises(ImageLocked), changing(path):
        pass
    builder = filled()
    builder.entry(20, SIZE | L2_COPIED)
    broken = bytearray(builder.build())
    before = bytes(broken)
    with pytest.raises(CorruptMetadata), changing(broken):
        pass
    assert broken == before


def test_a_cluster_that_no_entry_can_name_is_refused() -> None:
    with changing(WritableMemory(image())) as successor, pytest.raises(LimitExceeded, match="no table can name"):
        successor.append(1 << 60)


def test_a_failing_write_leaves_the_image_as_it_was() -> None:
    class Full(WritableMemory):
        def pwrite(self, _data: object, _offset: int) -> None:
            raise StoreError("No space left on device")

    data = image()
    before = bytes(data)
    with pytest.raises(StoreError), changing(Full(data)) as successor:
        successor.place(b"x")
    assert data == before


STRAY_CHANGES: dict[str, Callable[[bytearray], object]] = {
    "snapshot": lambda data: qcow2c.snapshots.create(data, "s"),
    "width": lambda data: qcow2c.amend(data, refcount_bits=32),
    "larger": lambda data: qcow2c.resize(data, 2 << 20, preallocation="metadata"),
}


@pytest.mark.parametrize("change", STRAY_CHANGES.values(), ids=STRAY_CHANGES)
def test_a_stray_refcount_far_behind_the_file_makes_it_no_longer_than_needed(
    change: Callable[[bytearray], object],
) -> None:
    sound = bytearray()
    qcow2c.create(sound, 1 << 20, cluster_size=4096)
    stray = bytearray(sound)
    table = Header.load(Memory(bytes(stray))).refcount_table_offset
    block = len(stray)
    stray[table + 400 * 8 : table + 401 * 8] = block.to_bytes(8)
    stray += (b"\0" * 100 + b"\0\1").ljust(4096, b"\0")  # A cluster some GiB behind the end.
    own = int.from_bytes(stray[table : table + 8])
    stray[own + block // 4096 * 2 + 1] = 1
    assert qcow2c.check(bytes(stray)).exit_code == 0
    for data in (sound, stray):
        change(data)
        assert qcow2c.check(bytes(data)).exit_code == 0
    assert len(stray) - len(sound) <= 4 * 4096
