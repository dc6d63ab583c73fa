"""Whenever a crash comes while a disk gets another size, it is wholly what it was or wholly what it will be."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

import qcow2c
from qcow2c.atomic import size
from qcow2c.disk.size import resize
from qcow2c.ops import bitmaps, snapshots
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Memory, WritableMemory

from .judge import CLEAN_OR_LEAKS
from .recording import CrashState, Recorder, crash_states

KIB = 1024
SIZE = 96 * KIB
BASE = random.Random(9).randbytes(160 * KIB)

Seen = tuple[bytes, list[bytes], list[tuple[str, list[tuple[int, int]]]]]
"""Disk, disks of the snapshots, and bitmaps."""


@dataclass(frozen=True)
class Case:
    size: int
    preallocation: str = "off"
    options: dict[str, Any] = field(default_factory=dict)
    based: bool = False
    kept: int = 0
    """Snapshots; the disk had half its size when the first one was taken."""
    bitmaps: bool = False


SMALL = {"cluster_size": 512}
CASES = {
    "grow": Case(900 * KIB, options=SMALL),
    "grow, the table has room": Case(SIZE + 512, options={"cluster_size": 4096}),
    "grow over a longer backing file": Case(150 * KIB + 512, options=SMALL, based=True),
    "grow over a longer backing file, subclusters": Case(
        150 * KIB, options={"cluster_size": 16384, "extended_l2": True}, based=True
    ),
    "grow, metadata": Case(200 * KIB, "metadata", SMALL),
    "grow, falloc": Case(120 * KIB + 512, "falloc", {"cluster_size": 4096, "lazy_refcounts": True}),
    "grow, full, version 2": Case(120 * KIB, "full", {"cluster_size": 4096, "compat": "0.10"}, based=True),
    "grow, snapshots, bitmaps": Case(200 * KIB, "metadata", {"cluster_size": 4096}, kept=1, bitmaps=True),
    "shrink": Case(30 * KIB + 512, options=SMALL),
    "shrink, 1-bit refcounts": Case(64 * KIB, options={"cluster_size": 512, "refcount_bits": 1}),
    "shrink, all preallocated": Case(40 * KIB, options={"cluster_size": 512, "preallocation": "metadata"}),
    "shrink, snapshots, bitmaps": Case(50 * KIB + 512, options={"cluster_size": 4096}, kept=2, bitmaps=True),
    "shrink, version 2": Case(512, options={"cluster_size": 512, "compat": "0.10"}, based=True),
}
DATA_CASES = {
    "grow": Case(200 * KIB + 512, options={"cluster_size": 4096}, based=True),
    "grow, raw": Case(200 * KIB, options={"cluster_size": 4096, "data_file_raw": True}),
    "grow, full": Case(200 * KIB, "full", {"cluster_size": 4096}),
    "shrink": Case(50 * KIB + 512, options={"cluster_size": 4096}),
    "shrink, raw": Case(50 * KIB + 512, options={"cluster_size": 4096, "data_file_raw": True}),
}


def made(case: Case, guest_data: bytearray | None = None) -> bytes:
    """Return an image with data, zeros and compressed clusters."""
    chooser = random.Random(3)
    data = bytearray()
    options: dict[str, Any] = dict(case.options)
    if case.based:
        options |= {"backing_file": "base", "backing_fmt": "qcow2", "check_backing": False}
    if guest_data is not None:
        options |= {"data_file": "data", "guest_data": guest_data}
    qcow2c.create(data, SIZE, **options)
    if case.bitmaps:
        bitmaps.add(data, "fine", granularity=512)
        bitmaps.add(data, "coarse", granularity=4096)
    for kept in range(case.kept + 1):
        with opened(data, case, guest_data, "r+") as image:
            if kept < 2:
                resize(image, SIZE >> (case.kept > kept))
            cluster = image.geometry.cluster_size
            for step in range(8):
                start = chooser.randrange(image.size() // 512) * 512
                length = min(image.size() - start, chooser.choice((512, 3 * KIB, 20 * KIB)))
                if step % 4 == 2:
                    image.write_zeroes(start, length)
                elif step % 4 == 3 and guest_data is None:
                    start -= start % cluster
                    image.write_compressed(b"packed! " * (min(cluster, image.size() - start) // 8), start)
                else:
                    image.pwrite(chooser.randbytes(length), start)
            image.pwrite(chooser.randbytes(2 * KIB), image.size() - 2 * KIB)
        if kept < case.kept:
            snapshots.create(data, f"kept {kept}", date=0)
    return bytes(data)


def opened(image: Any, case: Case, data_file: Any = None, mode: str = "r") -> qcow2c.Image:
    return qcow2c.open(image, mode, backing=base() if case.based else False, data_file=data_file)


@cache
def base() -> bytes:
    data = bytearray()
    qcow2c.create(data, len(BASE), cluster_size=65536)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(BASE, 0)
    return bytes(data)


def seen(files: tuple[bytes, ...], case: Case) -> Seen:
    with opened(Memory(files[0]), case, Memory(files[1]) if files[1:] else None) as image:
        kept = [bytes(found.open().pread(found.disk_size, 0)) for found in image.snapshots.list()]
        noted = [(found.name, list(found.ranges())) for found in image.bitmaps]
        return bytes(image.pread(image.size(), 0)), kept, noted


def recorded(case: Case, *, external: bool = False) -> Recorder:
    """Record the change of size."""
    recorder = Recorder()
    guest_data = bytearray() if external else None
    image = recorder.store(made(case, guest_data))
    data_file = None if guest_data is None else recorder.store(bytes(guest_data))
    with opened(image, case, data_file, "r+") as disk:
        resize(disk, case.size, preallocation=case.preallocation)  # type: ignore[arg-type]
    recorder.final = tuple(  # type: ignore[attr-defined]
        bytes(store.contents) for store in (image, data_file) if store is not None
    )
    return recorder


def judge(state: CrashState, case: Case, before: Seen, after: Seen) -> None:
    found = qcow2c.check(Memory(state.files[0]))
    assert found.exit_code in CLEAN_OR_LEAKS, (state.story, list(found.messages)[:3])
    now = seen(state.files, case)
    assert now in (before, after), state.story
    if case.options.get("data_file_raw"):
        assert state.files[1][: len(now[0])].ljust(len(now[0]), b"\0") == now[0], state.story
    # It can be done again: nothing that the crash has left behind shows.
    again = [WritableMemory(bytearray(data)) for data in state.files]
    with opened(again[0], case, again[1] if again[1:] else None, "r+") as disk:
        resize(disk, case.size, preallocation="off" if now == after else case.preallocation)  # type: ignore[arg-type]
    final = tuple(store.pread(store.size(), 0) for store in again)
    assert seen(final, case) == after, state.story


def run_case(case: Case, *, external: bool = False) -> int:
    recorder = recorded(case, external=external)
    before, after = seen(tuple(recorder.initial), case), seen(recorder.final, case)  # type: ignore[attr-defined]
    cut = min(SIZE, case.size)
    assert after[0] == before[0][:cut].ljust(case.size, b"\0") and before[1] == after[1]
    assert qcow2c.check(Memory(recorder.final[0])).exit_code == 0  # type: ignore[attr-defined]
    judged = 0
    for state in crash_states(recorder, 1):
        judge(state, case, before, after)
        judged += 1
    return judged


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_crash_leaves_the_old_disk_or_the_new_one(case: Case) -> None:
    assert run_case(case) > 10


@pytest.mark.parametrize("case", DATA_CASES.values(), ids=DATA_CASES)
def test_it_does_with_an_external_data_file(case: Case) -> None:
    assert run_case(case, external=True) > 10


# --- the judge finds a broken order ---------------------------------------------------------------------------------


def no_flush(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Medium, "flush", lambda _medium: None)


def cut_first(patch: pytest.MonkeyPatch) -> None:
    original = size.Resizing.run

    def run(self: Any) -> None:
        self._layer.data_store.truncate(self._size)
        self._layer.data_store.flush()
        original(self)

    patch.setattr(size.Resizing, "run", run)


def in_place(patch: pytest.MonkeyPatch) -> None:
    """Zeros behind the new end are written over the cluster that is there."""
    original = size.Resizing._cut_cluster

    def cut_cluster(self: Any, entry: Any) -> None:
        at = (int(entry[0]) & size.L2_OFFSET) + self._cut % self._geometry.cluster_size
        self._image.medium.write([bytes(-self._cut % self._geometry.cluster_size)], at)
        original(self, entry)

    patch.setattr(size.Resizing, "_cut_cluster", cut_cluster)


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Case, bool]] = {
    "no flush": (no_flush, CASES["grow, metadata"], False),
    "the data file first": (cut_first, DATA_CASES["shrink"], True),
    "zeros in place": (in_place, Case(SIZE - KIB, options={"cluster_size": 4096}), False),
}


@pytest.mark.parametrize(("breaking", "case", "external"), BROKEN.values(), ids=BROKEN)
def test_a_broken_order_is_found(
    breaking: Callable[[pytest.MonkeyPatch], None], case: Case, *, external: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch)
        recorder = recorded(case, external=external)
    before, after = seen(tuple(recorder.initial), case), seen(recorder.final, case)  # type: ignore[attr-defined]
    with pytest.raises((AssertionError, qcow2c.Qcow2Error)):
        for state in crash_states(recorder, 1):
            judge(state, case, before, after)
