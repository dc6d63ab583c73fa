"""What is refused, what is left when a copy fails at any call, and what a copy costs."""

from __future__ import annotations

import os
import subprocess
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.copy.buffers import SLAB_BYTES
from qcow2c.disk.disk import open_disk
from qcow2c.errors import CorruptData, ImageLocked, NotQcow2, Qcow2Error, StoreError, UsageError
from qcow2c.ops.convert import How, convert, copy_disks
from qcow2c.ops.create import create
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Buffer, no_space
from tests.building import L2_COPIED, Builder, deflate

MIB = 1 << 20
CLUSTER = 4096
DISK = b"".join(bytes([1 + number]) * MIB for number in range(9)) + bytes(MIB) + b"end".ljust(512, b"\0")

KINDS: dict[str, dict[str, Any]] = {
    "raw": {},
    "raw, durable or not": {"durable": False},
    "raw, allocated": {"preallocation": "falloc"},
    "qcow2": {"output_format": "qcow2"},
    "qcow2, compressed": {"output_format": "qcow2", "compressed": True},
    "qcow2, preallocated": {"output_format": "qcow2", "preallocation": "metadata"},
    "qcow2 over a backing file": {"output_format": "qcow2", "backing_file": "base", "backing_fmt": "raw"},
}
"""Options of new targets of every kind."""


def looks_complete(target: Path) -> bool:
    """Tell whether a target is there and would be taken for what it was to become."""
    if not target.exists():
        return False
    try:
        with qcow2c.open(target, gate="any"):
            return True
    except NotQcow2:
        return bool(target.stat().st_size and target.suffix == ".raw")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").write_bytes(bytes(len(DISK)))
    return tmp_path


def target_in(folder: Path, options: dict[str, Any]) -> Path:
    return folder / ("target.qcow2" if "output_format" in options else "target.raw")


# --- what is refused ------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"output_format": "vmdk"}, "Unknown file format 'vmdk'"),
    ({"compressed": True}, "Compression not supported for this file format"),
    ({"target_is_zero": True}, "--target-is-zero requires use of -n flag"),
    (
        {"output_format": "qcow2", "compressed": True, "preallocation": "full"},
        "Compression and preallocation not supported at the same time",
    ),
    ({"sparse_size": 1000}, "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to"),
    ({"sparse_size": -512}, "Invalid buffer size"),
    ({"sparse_size": (16 << 20) + 512}, "Invalid buffer size"),
    ({"preallocation": "metadata"}, "Parameter 'preallocation' does not accept value 'metadata'"),
    ({"output_format": "qcow2", "cluster_size": 1000}, "Cluster size must be a power of two"),
    ({"output_format": "qcow2", "backing_file": "base"}, "Use of backing file requires explicit backing format"),
    ({"output_format": "qcow2", "compressed": True, "compression_level": 0}, "compression level 0 is not between"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str, folder: Path) -> None:
    target = folder / "target"
    with pytest.raises(UsageError) as caught:
        convert(DISK, target, **options)
    assert caught.value.message.startswith(message)
    assert sorted(os.listdir(folder)) == ["base"], "nothing is made"


def test_a_source_that_is_none_makes_no_target(folder: Path) -> None:
    for source in (folder / "missing", folder):
        with pytest.raises(StoreError):
            convert(source, folder / "target")
    with pytest.raises(Qcow2Error):
        convert(DISK, folder / "target", image_format="qcow2")
    with pytest.raises(StoreError, match=r"Could not create .*target': No such file or directory"):
        convert(DISK, folder / "nowhere" / "target")
    with pytest.raises(StoreError, match="it is a directory"):
        convert(DISK, folder)
    with pytest.raises(UsageError):
        convert(DISK, b"bytes cannot be written")
    assert sorted(os.listdir(folder)) == ["base"]


