"""Whenever a crash comes, the image opens, leaks at most, holds what was flushed, and can be written on."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

import qcow2c
from qcow2c.storage import Memory, WritableMemory
from qcow2c.store import Store

from .model import DiskModel
from .recording import CrashState, Recorder, crash_states
from .scenarios import DATA_FILE, IMAGE, SCENARIOS, Prepared, Scenario, play, prepare

CLEAN_OR_LEAKS = (0, 3)
SEEDS = range(1, 21) if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else range(1, 2)
QEMU_SHARE = 0.03
"""Of the states, how many qemu-img looks at, too."""


@pytest.mark.usefixtures("requires_qemu")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_crash_loses_what_was_flushed(scenario: Scenario, seed: int, tmp_path: Path) -> None:
    prepared = prepare(scenario, tmp_path)
    recorder = Recorder()
    stores: list[Store] = [recorder.store(data) for data in prepared.stores]
    with prepared.open(stores, "r+") as image:
        if scenario.cache:
            image.layer._l2_limit = scenario.cache
        image.layer.allocator._scanned = scenario.used_blocks
        model = DiskModel(image.pread(image.size(), 0))
        kept = snapshots(image)
        play(scenario, image, model, seed, lambda: len(recorder.log))
    model.flushed(len(recorder.log))
    judge = Judge(prepared, model, kept, tmp_path, seed)
    for state in crash_states(recorder, seed, model.acknowledged):
        judge.state(state)
    assert judge.judged > 20


def snapshots(image: qcow2c.Image) -> list[bytes]:
    return [snapshot.open().pread(snapshot.disk_size, 0) for snapshot in image.snapshots.list()]


class Judge:
    """Looks at crash states as a user would: check, read, write something, read again."""

    def __init__(self, prepared: Prepared, model: DiskModel, kept: list[bytes], folder: Path, seed: int) -> None:
        self.judged = 0
        self._prepared = prepared
        self._model = model
        self._kept = kept
        self._folder = folder
        self._chooser = random.Random(seed)

    def state(self, state: CrashState) -> None:
        self.judged += 1
        files: list[Store] = [Memory(data) for data in state.files]
        self._check(files, state.story)
        with self._prepared.open(files) as image:
            found = image.pread(image.size(), 0)
            assert self._model.problem(state.time, found) is None, state.story
            assert snapshots(image) == self._kept, state.story
        self._write_on(state, found)
        if self._chooser.random() < QEMU_SHARE:
            self._ask_qemu(state)

    def _write_on(self, state: CrashState, found: bytes) -> None:
        """One more ordinary write changes what it writes, and nothing else."""
        files: list[Store] = [WritableMemory(bytearray(data)) for data in state.files]
        expected = bytearray(found)
        with self._prepared.open(files, "r+") as image:
            start = self._chooser.randrange(len(expected) // 512) * 512
            data = self._chooser.randbytes(min(len(expected) - start, image.geometry.cluster_size))
            image.pwrite(data, start)
        expected[start : start + len(data)] = data
        self._check(files, f"{state.story}, written on")
        with self._prepared.open(files) as image:
            assert image.pread(image.size(), 0) == expected, state.story
            assert snapshots(image) == self._kept, state.story

    @staticmethod
    def _check(files: list[Store], story: str) -> None:
        result = qcow2c.check(files[0])
        assert result.exit_code in CLEAN_OR_LEAKS, (story, list(result.messages)[:3])

    def _ask_qemu(self, state: CrashState) -> None:
        for name, data in zip((IMAGE, DATA_FILE), state.files, strict=False):
            (self._folder / name).write_bytes(data)
        words = ["qemu-img", "check", "-q", "-f", "qcow2", IMAGE]
        done = subprocess.run(words, cwd=self._folder, capture_output=True, check=False)
        assert done.returncode in CLEAN_OR_LEAKS, (state.story, done.stdout, done.stderr)
