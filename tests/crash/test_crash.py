"""Whenever a crash comes, the image opens, leaks at most, holds what was flushed, and can be written on."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from qcow2c.storage.store import Store
from tests.profile import DEEP

from .judge import Judge, snapshots
from .model import DiskModel
from .recording import Recorder, crash_states
from .scenarios import SCENARIOS, Player, Scenario, prepare

SEEDS = range(1, 21) if DEEP else range(1, 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_crash_loses_what_was_flushed(scenario: Scenario, seed: int, tmp_path: Path) -> None:
    prepared = prepare(scenario, tmp_path)
    recorder = Recorder()
    stores: list[Store] = [recorder.store(data) for data in prepared.stores]
    with prepared.open(stores, "r+") as image:
        scenario.limit(image)
        blocks, table = refcount_blocks(image)
        model = DiskModel(image.pread(image.size(), 0))
        kept = snapshots(image)
        Player(image, model, lambda: len(recorder.log)).play(scenario, seed)
        blocks_after, table_after = refcount_blocks(image)
        assert (blocks_after > blocks) == bool(scenario.used_blocks)
        assert (table_after > table) == ("table" in scenario.name)
    model.flushed(len(recorder.log))
    judge = Judge(prepared, model, kept, tmp_path, seed=seed, qemu_share=scenario.qemu_share)
    for state in crash_states(recorder, seed, model.acknowledged):
        judge.state(state)
    assert judge.judged > 20


def refcount_blocks(image: qcow2c.Image) -> tuple[int, int]:
    """Return how many refcount blocks there are, and how many the refcount table has room for."""
    words = image.engine.cache.refcount_table.words
    return sum(map(bool, words)), len(words)
