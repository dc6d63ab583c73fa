"""A crash in the middle of a repair leaves what can be repaired again, and what the undo file takes back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qcow2c
from qcow2c.errors import Qcow2Error
from qcow2c.format.header import Header
from qcow2c.ops.repair import undo_repair
from qcow2c.recovery.journal import Journal
from qcow2c.recovery.survey import Survey
from qcow2c.storage.sources import Memory, WritableMemory
from tests.corpus.damage import DAMAGE
from tests.corpus.patch import refcount, seed_bytes, set_bits

from .recording import CrashState, Recorder, crash_states

STATES = 40
"""States of each repair that are looked at; those where the process is killed come first."""

CASES = {
    "refcounts too high and too low": ("c512", ("refcount of data 0", "leaked cluster behind all")),
    "refcounts anew": ("c512", ("refcount table zeroed", "copied bit flipped")),
    "refcounts anew, a block lost": ("snapshots", ("refcount block zeroed", "refcount table overwritten")),
    "entries": ("v3", ("misaligned zero cluster", "leaked cluster behind all")),
    "reserved bits and marks": ("v3", ("L2 entry with reserved bits", "L1 entry with reserved bits", "marked dirty")),
    "two owners": ("snapshots", ("two guest clusters, one host cluster", "marked corrupt")),
    "data on the refcount table": ("c512", ("data on the refcount table",)),
}


def image_of(seed: str, names: tuple[str, ...]) -> bytes:
    image = bytearray(seed_bytes(f"{seed}.qcow2"))
    for name in names:
        DAMAGE[name](image)
    set_bits("autoclear", 1 << 40)(image)
    if seed == "c512":
        refcount(9, 5)(image)
    return bytes(image)


def guest(image: bytes) -> list[bytes | None]:
    """Return the first clusters of the disk and its snapshots, None for what cannot be read."""
    found: list[bytes | None] = []
    try:
        with qcow2c.open(image) as opened:
            for state in (opened, *(snapshot.open() for snapshot in opened.snapshots.list())):
                size = state.geometry.cluster_size
                for at in range(0, min(64 * size, state.size()), size):
                    try:
                        found.append(state.pread(size, at))
                    except Qcow2Error:
                        found.append(None)
    except Qcow2Error:
        return []
    return found


def too_low(image: bytes) -> set[int]:
    """Return the clusters with a refcount below their references."""
    store = Memory(image)
    survey = Survey(store, Header.load(store))
    old, references = survey.old(0, survey.clusters), survey.references(0, survey.clusters)
    return set(np.flatnonzero(old < references).tolist())


class Judge:
    """Knows an image before and after its repair, and what may be between."""

    def __init__(self, before: bytes, after: bytes, undo: Path) -> None:
        self._before = before
        self._after = after
        self._undo = undo
        self._guest = guest(before)
        self._low = too_low(before)
        self._status = qcow2c.check(after).exit_code

    def state(self, state: CrashState) -> None:
        """Fail unless a state keeps all promises."""
        image = state.files[0]
        self._same_guest(image, state.story)
        assert too_low(image) <= self._low, state.story
        again = bytearray(image)
        assert qcow2c.repair(again, "all").exit_code == self._status, state.story
        self._same_guest(bytes(again), state.story)
        taken_back = bytearray(image)
        undo_repair(taken_back, self._undo)
        assert taken_back == self._before, state.story

    def _same_guest(self, image: bytes, story: str) -> None:
        for old, new in zip(self._guest, guest(image), strict=bool(self._guest)):
            assert old is None or old == new, story


def some(recorder: Recorder) -> Iterator[CrashState]:
    """Yield the states at each time, and as many of the others as fit."""
    states = list(crash_states(recorder, 1))
    killed = [state for state in states if state.story.startswith("killed")]
    others = [state for state in states if not state.story.startswith("killed")]
    random.Random(1).shuffle(others)
    yield from [*killed, *others][: max(STATES, len(killed))]


def repaired(before: bytes, undo: Path) -> tuple[Recorder, bytes]:
    recorder = Recorder()
    store = recorder.store(before)
    qcow2c.repair(store, "all", undo=undo)
    assert bytes(store.contents) != before
    return recorder, bytes(store.contents)


@pytest.mark.parametrize(("seed", "names"), CASES.values(), ids=CASES)
def test_a_crash_in_a_repair_leaves_what_can_be_repaired_again(
    seed: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    before = image_of(seed, names)
    recorder, after = repaired(before, tmp_path / "undo")
    judge = Judge(before, after, tmp_path / "undo")
    for state in some(recorder):
        judge.state(state)


@pytest.mark.parametrize("name", ["refcounts too high and too low", "refcounts anew"])
def test_a_crash_while_a_repair_is_taken_back_leaves_what_can_be_taken_back(name: str, tmp_path: Path) -> None:
    before = image_of(*CASES[name])
    _, after = repaired(before, tmp_path / "undo")
    recorder = Recorder()
    store = recorder.store(after)
    assert undo_repair(store, tmp_path / "undo")
    assert bytes(store.contents) == before
    for state in some(recorder):
        image = bytearray(state.files[0])
        undo_repair(WritableMemory(image), tmp_path / "undo")
        assert image == before, state.story


def test_the_judge_notices_a_wrong_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header names the new refcounts before they are there."""
    right = Journal.stages
    monkeypatch.setattr(Journal, "stages", property(lambda journal: right.fget(journal)[::-1]))
    before = image_of(*CASES["refcounts anew, a block lost"])
    recorder, after = repaired(before, tmp_path / "undo")
    monkeypatch.undo()
    judge = Judge(before, after, tmp_path / "undo")
    with pytest.raises(AssertionError):
        for state in some(recorder):
            judge.state(state)
