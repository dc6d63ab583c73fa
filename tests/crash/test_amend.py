"""Whenever a crash comes in an amendment, disk and snapshots stay, and each option is the old or the new one."""

from __future__ import annotations

from typing import Any

import pytest

import qcow2c
from qcow2c.format.header import Header
from qcow2c.ops import snapshots
from qcow2c.storage.sources import Memory

from .judge import CLEAN_OR_LEAKS
from .recording import Recorder, crash_states

KIB = 1024
SIZE = 24 * KIB

CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a newer version": ({"compat": "0.10"}, {"compat": "1.1", "lazy_refcounts": True}),
    "an older version": ({}, {"compat": "0.10"}),
    "an older version over a backing file": ({"backing_file": "b", "backing_fmt": "raw"}, {"compat": "0.10"}),
    "wider refcounts": ({}, {"refcount_bits": 64}),
    "narrower refcounts": ({"lazy_refcounts": True}, {"refcount_bits": 4, "lazy_refcounts": False}),
    "another size": ({}, {"size": 2 * SIZE}),
}
BASE = b"base" * (SIZE // 4)


def opened(data: bytes | bytearray, mode: str = "r") -> qcow2c.Image:
    below = Memory(BASE) if Header.load(Memory(bytes(data))).backing_file else None
    return qcow2c.open(data, mode, backing=below)


def made(options: dict[str, Any]) -> bytes:
    data = bytearray()
    qcow2c.create(data, SIZE, cluster_size=512, check_backing=False, **options)
    with opened(data, "r+") as image:
        image.pwrite(b"1" * 5 * KIB, 300)
        image.write_zeroes(8 * KIB, 2 * KIB)
    snapshots.create(data, "one")
    with opened(data, "r+") as image:
        image.write_zeroes(KIB, 2 * KIB)
        image.write_zeroes(12 * KIB, KIB)
    return bytes(data)


def shown(data: bytes) -> list[bytes]:
    with opened(data) as image:
        states = [image, *(snapshot.open() for snapshot in image.snapshots.list())]
        return [state.pread(SIZE, 0) for state in states]


@pytest.mark.parametrize(("options", "change"), CHANGES.values(), ids=CHANGES)
def test_a_crash_leaves_each_option_old_or_new(options: dict[str, Any], change: dict[str, Any]) -> None:
    before = made(options)
    expected = shown(before)
    recorder = Recorder()
    store = recorder.store(before)
    qcow2c.amend(store, **change)
    after = bytes(store.contents)
    old, new = (Header.load(Memory(data)) for data in (before, after))
    seen = set()
    for number, state in enumerate(crash_states(recorder, 1)):
        found = Header.load(Memory(state.files[0]))
        for name in ("version", "refcount_order", "lazy_refcounts", "size", "backing_file", "backing_format"):
            assert getattr(found, name) in (getattr(old, name), getattr(new, name)), (name, state.story)
        seen.add((found.version, found.refcount_order, found.size))
        same = shown(state.files[0]) == expected
        assert same, state.story
        if number % 4 == 0:
            assert qcow2c.check(state.files[0]).exit_code in CLEAN_OR_LEAKS, state.story
    assert {(old.version, old.refcount_order, old.size), (new.version, new.refcount_order, new.size)} <= seen
    assert qcow2c.check(after).exit_code == 0
