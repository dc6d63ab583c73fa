"""What a fork does: the child reads, waits for no thread of the parent, and writes nothing that the parent opened."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import StoreError
from qcow2c.storage.thread_locks import fork_safe

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")


def in_child(action: Callable[[], object]) -> None:
    """Do something in a child process, which must neither raise nor hang."""
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    qcow2c.create(tmp_path / "a.qcow2", 64 << 20)
    return tmp_path / "a.qcow2"


CHANGES: dict[str, Callable[[qcow2c.Image], object]] = {
    "pwrite": lambda image: image.pwrite(b"x", 5),
    "write_zeroes": lambda image: image.write_zeroes(0, 1 << 20),
    "discard": lambda image: image.discard(0, 1 << 20),
    "write_compressed": lambda image: image.write_compressed(bytes(65536), 0),
    "flush": lambda image: image.flush(),
    "snapshot": lambda image: image.snapshots.create("s"),
    "bitmap": lambda image: image.engine.changing_bitmaps().__enter__(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_child_that_changes_what_its_parent_opened_is_told_so(path: Path, change: Callable[[Any], object]) -> None:
    def refused() -> None:
        with pytest.raises(StoreError, match="opened by process"):
            change(image)
        image.close()

    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"parent", 0)
        before = path.read_bytes()
        in_child(refused)
        assert path.read_bytes() == before
        assert image.pread(6, 0) == b"parent"
    assert qcow2c.check(path).exit_code == 0


@pytest.mark.parametrize("closes_first", [True, False])
def test_a_child_that_ends_writes_nothing(path: Path, *, closes_first: bool) -> None:
    image = qcow2c.open(path, "r+")
    image.pwrite(b"early" * 100, 0)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.read(reader, 1)
        image.close()
        os._exit(0)
    for cluster in range(300):
        image.pwrite(b"flushed", cluster << 16)
    image.flush()
    if closes_first:
        image.close()
    os.write(writer, b"x")
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    image.close()
    with qcow2c.open(path, "r+") as again:
        assert all(again.pread(7, cluster << 16) == b"flushed" for cluster in range(300))
    assert qcow2c.check(path).exit_code == 0


def test_the_parent_unlocks_what_it_closes_although_a_child_lives(path: Path) -> None:
    image = qcow2c.open(path, "r+")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.read(reader, 1)
        os._exit(0)
    image.close()
    qcow2c.open(path, "r+").close()
    os.write(writer, b"x")
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)


def test_a_child_reads_although_a_thread_of_its_parent_held_every_lock(path: Path) -> None:
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"read me", 32 << 20)
        image.flush()
        image.layer.l2_tables.clear()
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with image.layer.turn, image.layer._lock, image.layer.decompressed._lock:
                held.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()

        def reads() -> None:
            assert image.pread(7, 32 << 20) == b"read me"
            image.close()

        try:
            in_child(reads)
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("buffering", [0, -1])
def test_processes_that_read_one_file_object_do_not_mix_their_positions(path: Path, buffering: int) -> None:
    with qcow2c.open(path, "r+") as image:
        for cluster in range(64):
            image.pwrite(bytes([cluster]) * 65536, cluster << 16)

    def reads() -> None:
        for _ in range(20):
            for cluster in range(64):
                assert image.pread(65536, cluster << 16) == bytes([cluster]) * 65536

    with path.open("rb", buffering=buffering) as file, qcow2c.open(file) as image:
        children = []
        for _ in range(2):
            if not (child := os.fork()):
                try:
                    reads()
                except BaseException:
                    os._exit(1)
                os._exit(0)
            children.append(child)
        reads()
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_a_child_does_not_move_a_position_that_it_may_share_with_its_parent(path: Path) -> None:
    class Wrapped(io.BufferedReader):
        """May have a descriptor whose bytes are others."""

    def refused() -> None:
        with pytest.raises(StoreError, match="opened by process"):
            image.pread(1, 1 << 20)

    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"x", 1 << 20)
    with Wrapped(io.FileIO(path)) as file, qcow2c.open(file) as image:
        in_child(refused)
        assert image.pread(1, 1 << 20) == b"x"
    with qcow2c.open(path.read_bytes()) as image:
        in_child(lambda: image.pread(1, 1 << 20))
    with qcow2c.open(io.BytesIO(path.read_bytes())) as image:
        in_child(lambda: image.pread(1, 1 << 20))


def test_a_child_moves_no_position_and_ends_as_any_process_does(path: Path) -> None:
    with path.open("r+b") as file, qcow2c.open(file, "r+") as image:
        image.pwrite(b"parent", 0)
        image.flush()
        file.seek(5)
        child = os.fork()
        if not child:
            image.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == file.seek(5)
        assert image.pread(6, 0) == b"parent"


PROGRAM = """
import os, sys, qcow2c
image = qcow2c.open(sys.argv[1], "r+")
image.pwrite(b"early", 0)
child = os.fork()
if child:
    os.waitpid(child, 0)
    for cluster in range(200):
        image.pwrite(b"late", cluster << 16)
    image.flush()
    if os.fork():
        os.wait()
        image.close()
"""


def test_a_child_that_leaves_by_the_end_of_its_program_writes_nothing(path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(path)], capture_output=True, text=True, check=False
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    with qcow2c.open(path) as image:
        assert all(image.pread(4, cluster << 16) == b"late" for cluster in range(200))
    assert qcow2c.check(path).exit_code == 0


def test_a_child_removes_no_file_that_its_parent_is_making(tmp_path: Path) -> None:
    from qcow2c.storage.local_file import LocalFile

    store = LocalFile(tmp_path / "made", writable=True, create=True)
    in_child(store.remove)
    assert (tmp_path / "made").exists()
    store.remove()
    store.close()
    assert not (tmp_path / "made").exists()


def test_a_fork_within_a_block_lets_the_child_end_the_block() -> None:
    lock = fork_safe(threading.RLock())

    def leave() -> None:
        with lock:
            pass
        lock.__exit__(None, None, None)

    with lock:
        in_child(leave)
    with pytest.raises(RuntimeError):
        lock.__exit__(None, None, None)