@pytest.mark.parametrize("options", [{}, {"output_format": "qcow2"}], ids=str)
def test_a_source_cannot_be_its_own_target(options: dict[str, Any], folder: Path) -> None:
    path = folder / "disk.qcow2"
    create(path, MIB)
    before = path.read_bytes()
    with pytest.raises(ImageLocked):
        convert(path, path, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize("options", list(KINDS.values())[:4], ids=str)
def test_a_target_that_somebody_uses_is_left_alone(options: dict[str, Any], folder: Path) -> None:
    target = target_in(folder, options)
    create(target, MIB)
    before = target.read_bytes()
    with qcow2c.open(target, "r+"), pytest.raises(ImageLocked):
        convert(DISK, target, **options)
    assert target.read_bytes() == before
    assert sorted(os.listdir(folder)) == ["base", target.name]


# --- failing calls --------------------------------------------------------------------------------------------------


class Limited:
    """Makes all local files that are written fail at one of their changing calls, counted together."""

    CALLS = ("pwrite", "pwritev", "flush", "truncate", "allocate", "write_zeroes", "rename", "flush_name")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 30
        self.made = 0
        self._lock = threading.Lock()
        for name in self.CALLS:
            patch.setattr(LocalFile, name, self._failing(getattr(LocalFile, name)))

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def limited(store: LocalFile, *arguments: Any) -> Any:
            with self._lock:
                self.left -= 1
                self.made += 1
                if self.left < 0:
                    raise store.failure(no_space(), "write")
            return call(store, *arguments)

        return limited


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_nothing_that_looks_complete(
    kind: str, *, there: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, limited = KINDS[kind], Limited(monkeypatch)
    target = target_in(folder, options)
    before = threading.active_count()
    convert(DISK, target, **options)
    needed = limited.made
    steps = sorted({*range(8), *range(0, needed, 1 + needed // 15), *range(max(0, needed - 10), needed)})
    last, old = 0, b""
    for allowed in steps:
        target.unlink(missing_ok=True)
        if there:
            limited.left = 1 << 30
            create(target, MIB, cluster_size=4096)
            old = target.read_bytes()
        limited.left = allowed
        try:
            convert(DISK, target, **options)
        except StoreError as error:
            assert "nothing could be written" in str(error)
        else:
            continue  # Threads do not make the same calls each time.
        last = allowed
        durable_at_the_end = there and allowed >= needed - 2  # All was written; its name may not be durable.
        untouched = there and target.exists() and target.read_bytes() == old
        assert durable_at_the_end or untouched or not looks_complete(target), allowed
        assert not [name for name in os.listdir(folder) if name.endswith(".partial")]
        assert threading.active_count() == before
    assert last


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_leaves_nothing_that_looks_complete(kind: str, folder: Path) -> None:
    told: list[bool] = []

    def progress(done: int, size: int) -> None:
        told.append(done == size)  # Where the threads were faster, the first that is told is the end of all.
        raise KeyboardInterrupt

    options = KINDS[kind]
    target = target_in(folder, options)
    with pytest.raises(KeyboardInterrupt):
        convert(DISK, target, progress=progress, **options)
    assert told[-1] or not looks_complete(target)
    create(target, MIB)
    old = target.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        convert(DISK, target, progress=progress, **options)
    assert told[-1] or target.read_bytes() == old, "the old file stays until the new one is complete"


OVER = ({}, {"output_format": "qcow2"}, {"output_format": "qcow2", "preallocation": "metadata"})


@pytest.mark.parametrize("options", OVER, ids=str)
@pytest.mark.parametrize("bad", [0, 9 * MIB])
def test_a_source_that_cannot_be_read_does_not_cost_the_old_target(
    options: dict[str, Any], bad: int, folder: Path
) -> None:
    class Broken(Memory):
        def readinto_at(self, buffer: memoryview, offset: int) -> int:
            if offset <= bad < offset + len(buffer):
                raise StoreError("unreadable sector")
            return super().readinto_at(buffer, offset)

    target = target_in(folder, options)
    target.write_bytes(b"old" * 1000)
    with pytest.raises(StoreError, match="unreadable sector"):
        convert(Broken(DISK), target, **options)
    assert target.read_bytes() == b"old" * 1000
    assert sorted(os.listdir(folder)) == ["base", target.name]
    os.link(target, folder / "second name")
    with pytest.raises(StoreError, match="unreadable sector"):
        convert(Broken(DISK), target, **options)
    # Written in place: only what fails in the beginning is found before that.
    assert (target.read_bytes() == b"old" * 1000) is (bad == 0)


@pytest.mark.parametrize("options", OVER, ids=str)
def test_a_target_that_is_there_stays_what_it_is(options: dict[str, Any], folder: Path) -> None:
    target = target_in(folder, options)
    target.write_bytes(b"old")
    target.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(target, 1234, 2345)
    with suppress(OSError):
        os.setxattr(target, "user.note", b"mine")
    before, attributes = target.stat(), set(os.listxattr(target))
    convert(DISK, target, **options)
    after = target.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert set(os.listxattr(target)) == attributes
    os.link(target, folder / "second name")
    convert(DISK + bytes(512), target, **options)
    assert (folder / "second name").samefile(target)
    assert qcow2c.compare(folder / "second name", DISK + bytes(512)).identical


def test_what_killed_runs_have_left_is_removed_by_the_next(folder: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = folder / f".target.{dead.pid}.partial"
    others = [folder / f".target.{os.getppid()}.partial", folder / f".target2.{dead.pid}.partial"]
    for path in (left, *others):
        path.write_bytes(b"half")
    convert(DISK, folder / "target")
    assert not left.exists()
    assert all(path.read_bytes() == b"half" for path in others)


def test_a_target_that_vanishes_is_an_error(folder: Path) -> None:
    for options in ({}, {"output_format": "qcow2"}):
        target = target_in(folder, options)

        class Removes(Memory):
            def readinto_at(self, buffer: memoryview, offset: int) -> int:
                for path in folder.glob("*target*"):
                    path.unlink(missing_ok=True)
                return super().readinto_at(buffer, offset)

        with pytest.raises(StoreError, match="Could not find again"):
            convert(Removes(DISK), target, **options)
        assert sorted(os.listdir(folder)) == ["base"]


def test_a_file_object_never_holds_a_half_made_image_with_its_magic_value() -> None:
    class Full(WritableMemory):
        left = 3

        def pwrite(self, data: Buffer, offset: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise StoreError("no space")
            super().pwrite(data, offset)

    for left in range(3):
        image = bytearray(DISK)
        store = Full(image)
        store.left = left
        with pytest.raises(StoreError):
            convert(DISK, store, output_format="qcow2")
        with pytest.raises(NotQcow2):
            qcow2c.open(image)


# --- files that take their name in the end --------------------------------------------------------------------------


def test_what_a_killed_process_left_behind_is_not_part_of_the_next_copy(folder: Path) -> None:
    """In a container the next process has the same number."""
    left = folder / f".target.raw.{os.getpid()}.partial"
    left.write_bytes(b"stale" * MIB)
    convert(b"x" * 512 + bytes(MIB), folder / "target.raw")
    assert (folder / "target.raw").read_bytes() == b"x" * 512 + bytes(MIB)
    assert not left.exists()


def test_two_copies_to_one_name_do_not_disturb_each_other(folder: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Memory):
        def readinto_at(self, buffer: memoryview, offset: int) -> int:
            begun.set()
            assert go_on.wait(20)
            return super().readinto_at(buffer, offset)

    first = threading.Thread(target=convert, args=(Slow(DISK), folder / "target"))
    first.start()
    assert begun.wait(20)
    with pytest.raises(ImageLocked):
        convert(b"other".ljust(512), folder / "target")
    go_on.set()
    first.join()
    assert (folder / "target").read_bytes() == DISK


def test_long_names_modes_and_links(folder: Path) -> None:
    convert(DISK, folder / ("n" * 250))
    convert(DISK, folder / ("\N{SNOWMAN}" * 80))
    target = folder / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (folder / "link").symlink_to("target")
    (folder / "dangling").symlink_to("new")
    for name in ("link", "dangling"):
        convert(DISK, folder / name)
        assert (folder / name).is_symlink() and (folder / name).read_bytes() == DISK
    assert target.stat().st_mode & 0o777 == 0o640


# --- damaged images -------------------------------------------------------------------------------------------------


def damaged() -> bytes:
    builder = Builder(16 * CLUSTER)
    builder.data(0, b"a" * CLUSTER)
    builder.entry(1, 1 << 30 | L2_COPIED)
    builder.compressed(2, b"\xff" * 100)
    builder.entry(3, 512 | L2_COPIED)
    builder.compressed(4, deflate(b"e" * CLUSTER))
    return builder.build()


@pytest.mark.parametrize("options", [{}, {"output_format": "qcow2"}], ids=str)
def test_salvage_puts_zeros_where_nothing_can_be_read(options: dict[str, Any], folder: Path) -> None:
    target = target_in(folder, options)
    with pytest.raises(Qcow2Error):
        convert(damaged(), target, **options)
    assert not looks_complete(target)
    convert(damaged(), target, salvage=True, **options)
    expected = (b"a" * CLUSTER + bytes(3 * CLUSTER) + b"e" * CLUSTER).ljust(16 * CLUSTER, b"\0")
    with open_disk(target) as disk:
        buffer = memoryview(bytearray(16 * CLUSTER))
        disk.read_into(buffer, 0)
    assert buffer == expected
    with open_disk(damaged(), on_error="zero") as disk:
        copy_disks([disk], bytearray(), "raw", How())
        assert disk.image is not None
        lost = [entry.guest.offset for entry in disk.image.salvaged]
    assert sorted(lost) == [CLUSTER, 2 * CLUSTER, 3 * CLUSTER]


def test_data_that_is_not_there_ends_the_copy(folder: Path) -> None:
    builder = Builder(16 * CLUSTER)
    builder.entry(1, 1 << 30 | L2_COPIED)
    with pytest.raises(CorruptData, match="past the end of the file"):
        convert(builder.build(), folder / "target")


# --- progress and memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_progress_only_goes_up_and_ends_at_the_size(kind: str, folder: Path) -> None:
    told: list[tuple[int, int]] = []
    options = KINDS[kind]
    convert(DISK, target_in(folder, options), progress=lambda *step: told.append(step), **options)
    assert {size for _, size in told} == {len(DISK)}
    assert all(one <= other for (one, _), (other, _) in pairwise(told))
    assert told[-1] == (len(DISK), len(DISK))


class Endless(Memory):
    """A long disk that takes no memory."""

    def __init__(self, size: int) -> None:
        super().__init__(b"")
        self._length = size

    def size(self) -> int:
        return self._length

    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        length = max(0, min(len(buffer), self._length - offset))
        for at in range(0, length, SLAB_BYTES):
            buffer[at : min(length, at + SLAB_BYTES)] = b"\1" * (min(length, at + SLAB_BYTES) - at)
        return length

    def pread(self, length: int, offset: int) -> bytes:
        buffer = memoryview(bytearray(length))
        return bytes(buffer[: self.readinto_at(buffer, offset)])


class Sink(WritableMemory):
    """Takes everything, keeps nothing."""

    def __init__(self) -> None:
        super().__init__(bytearray())
        self.end = 0

    def size(self) -> int:
        return self.end

    def pwrite(self, data: Buffer, offset: int) -> None:
        self.end = max(self.end, offset + len(data))

    def truncate(self, size: int) -> None:
        self.end = size


@pytest.mark.parametrize(
    "options",
    [{}, {"output_format": "qcow2"}, {"output_format": "qcow2", "cluster_size": 512, "refcount_bits": 64}],
    ids=str,
)
def test_memory_does_not_depend_on_the_size(options: dict[str, Any]) -> None:
    """Buffers lie outside of what is traced: there are eight at most of 4 MiB with two threads."""
    peaks = []
    for size in (32 * MIB, 128 * MIB):
        tracemalloc.start()
        convert(Endless(size), Sink(), image_format="raw", threads=2, durable=False, **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 48 * MIB
    assert peaks[1] < peaks[0] + 12 * MIB


def test_file_objects_of_the_caller_stay_open() -> None:
    source, target = BytesIO(DISK), BytesIO(b"longer than what comes" * MIB)
    convert(source, target, image_format="raw")
    assert target.getvalue() == DISK
    convert(source, target, output_format="qcow2")
    assert not source.closed and not target.closed
    with qcow2c.open(target) as image:
        assert image.size() == len(DISK)
