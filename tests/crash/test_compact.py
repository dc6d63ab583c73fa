"""Whenever a crash comes while an image is compacted or patched, no file looks complete that is not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import NotQcow2, Qcow2Error
from qcow2c.format.header import Header
from qcow2c.ops import snapshots
from qcow2c.ops.compact import compact
from qcow2c.ops.diff import open_states, write_stream
from qcow2c.ops.patch import patch
from qcow2c.storage.sources import Memory

from .judge import CLEAN_OR_LEAKS
from .recording import Recorder, RecordingStore, crash_states

SIZE = 96 * 1024


def two_states() -> bytes:
    """Return an image with a snapshot, and much that is not needed."""
    chooser = random.Random(5)
    data = bytearray()
    qcow2c.create(data, SIZE, cluster_size=4096)
    for part in range(2):
        with qcow2c.open(data, "r+") as image:
            image.pwrite(chooser.randbytes(SIZE // 3), part * 20_480)
            image.pwrite(bytes(8192), 65536)
            image.write_compressed(b"pack" * 1024, 81920 + part * 4096) if part else None
        if not part:
            snapshots.create(data, "one")
    return bytes(data)


def states(image: bytes) -> list[bytes]:
    with qcow2c.open(image) as active:
        return [active.readall(), *(found.open().readall() for found in active.snapshots.list())]


class Unflushed(RecordingStore):
    """A store whose flushes do nothing."""

    def flush(self) -> None:
        pass


def wrong_states(store: RecordingStore) -> int:
    """Compact into a store; return how many states after a crash look like an image, and are not the copy."""
    image = two_states()
    expected = states(image)
    compact(image, store)
    assert states(bytes(store.contents)) == expected
    wrong = 0
    for state in crash_states(store.recorder, 1):
        try:
            Header.load(Memory(state.files[0]))
        except NotQcow2:
            continue
        try:
            wrong += states(state.files[0]) != expected or qcow2c.check(state.files[0]).exit_code != 0
        except Qcow2Error:
            wrong += 1
    return wrong


def test_a_compact_copy_is_whole_or_no_image() -> None:
    assert wrong_states(Recorder().store(b"")) == 0


def test_the_judge_knows_a_copy_without_flushes() -> None:
    recorder = Recorder()
    recorder.initial.append(b"")
    assert wrong_states(Unflushed(recorder, 0, bytearray())) > 0


def test_a_patch_that_was_cut_off_can_be_written_again() -> None:
    image = two_states()
    stream = bytearray()
    with open_states(image, from_snapshot="one") as disks:
        write_stream(*disks, stream.extend)
    later, earlier = states(image)
    data = bytearray()
    qcow2c.create(data, SIZE, cluster_size=4096)
    with qcow2c.open(data, "r+") as target:
        target.pwrite(earlier, 0)
    recorder = Recorder()
    patch(recorder.store(bytes(data)), BytesIO(bytes(stream)))
    for number, state in enumerate(crash_states(recorder, 1)):
        assert qcow2c.check(state.files[0]).exit_code in CLEAN_OR_LEAKS
        if number % 7 == 0:
            again = bytearray(state.files[0])
            patch(again, BytesIO(bytes(stream)))
            assert states(bytes(again)) == [later]


CHILD = """
import sys
from qcow2c.ops.compact import compact_in_place
print("ready", flush=True)
compact_in_place(sys.argv[1], compress=True, progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize("kill", range(4))
def test_killed_in_place_the_image_is_the_old_or_the_new_one(kill: int, tmp_path: Path, project_root: Path) -> None:
    path = tmp_path / "image.qcow2"
    chooser = random.Random(kill)
    qcow2c.create(path, 24 << 20)
    with qcow2c.open(path, "r+") as image:
        for place in range(24):
            image.pwrite(chooser.choices([b"text", b"more"], k=1)[0] * (1 << 17), place << 20)
    before = states(path.read_bytes())
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(project_root)},
    )
    assert child.stdout is not None
    for _ in range(2 + kill):
        child.stdout.readline()
    time.sleep(chooser.random() / 20)
    child.kill()
    child.wait()
    child.stdout.close()
    assert states(path.read_bytes()) == before
    assert qcow2c.check(path).exit_code == 0
    left = [found for found in tmp_path.iterdir() if found != path]
    assert all(found.name.startswith(".image.qcow2.") for found in left) and len(left) <= 1
