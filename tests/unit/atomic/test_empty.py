"""An emptied image shows what lies below, keeps all else, and its file is short."""

from __future__ import annotations

import pytest

import qcow2c
from qcow2c.atomic.empty import empty
from qcow2c.atomic.successor import changing
from qcow2c.storage.sources import Memory, WritableMemory
from tests.building import Builder
from tests.crash.recording import Recorder, crash_states

SIZE = 4096
BELOW = b"b" * (64 * SIZE)


def filled(*, snapshot: bool = False) -> Builder:
    builder = Builder(64 * SIZE)
    builder.backing_file = b"below"
    places = [builder.data(guest, bytes([guest + 1]) * SIZE) for guest in range(20)]
    if snapshot:
        builder.snapshot(b"one")
        builder.data(3, b"later")
        builder.refcounts[places[3] // SIZE] -= 1
    return builder


@pytest.mark.parametrize("snapshot", [False, True])
def test_the_disk_shows_what_lies_below_and_snapshots_stay(*, snapshot: bool) -> None:
    data = bytearray(filled(snapshot=snapshot).build())
    with changing(WritableMemory(data)) as image:
        empty(image)
    with qcow2c.open(bytes(data), backing=BELOW) as found:
        assert found.readall() == BELOW
        for kept in found.snapshots.list():
            assert kept.open().pread(SIZE, 3 * SIZE) == bytes([4]) * SIZE
        assert len(found.snapshots) == snapshot
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_the_file_is_as_short_as_an_empty_image() -> None:
    data = bytearray(filled().build())
    with changing(WritableMemory(data)) as image:
        empty(image)
    assert len(data) <= 6 * SIZE


def test_a_crash_leaves_the_image_as_it_was_or_empty() -> None:
    recorder = Recorder()
    before = filled().build()
    with changing(recorder.store(before)) as image:
        empty(image)
    shown = set()
    for state in crash_states(recorder, 1):
        with qcow2c.open(Memory(state.files[0]), backing=BELOW) as found:
            shown.add(found.readall())
        assert qcow2c.check(Memory(state.files[0])).exit_code == 0, state.story
    with qcow2c.open(before, backing=BELOW) as found:
        assert shown == {found.readall(), BELOW}


def test_what_lies_in_a_data_file_is_given_back_last() -> None:
    recorder = Recorder()
    store, outside = recorder.store(filled().build()), recorder.store(b"x" * 8 * SIZE)
    with changing(store) as image:
        empty(image, outside)
    punched = [time for time, event in enumerate(recorder.log) if event.store == 1]
    switched = next(time for time, event in enumerate(recorder.log) if event.store == 0 and event.offset == 0)
    assert len(punched) == 1 and switched < punched[0]
    assert recorder.log[punched[0]].offset == 0 and len(recorder.log[punched[0]].data) == 8 * SIZE
