"""Whenever a crash comes while a snapshot is taken, applied, deleted or renamed, the image is before it or after it."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.atomic.successor import Successor
from qcow2c.errors import LimitExceeded, Qcow2Error, StoreError
from qcow2c.format import derived
from qcow2c.format.header import Header
from qcow2c.format.records import read_bitmaps
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Buffer, Store
from tests.building import Builder, deflate
from tests.profile import DEEP

from .judge import _bits as bits_of
from .recording import CrashState, Recorder, crash_states

KIB = 1024
SHARES = {} if DEEP else {"subset": 0.02, "random": 0.02, "torn": 0.3}
"""Of states of some kinds, by the first word of their story: how many are tried. Of all others, all are."""
QEMU_SHARE = 0.25

Act = Callable[[Store], object]


# --- images ---------------------------------------------------------------------------------------------------------


def made(size: int, *, snapshots: int = 2, writes: int = 4, **options: Any) -> bytes:
    """Return an image with data, zeros, compressed clusters, and snapshots of earlier states that share them."""
    chooser, data = random.Random(5), bytearray()
    qcow2c.create(data, size, **options)
    with qcow2c.open(data, "r+") as image:
        cluster = image.geometry.cluster_size
        for number in range(snapshots + 1):
            for _ in range(writes):
                at = chooser.randrange(size // 512) * 512
                image.pwrite(chooser.randbytes(min(size - at, chooser.choice((512, cluster, 3 * cluster)))), at)
            at = chooser.randrange(size // cluster) * cluster
            image.write_compressed(b"packed! " * (cluster // 8), at)
            at = chooser.randrange(size // cluster) * cluster
            image.write_zeroes(at, cluster)
            if number < snapshots:
                image.snapshots.create(f"s{number}", date=1_700_000_000 + number)
    return bytes(data)


def with_vm_state() -> bytes:
    """Return an image with a snapshot that has a VM state, as QEMU makes it; the active disk has it, too."""
    builder = Builder(16 * 512, cluster_bits=9)
    builder.data(0, b"disk")
    builder.l1 += [0]
    for cluster in range(2):
        builder.data(64 + cluster, b"registers" * 50)
    builder.fields["l1_size"] = 2
    builder.refcounts[builder.fields["l1_table_offset"] // 512] = 0
    builder.fields["l1_table_offset"] = builder.allocate(16)
    builder.snapshot(b"running", vm_state_size=700)
    builder.data(3, b"later")
    return builder.build()


def undercounted() -> bytes:
    """Return a dirty image of lazy refcounts: two clusters in use have refcount 0, and one that is not has one."""
    dirty = derived.INCOMPATIBLE_FEATURES["dirty"].mask
    builder = Builder(64 * 512, cluster_bits=9, incompatible=dirty, compatible_features=1)
    offsets = [builder.data(index, bytes([index + 1]) * 512) for index in range(6)]
    builder.snapshot(b"one")
    builder.data(10, b"later")
    builder.allocate(512)
    for offset in offsets[2:4]:
        builder.refcounts[offset // 512] = 0
    return builder.build()


def leaking() -> bytes:
    """Return an image with a leaked cluster, and one that is counted too often."""
    builder = Builder(64 * 512, cluster_bits=9)
    offset = builder.data(1, b"x" * 512)
    builder.data(5, b"y" * 512)
    builder.compressed(7, deflate(b"z" * 512))
    builder.allocate(512)
    builder.snapshot(b"one", disk_size=40 * 512)
    builder.refcounts[offset // 512] = 3
    return builder.build()


def full_refcount_table() -> bytes:
    """Return an image whose refcount table has room for nothing more: 64 blocks of 64 clusters."""
    builder = Builder(4096 * 512, cluster_bits=9, refcount_order=6)
    for index in range(3920):
        builder.data(index, b"")
    return builder.build()


def with_bitmaps() -> bytes:
    data = bytearray(made(64 * KIB, cluster_size=4096))
    with qcow2c.open(data, "r+") as image, image.engine.changing_bitmaps() as edit:
        edit.add("bits", 4096, enabled=True)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"noted" * 100, 9000)
    return bytes(data)


def of_other_sizes() -> bytes:
    """Return an image whose snapshots have other disks: a smaller one and a larger one."""
    builder = Builder(96 * 512, cluster_bits=9)
    for index in range(0, 96, 5):
        builder.data(index, bytes([index]) * 512)
    builder.snapshot(b"smaller", disk_size=60 * 512 + 100)
    builder.snapshot(b"larger", id_str=b"7", disk_size=128 * 512)
    return builder.build()


@dataclass(frozen=True)
class Case:
    make: Callable[[], bytes]
    clean: bool = True
    """Whether check has nothing to say of the image before."""
    every: int = 1
    """Judge one state of so many: where it takes long."""


def plain(size: int, **options: Any) -> Case:
    return Case(lambda: made(size, **options))


CASES = {
    "4k clusters": plain(64 * KIB, cluster_size=4096),
    "version 2": plain(32 * KIB, cluster_size=512, compat="0.10"),
    "2-bit refcounts": plain(24 * KIB, cluster_size=512, refcount_bits=2, snapshots=1),
    "4-bit refcounts": plain(24 * KIB, cluster_size=512, refcount_bits=4, snapshots=1),
    "64-bit refcounts": plain(24 * KIB, cluster_size=512, refcount_bits=64),
    "64k clusters": plain(256 * KIB, cluster_size=65536, snapshots=1, writes=2),
    "subclusters": plain(64 * KIB, cluster_size=16384, extended_l2=True),
    "lazy refcounts": plain(64 * KIB, cluster_size=4096, lazy_refcounts=True),
    "zstd": plain(64 * KIB, cluster_size=4096, compression_type="zstd"),
    "several snapshots": plain(32 * KIB, cluster_size=512, snapshots=5, writes=2),
    "VM state": Case(with_vm_state),
    "other sizes": Case(of_other_sizes),
    "dirty": Case(undercounted, clean=False),
    "leaks": Case(leaking, clean=False),
    "full refcount table": Case(full_refcount_table, every=1 if DEEP else 7),
    "bitmaps": Case(with_bitmaps),
}

ACTS: dict[str, Act] = {
    "create": lambda store: qcow2c.snapshots.create(store, "new", date=1.5),
    "apply": lambda store: qcow2c.snapshots.apply(store, last(store)),
    "delete": lambda store: qcow2c.snapshots.delete(store, last(store), by=("id",)),
    "rename": lambda store: qcow2c.snapshots.rename(store, last(store), "renamed" * 30, by=("id",)),
}


def last(store: Store) -> str:
    with qcow2c.open(Memory(store.pread(store.size(), 0))) as image:
        return image.snapshots.list()[-1].id


PAIRS = [
    (case, act)
    for case in CASES
    for act in ACTS
    # No snapshot to speak of; and bitmaps do not allow it.
    if (case, act) != ("bitmaps", "apply") and (case != "full refcount table" or act == "create")
]


# --- what must be so ------------------------------------------------------------------------------------------------


def view(store: Store) -> tuple[object, ...]:
    """Return all that anybody can see: the disk, each snapshot with its VM state, and the bitmaps."""
    with qcow2c.open(store) as image:
        found: list[object] = [digest(image.pread(image.size(), 0)), image.size()]
        for snapshot in image.snapshots.list():
            with snapshot.open() as disk, snapshot.vm_state() as vm_state:
                record = snapshot.record
                found.append((record.id_str, record.name, record.date_sec, disk.size(), digest(disk.readall())))
                found.append(digest(vm_state.read()))
    header = Header.load(store)
    for bitmap in read_bitmaps(store, header).records:
        found.append((bitmap.name, bitmap.flags, digest(bits_of(store, bitmap))))
    return tuple(found)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Judge:
    """Knows the image before and after, and fails with the story of the crash."""

    def __init__(self, before: bytes, after: bytes, folder: Path | None = None) -> None:
        self.views = view(Memory(before)), view(Memory(after))
        self._codes = qcow2c.check(Memory(before)).exit_code, qcow2c.check(Memory(after)).exit_code
        self._folder = folder
        self._chooser = random.Random(3)
        self.seen: set[int] = set()
        self.judged = 0
        self.asked = 0

    def wanted(self, state: CrashState) -> bool:
        return self._chooser.random() < SHARES.get(state.story.split()[0], 1)

    def state(self, data: bytes, story: str) -> None:
        """Fail unless an image is wholly one or the other, with no more to say to check, and can be written on."""
        self.judged += 1
        found = view(Memory(data))
        assert found in self.views, story
        which = self.views.index(found)
        self.seen.add(which)
        result = qcow2c.check(Memory(data))
        assert result.exit_code == self._codes[which], (story, list(result.messages)[:3])
        if self._folder is not None and self._chooser.random() < QEMU_SHARE:
            (self._folder / "image").write_bytes(data)
            words = ["qemu-img", "check", "-q", "-f", "qcow2", "image"]
            done = subprocess.run(words, cwd=self._folder, capture_output=True, check=False)
            assert done.returncode == result.exit_code, (story, done)
            self.asked += 1
        self._write_on(data, story)

    def _write_on(self, data: bytes, story: str) -> None:
        """Overwrite a part of the disk in place, in shared and in new clusters: nothing else changes."""
        contents = bytearray(data)
        with qcow2c.open(WritableMemory(contents), "r+") as image:
            size = image.size()
            expected = bytearray(image.pread(size, 0))
            kept = [snapshot.open().readall() for snapshot in image.snapshots.list()]
            for at in (0, self._chooser.randrange(size // 512) * 512):
                written = self._chooser.randbytes(min(size - at, 1536))
                image.pwrite(written, at)
                expected[at : at + len(written)] = written
        with qcow2c.open(Memory(bytes(contents))) as image:
            assert image.pread(size, 0) == expected, f"{story}, written on"
            assert [snapshot.open().readall() for snapshot in image.snapshots.list()] == kept, f"{story}, written on"
        assert qcow2c.check(Memory(bytes(contents))).exit_code in (0, 3), f"{story}, written on"


def crash_everywhere(before: bytes, act: Act, folder: Path | None = None, *, every: int = 1) -> Judge:
    recorder = Recorder()
    store = recorder.store(before)
    act(store)
    judge = Judge(before, bytes(store.contents), folder)
    assert judge.views[0] != judge.views[1]
    for number, state in enumerate(filter(judge.wanted, crash_states(recorder, 1))):
        if number % every == 0 or state.time == len(recorder.log):
            judge.state(state.files[0], state.story)
    return judge


@pytest.mark.parametrize(("case", "act"), PAIRS, ids=[f"{act}: {case}" for case, act in PAIRS])
def test_a_crash_leaves_the_image_before_or_after(case: str, act: str) -> None:
    before = CASES[case].make()
    assert (qcow2c.check(Memory(before)).exit_code == 0) == CASES[case].clean
    judge = crash_everywhere(before, ACTS[act], every=CASES[case].every)
    assert judge.seen == {0, 1} and judge.judged >= 4


@pytest.mark.usefixtures("requires_qemu")
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("case", ["2-bit refcounts", "subclusters", "bitmaps"])
def test_qemu_img_says_the_same_of_an_image_after_a_crash(case: str, act: str, tmp_path: Path) -> None:
    if (case, act) in PAIRS:
        judge = crash_everywhere(CASES[case].make(), ACTS[act], tmp_path)
        assert judge.asked


# --- an open image --------------------------------------------------------------------------------------------------

ON_OPEN: dict[str, Callable[[qcow2c.Image], object]] = {
    "create": lambda image: image.snapshots.create("new", date=1.5),
    "apply": lambda image: image.snapshots.apply("s0"),
    "delete": lambda image: image.snapshots.delete("s1"),
    "rename": lambda image: image.snapshots.rename("s1", "renamed"),
}
OPEN_CASES = ("4k clusters", "version 2", "subclusters", "lazy refcounts", "bitmaps")
OPEN_CHANGES = [(case, act) for case in OPEN_CASES for act in ON_OPEN if (case, act) != ("bitmaps", "apply")]
"""Bitmaps do not allow that a disk goes back."""


@pytest.mark.parametrize(("case", "act"), OPEN_CHANGES)
def test_a_crash_while_an_open_image_is_changed(case: str, act: str) -> None:
    """What was flushed before is there, in the disk or in the snapshot; leaks and stale bitmaps may remain."""
    before, chooser = CASES[case].make(), random.Random(2)
    recorder = Recorder()
    store = recorder.store(before)
    with qcow2c.open(store, "r+") as image:
        for _ in range(3):
            at = chooser.randrange(image.size() // 512 - 8) * 512
            image.pwrite(chooser.randbytes(4096), at)
        image.flush()
        flushed = len(recorder.log)
        old = disks(Memory(bytes(store.contents)))
        ON_OPEN[act](image)
        new = disks(Memory(bytes(store.contents)))
        switched = len(recorder.log)
        assert image.pread(image.size(), 0) == new[0]
    assert disks(Memory(bytes(store.contents))) == new
    judged = 0
    for state in crash_states(recorder, 1, {flushed, switched}):
        if state.time >= flushed and chooser.random() < SHARES.get(state.story.split()[0], 1):
            judged += 1
            found = disks(Memory(state.files[0]))
            assert found == new or (found == old and state.time < switched), state.story
            assert qcow2c.check(Memory(state.files[0])).exit_code in (0, 3), state.story
    assert judged > 8


def disks(store: Store) -> list[object]:
    """Return the disk, and name and disk of each snapshot."""
    with qcow2c.open(store) as image:
        found: list[object] = [image.pread(image.size(), 0)]
        for snapshot in image.snapshots.list():
            found.append((snapshot.name, snapshot.open().readall()))
    return found


# --- does the simulator find what would be wrong? -------------------------------------------------------------------


def without_flushes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Medium, "flush", lambda _medium: None)


def header_first(patch: pytest.MonkeyPatch) -> None:
    """The header is written before what it names."""
    write = Medium.write

    def early(medium: Medium, parts: Any, offset: int) -> None:
        later.append((medium, [bytes(part) for part in parts], offset))
        if not offset:
            for one in reversed(later):
                write(*one)
            later.clear()

    later: list[tuple[Medium, list[Buffer], int]] = []
    patch.setattr(Medium, "write", early)


def space_given_back_first(patch: pytest.MonkeyPatch) -> None:
    build = Successor._build_refcounts

    def punching(successor: Successor) -> None:
        build(successor)
        for edges in successor._new.freed(successor.geometry.clusters(successor.walk.size)):
            for start, end in edges.reshape(-1, 2).tolist():
                successor.medium.punch(start << successor._bits, (end - start) << successor._bits)

    patch.setattr(Successor, "_build_refcounts", punching)


@pytest.mark.parametrize(
    ("breaking", "act"),
    [(without_flushes, "create"), (header_first, "apply"), (space_given_back_first, "delete")],
    ids=["no flush", "the header first", "the space first"],
)
def test_a_broken_order_is_found(
    breaking: Callable[[pytest.MonkeyPatch], None], act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = CASES["4k clusters"].make()
    crash_everywhere(before, ACTS[act])
    breaking(monkeypatch)
    with pytest.raises((AssertionError, Qcow2Error)):
        crash_everywhere(before, ACTS[act])


# --- failing calls --------------------------------------------------------------------------------------------------


class Failing(WritableMemory):
    """Memory of which the n-th call fails, and all that come after it if `lasting`."""

    def __init__(self, data: bytes, at: int, *, lasting: bool) -> None:
        self.contents = bytearray(data)
        super().__init__(self.contents, name="<failing>")
        self.at = at
        self.lasting = lasting
        self.calls = 0
        self.armed = True
        self.flush_has_failed = False

    def _count(self) -> None:
        self.calls += self.armed
        if self.armed and (self.calls >= self.at if self.lasting else self.calls == self.at):
            raise StoreError("this call fails")

    def pread(self, length: int, offset: int) -> bytes:
        self._count()
        return super().pread(length, offset)

    def pwrite(self, data: Buffer, offset: int) -> None:
        self._count()
        super().pwrite(data, offset)

    def punch(self, offset: int, length: int) -> None:
        self._count()
        super().punch(offset, length)

    def flush(self) -> None:
        try:
            self._count()
        except StoreError as error:
            self.flush_has_failed = True
            raise self.flush_failure(error) from error
        super().flush()


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_a_call_that_fails_leaves_the_image_before_or_after(act: str, *, lasting: bool) -> None:
    before = made(32 * KIB, cluster_size=4096)
    counted = Failing(before, 1 << 30, lasting=False)
    ACTS[act](counted)
    judge = Judge(before, bytes(counted.contents))
    for at in range(1, counted.calls + 1):
        store = Failing(before, at, lasting=lasting)
        with pytest.raises(StoreError):  # Of a warning, too, where only space was not given back.
            ACTS[act](store)
        judge.state(bytes(store.contents), f"call {at} fails")
    assert judge.seen == {0, 1}


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("act", ON_OPEN)
def test_an_open_image_whose_calls_fail_shows_what_the_file_holds_or_is_closed(act: str, *, lasting: bool) -> None:
    before = made(32 * KIB, cluster_size=4096)
    reference = bytearray(before)
    calls = 1 << 30
    states: list[list[object]] = []
    at = 0
    while at <= calls:
        store = Failing(before, at or 1 << 30, lasting=lasting)
        store.armed = False
        image = qcow2c.open(store, "r+")
        image.pwrite(b"pending" * 100, 5000)
        image.flush()
        reference = bytearray(store.contents)
        store.armed = True
        if at == 0:
            ON_OPEN[act](image)
            calls = store.calls
            states = [disks(Memory(bytes(reference))), disks(Memory(bytes(store.contents)))]
        else:
            with pytest.raises(StoreError):
                ON_OPEN[act](image)
        store.armed = False
        found = disks(Memory(bytes(store.contents)))
        assert found in states, f"call {at} fails"
        if not image.closed:
            assert image.pread(image.size(), 0) == found[0]
            assert [(one.name, one.open().readall()) for one in image.snapshots.list()] == found[1:]
            try:
                image.pwrite(b"more" * 300, 2000)
                image.close()
                found[0] = image_with(found[0], b"more" * 300, 2000)
            except StoreError:
                assert store.flush_has_failed
        assert disks(Memory(bytes(store.contents))) == found
        assert qcow2c.check(Memory(bytes(store.contents))).exit_code in (0, 3)
        at += 1


def image_with(disk: object, data: bytes, at: int) -> bytes:
    assert isinstance(disk, bytes)
    return disk[:at] + data + disk[at + len(data) :]


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "possible"), [(1, 0), (2, 2), (4, 14)])
def test_narrow_refcounts_refuse_one_snapshot_too_many_and_nothing_has_changed(bits: int, possible: int) -> None:
    data = bytearray()
    qcow2c.create(data, 16 * KIB, cluster_size=512, refcount_bits=bits)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"x" * 700, 0)
    for number in range(possible):
        qcow2c.snapshots.create(data, f"s{number}")
    before = bytes(data)
    with pytest.raises(LimitExceeded, match=f"more references than a refcount can say, {(1 << bits) - 1}"):
        qcow2c.snapshots.create(data, "too many")
    assert data == before
    with qcow2c.open(data, "r+") as image:
        with pytest.raises(LimitExceeded):
            image.snapshots.create("too many")
        image.pwrite(b"y" * 700, 300)
    assert qcow2c.check(data).exit_code == 0
    with qcow2c.open(data) as image:
        assert image.pread(1000, 0) == b"x" * 300 + b"y" * 700
        assert all(one.open().pread(1000, 0) == b"x" * 700 + bytes(300) for one in image.snapshots.list())
