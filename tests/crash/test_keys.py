"""Whenever a crash comes in a change of keys, one of them opens the image; a creation leaves a whole one, or none."""

from __future__ import annotations

import pytest

import qcow2c
from qcow2c.crypto import slot_changes
from qcow2c.errors import NotQcow2, Qcow2Error, WrongKey
from qcow2c.ops.keys import add_key, change_key, remove_key
from qcow2c.storage.store import Store

from .recording import Recorder, crash_states

SIZE = 64 << 10


def made() -> bytes:
    data = bytearray()
    qcow2c.create(data, SIZE, cluster_size=4096, encryption="luks", key="old", cipher="aes-128", iter_time_ms=1)
    with qcow2c.open(data, "r+", key="old") as image:
        image.pwrite(b"data", 0)
    return bytes(data)


def opening(data: bytes, keys: tuple[str, ...]) -> set[str]:
    """Return which keys open an image; its data is always the same."""
    found = set()
    for key in keys:
        try:
            with qcow2c.open(data, key=key) as image:
                assert image.pread(4, 0) == b"data"
                found.add(key)
        except WrongKey:
            pass
    return found


def states_of_change() -> list[set[str]]:
    recorder = Recorder()
    store = recorder.store(made())
    change_key(store, "old", "new", iter_time_ms=1)
    return [opening(bytes(state.files[0]), ("old", "new")) for state in crash_states(recorder, 1)]


def test_a_change_of_the_key_locks_nobody_out() -> None:
    found = states_of_change()
    assert all(found), "neither key opens it"
    assert {frozenset(keys) for keys in found} == {
        frozenset({"old"}),
        frozenset({"old", "new"}),
        frozenset({"new"}),
    }


def test_another_order_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(store: Store, pointer: object, luks: object, *words: object, **how: object) -> int:
        slot_changes._write_state(store, pointer, 0, slot_changes.LuksKeySlotState.DISABLED)  # type: ignore[arg-type]
        return add_slot(store, pointer, luks, *words, **how)  # type: ignore[arg-type]

    add_slot = slot_changes.add_slot
    monkeypatch.setattr("qcow2c.ops.keys.add_slot", hasty)
    assert not all(states_of_change())


def test_a_key_that_comes_or_goes_leaves_the_others() -> None:
    recorder = Recorder()
    store = recorder.store(made())
    add_key(store, "old", "new", slot=6, iter_time_ms=1)  # Of which a sector's end divides what the header says.
    remove_key(store, key="new")
    for state in crash_states(recorder, 2):
        assert "old" in opening(bytes(state.files[0]), ("old", "new"))


def test_a_crash_of_a_creation_leaves_no_image_or_a_whole_one() -> None:
    recorder = Recorder()
    store = recorder.store(b"")
    qcow2c.create(store, SIZE, cluster_size=4096, encryption="luks", key="key", cipher="aes-128", iter_time_ms=1)
    whole = 0
    for state in crash_states(recorder, 3):
        data = bytes(state.files[0])
        try:
            with qcow2c.open(data, key="key") as image:
                assert image.pread(SIZE, 0) == bytes(SIZE)
                whole += 1
        except NotQcow2:
            continue
        except Qcow2Error as error:
            raise AssertionError(state) from error
    assert whole
