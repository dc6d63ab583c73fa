"""How an image ends: what failed is not forgotten, why it was closed is said, and nothing is written after that."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import StoreError, UsageError
from qcow2c.storage.sources import WritableMemory


class Failing(WritableMemory):
    """A store of which one flush fails, and all later ones succeed; or every read."""

    flushes_left = -1
    unreadable = False

    def flush(self) -> None:
        self.flushes_left -= 1
        if self.flushes_left == 0:
            raise StoreError("the device was busy")

    def pread(self, length: int, offset: int) -> bytes:
        if self.unreadable:
            raise StoreError("a bad sector")
        return super().pread(length, offset)


def made() -> Failing:
    data = bytearray()
    qcow2c.create(data, 1 << 20)
    return Failing(data)


LATER: dict[str, Callable[[qcow2c.Image], object]] = {
    "flush": lambda image: image.flush(),
    "pwrite": lambda image: image.pwrite(b"x", 0),
    "write_zeroes": lambda image: image.write_zeroes(0, 65536),
    "snapshot": lambda image: image.snapshots.create("later"),
    "discard": lambda image: image.discard(0, 65536),
    "nothing": lambda image: image.pwrite(b"", 0),
    "no zeros": lambda image: image.write_zeroes(0, 0),
}
WHOLE: dict[str, Callable[[qcow2c.Image], object]] = {
    "create": lambda image: image.snapshots.create("two"),
    "apply": lambda image: image.snapshots.apply("one"),
    "delete": lambda image: image.snapshots.delete("one"),
    "rename": lambda image: image.snapshots.rename("one", "other"),
}


@pytest.mark.parametrize("change", WHOLE)
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_flush_that_failed_in_a_change_of_the_whole_is_never_forgotten(change: str, failing: int) -> None:
    store = made()
    image = qcow2c.open(store, "r+")
    image.pwrite(b"one", 0)
    image.snapshots.create("one")
    image.pwrite(b"two", 0)
    image.flush()
    store.flushes_left = failing
    try:
        WHOLE[change](image)
    except StoreError as exc:
        assert "busy" in str(exc)
        for later in LATER.values():
            with pytest.raises((StoreError, UsageError), match="busy"):
                later(image)
        if not image.closed:
            with pytest.raises(StoreError):
                image.close()
    else:
        assert store.flushes_left > 0
        image.close()
    store.flushes_left = -1
    assert qcow2c.check(store).exit_code in (0, 3)


def test_a_read_error_in_a_change_of_the_whole_closes_the_image_and_is_named_by_what_follows() -> None:
    store = made()
    image = qcow2c.open(store, "r+")

    def fail(_successor: object) -> None:
        store.unreadable = True
        raise StoreError("a bad sector")

    with pytest.raises(StoreError, match="bad sector"):
        image.change_as_whole(fail)
    assert image.closed
    for later in (*LATER.values(), lambda image: image.pread(1, 0), lambda image: image.bitmaps):
        with pytest.raises(UsageError, match=r"closed.*it is unknown.*bad sector"):
            later(image)


def test_a_closed_image_cannot_be_flushed(tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "a", 1 << 20)
    for mode in ("r", "r+"):
        image = qcow2c.open(tmp_path / "a", mode)
        image.flush()
        image.close()
        with pytest.raises(ValueError, match="closed"):
            image.flush()


def test_an_image_that_could_not_be_closed_says_so_when_it_is_flushed() -> None:
    store = made()
    image = qcow2c.open(store, "r+")
    image.pwrite(b"x", 0)
    store.flushes_left = 1
    with pytest.raises(StoreError, match="busy"):
        image.close()
    with pytest.raises(UsageError, match=r"closing it failed.*busy"):
        image.flush()


def test_an_image_that_failed_is_gone_once_nobody_holds_it() -> None:
    store = made()
    image = qcow2c.open(store, "r+")
    image.pwrite(b"x", 0)
    gone = threading.Event()
    image._opened.callback(gone.set)
    gc.disable()
    try:
        store.flushes_left = 1
        for act in (image.flush, image.flush, image.close):
            with pytest.raises(StoreError) as caught:
                act()
            del caught
        del image, act
        assert gone.is_set()
    finally:
        gc.enable()


def test_a_write_that_races_with_the_end_is_done_or_raises(tmp_path: Path) -> None:
    for round_number in range(30):
        path = tmp_path / f"{round_number}"
        qcow2c.create(path, 16 << 20)
        image = qcow2c.open(path, "r+")
        done: list[int] = []

        def write(image: qcow2c.Image = image, done: list[int] = done) -> None:
            try:
                for cluster in range(256):
                    image.pwrite(b"done", cluster << 16)
                    done.append(cluster)
            except (UsageError, StoreError):
                pass

        thread = threading.Thread(target=write)
        thread.start()
        while len(done) < round_number:
            pass
        image.close()
        thread.join()
        with qcow2c.open(path) as again:
            assert all(again.pread(4, cluster << 16) == b"done" for cluster in done)


def test_a_raw_backing_file_that_is_cut_off_is_an_error_and_no_zeros(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"x" * (1 << 20))
    qcow2c.create(tmp_path / "a", 2 << 20, backing_file="base.raw", backing_fmt="raw")
    with qcow2c.open(tmp_path / "a") as image:
        assert image.pread(2, (1 << 20) - 1) == b"x\0"
        os.truncate(base, 1 << 16)
        assert image.pread(1 << 16, 0) == b"x" * (1 << 16)
        for offset in (1 << 16, (1 << 16) - 1, (1 << 20) - 1):
            with pytest.raises(StoreError, match="cut off"):
                image.pread(2, offset)
        with pytest.raises(StoreError, match="cut off"):
            list(qcow2c.map(image))
        assert image.pread(1, 1 << 20) == b"\0"


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_lock_is_worth_nothing_on_a_file_that_has_lost_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    from qcow2c.storage import locks

    path, other = tmp_path / "a", tmp_path / "b"
    qcow2c.create(path, 1 << 20)
    qcow2c.create(other, 1 << 20)
    original = locks.lock

    def replaced_first(*arguments: object) -> None:
        if other.exists():
            other.rename(path)
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(locks, "lock", replaced_first)
    with pytest.raises(StoreError, match="another file has taken its name"):
        qcow2c.open(path, mode)
    qcow2c.open(path, mode).close()
