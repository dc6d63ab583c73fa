"""Whenever a crash comes in a commit, the image shows the same disk, and neither image is damaged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import qcow2c
from qcow2c.atomic.empty import empty
from qcow2c.atomic.successor import changing
from qcow2c.copy.base_targets import RawBase
from qcow2c.ops.commit import Chain, Link, commit_chain
from qcow2c.storage.sources import Memory
from qcow2c.storage.store import Store

from .judge import CLEAN_OR_LEAKS
from .recording import Recorder, crash_states
from .scenarios import raw_image

KIB = 1024
SIZE = 96 * KIB


@dataclass(frozen=True)
class Case:
    """Options of the image, and of the base, None for a raw one; a shorter base grows."""

    top: dict[str, Any]
    base: dict[str, Any] | None
    base_size: int = SIZE


CASES = {
    "into a raw file": Case({"cluster_size": 4096}, None),
    "into a raw file that grows": Case({"cluster_size": 4096}, None, 40 * KIB + 512),
    "into an image that grows": Case({"cluster_size": 4096}, {"cluster_size": 4096}, 40 * KIB),
    "version 3": Case({"cluster_size": 4096}, {"cluster_size": 4096}),
    "version 2": Case({"cluster_size": 512, "compat": "0.10"}, {"cluster_size": 4096, "compat": "0.10"}),
    "subclusters": Case({"cluster_size": 16384, "extended_l2": True}, {"cluster_size": 16384, "extended_l2": True}),
    "lazy refcounts": Case(
        {"cluster_size": 4096, "lazy_refcounts": True}, {"cluster_size": 4096, "lazy_refcounts": True}
    ),
    "narrow refcounts": Case({"cluster_size": 512, "refcount_bits": 1}, {"cluster_size": 512, "refcount_bits": 1}),
}


def made(case: Case) -> tuple[bytes, bytes]:
    """Return an image and a base, both with data, zeros and compressed clusters."""
    chooser = random.Random(3)
    base = chooser.randbytes(case.base_size)
    if case.base is not None:
        base = bytes(written(case.base, chooser, case.base_size))
    return bytes(written(case.top, chooser)), base


def written(options: dict[str, Any], chooser: random.Random, size: int = SIZE) -> bytearray:
    data = bytearray()
    qcow2c.create(data, size, **options)
    with qcow2c.open(data, "r+") as image:
        cluster = image.geometry.cluster_size
        for step in range(8):
            start = chooser.randrange(size // 1024) * 1024
            length = min(size - start, chooser.choice((512, 3 * KIB, 20 * KIB)))
            if step % 4 == 2:
                image.write_zeroes(start, length)
            elif step % 4 == 3:
                start -= start % cluster
                image.write_compressed(b"packed! " * (cluster // 8), start)
            else:
                image.pwrite(chooser.randbytes(length), start)
    return data


def link(store: Store, case: Case) -> Link:
    return Link(store, "raw" if case.base is None else "qcow2", "top", "base", probed=False)  # type: ignore[arg-type]


def shown(top: bytes, base: bytes, case: Case) -> bytes:
    """Return the disk of the image over its base."""
    below: Any = raw_image(base) if case.base is None else qcow2c.open(base)
    with qcow2c.open(top, backing=below) as image:
        found = bytes(image.pread(SIZE, 0))
    if case.base is not None:
        below.close()
    return found


def judge(case: Case, act: Callable[[Store, Store], object]) -> int:
    """Do something to an image and its base, crash everywhere, and fail unless all is as promised; return how often."""
    top, base = made(case)
    expected = shown(top, base, case)
    recorder = Recorder()
    stores = recorder.store(top), recorder.store(base)
    act(*stores)
    assert shown(bytes(stores[0].contents), bytes(stores[1].contents), case) == expected
    judged = 0
    for state in crash_states(recorder, 1):
        judged += 1
        assert qcow2c.check(Memory(state.files[0])).exit_code in CLEAN_OR_LEAKS, state.story
        if case.base is not None:
            assert qcow2c.check(Memory(state.files[1])).exit_code in CLEAN_OR_LEAKS, state.story
        same = shown(*state.files, case) == expected
        assert same, state.story  # Not compared here: pytest would draw how they differ, for minutes.
    return judged


def whole_commit(case: Case, **options: Any) -> Callable[[Store, Store], object]:
    return lambda top, base: commit_chain(Chain("top", top, (link(base, case),), "deny", None, None), **options)


@pytest.mark.parametrize("name", CASES)
def test_no_crash_changes_what_the_image_shows(name: str) -> None:
    case = CASES[name]
    assert judge(case, whole_commit(case)) > 20


# --- does the simulator find what would be wrong? -------------------------------------------------------------------


def emptied_first(case: Case) -> Callable[[Store, Store], object]:
    def act(top: Store, base: Store) -> None:
        held = Memory(top.pread(top.size(), 0))
        with changing(top) as successor:
            empty(successor)
        commit_chain(Chain("top", held, (link(base, case),), "deny", None, None), drop=True)

    return act


def without_flush(case: Case, monkeypatch: pytest.MonkeyPatch) -> Callable[[Store, Store], object]:
    """The raw file is written and closed, but nobody makes it durable; an image does so itself when it is closed."""
    monkeypatch.setattr(RawBase, "finish", lambda _target, _size: None)
    return whole_commit(case)


@pytest.mark.parametrize("name", ["into a raw file", "version 3"])
def test_emptying_the_image_first_is_found(name: str) -> None:
    case = CASES[name]
    with pytest.raises(AssertionError):
        judge(case, emptied_first(case))


def test_emptying_before_the_base_is_durable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["into a raw file"]
    with pytest.raises(AssertionError):
        judge(case, without_flush(case, monkeypatch))
