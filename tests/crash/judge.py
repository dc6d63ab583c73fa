"""Judges states of files that a crash has left as a user would: check, read, write something, read again."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import qcow2c
from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapRecord, read_bitmaps
from qcow2c.format.tables import BITMAP_ALL_ONES, BITMAP_OFFSET
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Store

from .model import DiskModel
from .preparation import HAVE_QEMU
from .recording import CrashState
from .scenarios import DATA_FILE, IMAGE, UNKNOWN_AUTOCLEAR, Prepared

CLEAN_OR_LEAKS = (0, 3)


def snapshots(image: qcow2c.Image) -> list[bytes]:
    """Return the disks of all internal snapshots."""
    return [snapshot.open().pread(snapshot.disk_size, 0) for snapshot in image.snapshots.list()]


class Judge:
    """Knows what the disk, its snapshots and its bitmaps may hold; fails with the story of the crash.

    `qemu_share` is the share of the states that qemu-img looks at, too.
    """

    def __init__(
        self, prepared: Prepared, model: DiskModel, kept: list[bytes], folder: Path, *, seed: int, qemu_share: float
    ) -> None:
        self.judged = 0
        self._prepared = prepared
        self._model = model
        self._kept = kept
        self._folder = folder
        self._chooser = random.Random(seed)
        self._qemu_share = qemu_share

    def state(self, state: CrashState) -> None:
        """Fail unless a state keeps all promises."""
        self.judged += 1
        files: list[Store] = [Memory(data) for data in state.files]
        self._check(files, state.story)
        with self._prepared.open(files) as image:
            found = image.pread(image.size(), 0)
            assert self._model.problem(state.time, found) is None, state.story
            assert snapshots(image) == self._kept, state.story
        unknown = Header.load(files[0]).autoclear_features & UNKNOWN_AUTOCLEAR
        assert not unknown or list(state.files) == self._prepared.stores, f"{state.story}: changed, not marked so"
        self._judge_bitmaps(files[0], found, state.story)
        self._write_on(state, found)
        if HAVE_QEMU and self._chooser.random() < self._qemu_share:
            self._ask_qemu(state)

    def _write_on(self, state: CrashState, found: bytes) -> None:
        """One more ordinary write changes what it writes, and nothing else."""
        story = f"{state.story}, written on"
        files: list[Store] = [WritableMemory(bytearray(data)) for data in state.files]
        expected = bytearray(found)
        with self._prepared.open(files, "r+") as image:
            start = self._chooser.randrange(len(expected) // 512) * 512
            data = self._chooser.randbytes(min(len(expected) - start, image.geometry.cluster_size))
            image.pwrite(data, start)
        expected[start : start + len(data)] = data
        self._check(files, story)
        with self._prepared.open(files) as image:
            assert image.pread(image.size(), 0) == expected, story
            assert snapshots(image) == self._kept, story
        assert not Header.load(files[0]).autoclear_features & UNKNOWN_AUTOCLEAR, story
        self._judge_bitmaps(files[0], bytes(expected), story)

    @staticmethod
    def _check(files: Sequence[Store], story: str) -> None:
        result = qcow2c.check(files[0])
        assert result.exit_code in CLEAN_OR_LEAKS, (story, list(result.messages)[:3])

    def _judge_bitmaps(self, store: Store, found: bytes, story: str) -> None:
        """A bitmap that is not marked in use has a bit for everything that was changed."""
        for record in read_bitmaps(store, Header.load(store)).records:
            if record.auto and not record.in_use:
                bits, granule = _bits(store, record), 1 << record.granularity_bits
                for number, at in enumerate(range(0, len(found), granule)):
                    if found[at : at + granule] != self._model.initial[at : at + granule]:
                        assert bits[number // 8] >> number % 8 & 1, f"{story}: {record.name!r} misses {at:#x}"

    def _ask_qemu(self, state: CrashState) -> None:
        for name, data in zip((IMAGE, DATA_FILE), state.files, strict=False):
            (self._folder / name).write_bytes(data)
        words = ["qemu-img", "check", "-q", "-f", "qcow2", IMAGE]
        done = subprocess.run(words, cwd=self._folder, capture_output=True, check=False)
        assert done.returncode in CLEAN_OR_LEAKS, (state.story, done.stdout, done.stderr)


def _bits(store: Store, record: BitmapRecord) -> bytes:
    size = Header.load(store).geometry.cluster_size
    chunks = []
    for entry in layout.words(store.pread(record.bitmap_table_size * 8, record.bitmap_table_offset)):
        if entry & BITMAP_OFFSET:
            chunks.append(store.pread(size, entry & BITMAP_OFFSET).ljust(size, b"\0"))
        else:
            chunks.append((b"\xff" if entry & BITMAP_ALL_ONES else b"\0") * size)
    return b"".join(chunks)
