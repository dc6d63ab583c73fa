"""Whenever a crash comes in a rebase, disk and snapshots are the same over the backing file that the image names."""

from __future__ import annotations

import random
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import Qcow2Error
from qcow2c.format.header import Header
from qcow2c.ops import snapshots
from qcow2c.storage.sources import Memory

from .judge import CLEAN_OR_LEAKS
from .recording import Recorder, crash_states
from .scenarios import raw_image

KIB = 1024
SIZE = 40 * KIB
OLD, NEW = random.Random(1).randbytes(30 * KIB), bytes(8 * KIB) + random.Random(2).randbytes(34 * KIB)

CASES: dict[str, dict[str, Any]] = {
    "4k clusters": {"cluster_size": 4096},
    "version 2": {"cluster_size": 512, "compat": "0.10"},
    "subclusters": {"cluster_size": 16384, "extended_l2": True},
    "lazy refcounts": {"cluster_size": 4096, "lazy_refcounts": True},
}
NAMES = {b"old": OLD, b"new" * 120: NEW, None: b""}


def made(options: dict[str, Any]) -> bytes:
    data = bytearray()
    qcow2c.create(data, SIZE, backing_file="old", backing_fmt="raw", check_backing=False, **options)
    with qcow2c.open(data, "r+", backing=raw_image(OLD)) as image:
        image.pwrite(b"held" * 700, 5000)
        image.write_zeroes(24 * KIB, 3 * KIB)
    snapshots.create(data, "one")
    with qcow2c.open(data, "r+", backing=raw_image(OLD)) as image:
        image.pwrite(b"later" * 100, 20 * KIB)
    return bytes(data)


def shown(data: bytes, backing: Any) -> list[bytes]:
    """Return the disk, and that of the snapshot."""
    with qcow2c.open(data, backing=backing) as image:
        return [image.pread(SIZE, 0), image.snapshots["one"].open().pread(SIZE, 0)]


def below(name: bytes | None) -> Any:
    return raw_image(NAMES[name]) if name else False


@pytest.mark.parametrize("new", [b"new" * 120, None], ids=["another", "none"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_crash_leaves_the_disk_over_the_old_or_the_new_backing_file(
    options: dict[str, Any], new: bytes | None
) -> None:
    before = made(options)
    recorder = Recorder()
    store = recorder.store(before)
    expected = shown(before, raw_image(OLD))
    if new is None:
        qcow2c.rebase(store, None, backing=raw_image(OLD))
    else:
        qcow2c.rebase(store, new.decode(), backing_format="raw", backing=raw_image(OLD), new_backing=Memory(NEW))
    seen = set()
    for number, state in enumerate(crash_states(recorder, 1)):
        name = Header.load(Memory(state.files[0])).backing_file
        seen.add(name)
        same = shown(state.files[0], below(name)) == expected
        assert same, state.story
        if number % 5 == 0:
            assert qcow2c.check(state.files[0]).exit_code in CLEAN_OR_LEAKS, state.story
    assert seen == {b"old", new}
    assert qcow2c.check(bytes(store.contents)).exit_code == 0


def test_a_header_that_is_changed_too_early_is_found_out() -> None:
    """The judgement of the test above can fail: with the other name before the data, some state is wrong."""
    before = made(CASES["4k clusters"])
    renamed = bytearray(before)
    qcow2c.rebase(renamed, "", unsafe=True)
    for one, other in zip(shown(before, raw_image(OLD)), shown(bytes(renamed), backing=False), strict=True):
        assert one != other


def test_a_crash_of_an_unsafe_rebase_leaves_one_name_or_the_other() -> None:
    recorder = Recorder()
    qcow2c.rebase(recorder.store(made({})), "n" * 1000, backing_format="qcow2", unsafe=True)
    seen = set()
    for state in crash_states(recorder, 1):
        header = Header.load(Memory(state.files[0]))
        seen.add((header.backing_file, header.backing_format))
        try:
            qcow2c.open(state.files[0], backing=False).close()
        except Qcow2Error as exc:
            pytest.fail(f"{state.story}: {exc}")
    assert seen == {(b"old", b"raw"), (b"n" * 1000, b"qcow2")}
