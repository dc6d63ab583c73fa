"""Full disks: what frees space needs little, what fails leaves nothing behind, what is needed is as stated."""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.atomic.empty import empty
from qcow2c.atomic.successor import changing
from qcow2c.errors import StoreError
from qcow2c.ops import bitmaps
from qcow2c.storage.sources import Memory
from tests.crash.recording import Recorder, crash_states
from tests.crash.room import BLOCK, FullStore

KIB, MIB = 1024, 1 << 20
SIZE = MIB // 2
PLENTY = 1 << 20

Act = Callable[[FullStore], object]


def full_image(**options: Any) -> bytes:
    """Return an image of a full disk, with two snapshots between which half of it has changed, and two bitmaps."""
    data = bytearray()
    qcow2c.create(data, SIZE, **options)
    chooser = random.Random(1)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(chooser.randbytes(SIZE), 0)
        image.snapshots.create("first", date=1)
        image.pwrite(chooser.randbytes(SIZE // 2), 0)
        image.snapshots.create("last", date=2)
    if options.get("compat") != "0.10":
        for name in ("one", "two"):
            bitmaps.add(data, name)
    return bytes(data)


def plain_image(**options: Any) -> bytes:
    data = bytearray()
    qcow2c.create(data, SIZE, **options)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(random.Random(1).randbytes(SIZE), 0)
    return bytes(data)


def overlay(**options: Any) -> tuple[bytes, bytes]:
    """Return an overlay with all of its disk, and its base, which holds all of it, too."""
    data = bytearray()
    qcow2c.create(data, SIZE, backing_file="base", backing_fmt="qcow2", check_backing=False, **options)
    base = plain_image()
    with qcow2c.open(data, "r+", backing=base) as image:
        image.pwrite(random.Random(2).randbytes(SIZE), 0)
    return bytes(data), base


def disks(data: Any) -> dict[str, bytes]:
    """Return what the disk and its snapshots show."""
    with qcow2c.open(data, backing=False) as image:
        found = {"": image.pread(image.size(), 0)}
        for snapshot in image.snapshots.list():
            found[snapshot.name] = snapshot.open().readall()
        return found


OPTIONS: dict[str, dict[str, Any]] = {
    "64k": {},
    "4k": {"cluster_size": 4 * KIB},
    "version 2": {"compat": "0.10"},
    "subclusters": {"extended_l2": True, "cluster_size": 16 * KIB},
    "lazy": {"lazy_refcounts": True},
}

# --- what frees space -----------------------------------------------------------------------------------------------


def delete_last(store: FullStore) -> None:
    qcow2c.snapshots.delete(store, "last")


def shrink(store: FullStore) -> None:
    qcow2c.resize(store, SIZE // 2 + 512, shrink=True)


def remove_bitmap(store: FullStore) -> None:
    bitmaps.remove(store, "one")


FREEING: dict[str, tuple[Callable[..., bytes], Act]] = {
    "snapshot": (full_image, delete_last),
    "shrink": (plain_image, shrink),
}
CASES = [(act, options) for act in FREEING for options in OPTIONS]


@pytest.mark.parametrize(("act", "options"), CASES)
def test_what_frees_space_needs_none(act: str, options: str) -> None:
    make, change = FREEING[act]
    before = make(**OPTIONS[options])
    store = FullStore(before, room=0)
    held = len(store.held)
    change(store)
    assert len(store.held) < held and store.size() <= len(before)
    assert qcow2c.check(Memory(bytes(store.contents))).exit_code == 0
    other = bytearray(before)
    change(other)  # type: ignore[arg-type] # A bytearray, with all the room there is.
    assert disks(bytes(store.contents)) == disks(bytes(other))


@pytest.mark.parametrize(("act", "options"), CASES)
def test_a_crash_where_there_is_no_room_leaves_the_image_before_or_after(act: str, options: str) -> None:
    """Not free of leaks, nor with each copied bit; a repair mends that, and nothing that can be seen is another."""
    make, change = FREEING[act]
    before, recorder = make(**OPTIONS[options]), Recorder()
    store = FullStore(before, 0, recorder)
    change(store)
    views = [disks(before), disks(bytes(store.contents))]
    seen, chooser = set(), random.Random(1)
    states = [state for state in crash_states(recorder, 1) if state.time == len(recorder.log) or chooser.random() < 0.1]
    for state in states[:: max(1, len(states) // 25)]:
        found = qcow2c.check(Memory(state.files[0]))
        wrong = {fault.rule for fault in found.faults}
        assert found.failed is None and wrong <= {"copied"}, (state.story, wrong)
        shown = disks(state.files[0])
        assert shown in views, state.story
        seen.add(views.index(shown))
        mended = bytearray(state.files[0])
        assert qcow2c.repair(mended, "all", allow_data_loss=True).exit_code == 0, state.story
        assert disks(bytes(mended)) == shown, state.story
    assert 1 in seen


def test_commit_empties_an_image_without_room(tmp_path: Path) -> None:
    image, base = overlay()
    (tmp_path / "base").write_bytes(base)
    store = FullStore(image, room=0)
    with changing(store) as successor:
        empty(successor)
    assert qcow2c.check(Memory(bytes(store.contents))).exit_code == 0
    assert store.size() < len(image)
    with qcow2c.open(bytes(store.contents), backing=base) as opened:
        assert opened.pread(SIZE, 0) == disks(base)[""]


def test_a_bitmap_is_removed_with_room_for_one_block() -> None:
    store = FullStore(full_image(), room=1)
    remove_bitmap(store)
    assert qcow2c.check(Memory(bytes(store.contents))).exit_code == 0
    remove = FullStore(bytes(store.contents), room=0)
    bitmaps.remove(remove, "two")
    assert qcow2c.check(Memory(bytes(remove.contents))).exit_code == 0


# --- what fails -----------------------------------------------------------------------------------------------------

ACTS: dict[str, Act] = {
    "snapshot -c": lambda store: qcow2c.snapshots.create(store, "new"),
    "snapshot -a": lambda store: qcow2c.snapshots.apply(store, "first"),
    "snapshot -d": lambda store: qcow2c.snapshots.delete(store, "first"),
    "resize": lambda store: qcow2c.resize(store, 4 * SIZE, preallocation="falloc"),
    "resize, metadata": lambda store: qcow2c.resize(store, SIZE << 6, preallocation="metadata"),
    "resize --shrink": lambda store: qcow2c.resize(store, SIZE // 2, shrink=True),
    "amend": lambda store: qcow2c.amend(store, refcount_bits=64),
    "bitmap --add": lambda store: bitmaps.add(store, "new"),
    "bitmap --remove": remove_bitmap,
}


@pytest.mark.parametrize("act", ACTS)
def test_nothing_more_is_held_after_there_was_no_room(act: str) -> None:
    before = full_image()
    if act == "snapshot -a":  # Bitmaps do not allow it.
        trimmed = bytearray(before)
        for name in ("one", "two"):
            bitmaps.remove(trimmed, name)
        before = bytes(trimmed)
    for room in (0, 1, 2, 3, 5, 8, 13, 40, 100, PLENTY):
        store = FullStore(before, room)
        held, shown = len(store.held), disks(before)
        try:
            ACTS[act](store)
        except StoreError as exc:
            assert exc.errno == errno.ENOSPC
            # A bitmap may have the end of the last cluster added to the file, which takes no room.
            assert store.size() <= -(-len(before) // 65536) * 65536, room
            assert len(store.held) <= held, room
            assert disks(bytes(store.contents)) == shown, room
            assert qcow2c.check(Memory(bytes(store.contents))).exit_code == 0, room
        else:
            break
    assert qcow2c.check(Memory(bytes(store.contents))).exit_code == 0


def test_a_write_without_room_leaves_the_file_as_it_was() -> None:
    before = plain_image()
    data = bytearray(before)
    qcow2c.resize(data, 2 * SIZE)
    store = FullStore(bytes(data), room=40)
    size = store.size()
    with qcow2c.open(store, "r+") as image:
        with pytest.raises(StoreError):
            image.pwrite(b"x" * SIZE, SIZE)
        image.flush()
        assert image.pread(SIZE, 0) == disks(before)[""]
    assert store.size() <= size + 2 * 65536
    assert qcow2c.check(Memory(bytes(store.contents))).exit_code == 0


@pytest.mark.parametrize("compressed", [False, True])
def test_a_writer_uses_what_it_has_freed_before_it_gives_up(*, compressed: bool) -> None:
    store = FullStore(plain_image(), room=0)
    half = SIZE // 2
    with qcow2c.open(store, "r+") as image:
        kept = image.pread(half, half)
        image.discard(0, half)
        if compressed:
            image.write_compressed((b"again" * 65536)[:half], 0)
        else:
            image.pwrite(b"y" * half, 0)
        image.flush()
        assert image.pread(half, half) == kept
        assert image.pread(5, 0) == (b"again" if compressed else b"yyyyy")
    assert qcow2c.check(Memory(bytes(store.contents))).exit_code == 0


# --- what is needed -------------------------------------------------------------------------------------------------

STATED = Path(__file__).parents[2] / "docs" / "space.md"


def stated() -> Iterator[tuple[str, int]]:
    """Yield the operations of the table and the blocks that it states for the example."""
    for line in STATED.read_text().splitlines():
        found = re.match(r"\| `([^`]+)` \| .* \| (\d+) \|$", line)
        if found:
            yield found[1], int(found[2])


def test_the_table_names_each_operation() -> None:
    assert {operation for operation, _ in stated()} == set(ACTS)


@pytest.mark.parametrize(("operation", "blocks"), list(stated()))
def test_the_room_that_is_stated_is_enough(operation: str, blocks: int) -> None:
    data = bytearray(full_image())
    if operation == "snapshot -a":
        for name in ("one", "two"):
            bitmaps.remove(data, name)
    store = FullStore(bytes(data), blocks)
    ACTS[operation](store)
    assert qcow2c.check(Memory(bytes(store.contents))).exit_code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 8 MiB, where that is allowed."""
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], check=False).returncode
    ):
        pytest.skip("no file system of its own: only the superuser can mount one")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_real_file_system_that_is_full(small_disk: Path) -> None:
    image = small_disk / "image"
    image.write_bytes(full_image())
    with suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
        while rest.write(bytes(BLOCK)):
            pass
    used = image.stat().st_blocks
    with pytest.raises(StoreError):
        qcow2c.resize(image, 2 * SIZE, preallocation="full")
    assert image.stat().st_blocks <= used
    qcow2c.snapshots.delete(image, "last")
    assert image.stat().st_blocks < used
    qcow2c.snapshots.delete(image, "first")
    qcow2c.resize(image, SIZE // 2, shrink=True)
    bitmaps.remove(image, "one")
    assert qcow2c.check(image).exit_code == 0


def test_an_encrypted_disk_is_made_smaller_in_place(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qcow2c.create(path, SIZE, encryption="luks", key="k", cipher="aes-128", iter_time_ms=1)
    content = random.Random(4).randbytes(SIZE)
    with qcow2c.open(path, "r+", key="k") as image:
        image.pwrite(content, 0)
    store = FullStore(path.read_bytes(), room=0)
    qcow2c.resize(store, SIZE // 2 + 512, shrink=True, key="k")
    path.write_bytes(bytes(store.contents))
    assert qcow2c.check(path).exit_code == 0
    cluster = bytearray(65536)
    with qcow2c.open(path, key="k") as image:  # As a disk that is larger would show the last cluster.
        header = image.header
        larger = image.layer.state(header.l1_table_offset, header.l1_size, SIZE // 2 + len(cluster))
        larger.read_into(memoryview(cluster), SIZE // 2)
    assert cluster == content[SIZE // 2 : SIZE // 2 + 512].ljust(len(cluster), b"\0")
