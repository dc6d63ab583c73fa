"""New files: they come into being whole, in place of old ones, or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from qcow2c.errors import ImageLocked, StoreError, UsageError
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.locks import Use
from qcow2c.storage.new_file import complete_file, new_file, replacement
from qcow2c.storage.sources import Store

Make = Callable[..., AbstractContextManager[Store]]
WAYS: list[Make] = [new_file, complete_file]


@pytest.mark.parametrize("make", WAYS)
def test_a_file_that_was_not_there_is_made(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "new", Use.WRITABLE_IMAGE) as store:
        store.pwrite(b"content", 0)
    assert (tmp_path / "new").read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


@pytest.mark.parametrize("make", WAYS)
def test_a_file_that_could_not_be_finished_is_removed(make: Make, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), make(tmp_path / "new", Use.WRITABLE_IMAGE) as store:
        store.pwrite(b"half", 0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", WAYS)
def test_a_file_that_was_there_is_emptied_and_keeps_its_mode(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"much longer than what comes")
    path.chmod(0o640)
    with make(path, Use.WRITABLE_IMAGE) as store:
        assert store.size() == 0
        store.pwrite(b"new", 0)
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("make", WAYS)
def test_a_file_in_use_is_not_touched(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "used"
    path.write_bytes(b"content")
    holder = LocalFile(path, writable=True)
    holder.lock(Use.WRITABLE_IMAGE)
    with pytest.raises(ImageLocked), make(path, Use.WRITABLE_IMAGE):
        pass
    assert path.read_bytes() == b"content"
    holder.close()


@pytest.mark.parametrize("make", WAYS)
def test_a_link_leads_to_the_file_that_is_written(make: Make, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "target")
    with make(tmp_path / "link", Use.WRITABLE_IMAGE) as store:
        store.pwrite(b"x", 0)
        assert store.name == str(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "target").read_bytes() == b"x"


@pytest.mark.parametrize("make", WAYS)
def test_what_cannot_be_made_is_called_by_the_name_that_was_given(make: Make, tmp_path: Path) -> None:
    path = f"{tmp_path}/gone/new"
    with pytest.raises(StoreError, match=f"Could not create '{path}'"), make(path, Use.WRITABLE_IMAGE):
        pass


@pytest.mark.parametrize("make", WAYS)
def test_a_target_in_memory_is_emptied_and_written(make: Make) -> None:
    data = bytearray(b"old content")
    with make(data, Use.WRITABLE_IMAGE) as store:
        store.pwrite(b"new", 0)
    assert data == b"new"


def test_a_complete_file_has_its_name_only_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    with complete_file(path, Use.WRITABLE_IMAGE) as store:
        store.pwrite(b"content", 0)
        assert not path.exists()
    assert path.read_bytes() == b"content"


def test_a_file_that_another_one_has_replaced_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(StoreError, match="another file has taken its name"), new_file(path, Use.WRITABLE_IMAGE):
        path.unlink()
        path.write_bytes(b"another")
    assert path.read_bytes() == b"another"


# --- in place of another file ---


@pytest.fixture
def old(tmp_path: Path) -> Iterator[LocalFile]:
    path = tmp_path / "disk"
    path.write_bytes(b"old")
    path.chmod(0o604)
    with closing(LocalFile(path, writable=True)) as file:
        yield file


def test_a_replacement_takes_name_and_mode(old: LocalFile, tmp_path: Path) -> None:
    with replacement(old, Use.WRITABLE_IMAGE) as new:
        new.pwrite(b"new", 0)
        assert (tmp_path / "disk").read_bytes() == b"old"
        assert new.name == old.name
    assert (tmp_path / "disk").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o604
    assert list(tmp_path.iterdir()) == [tmp_path / "disk"]


def test_a_replacement_that_fails_leaves_the_old_file_alone(old: LocalFile, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacement(old, Use.WRITABLE_IMAGE) as new:
        new.pwrite(b"half", 0)
        raise ZeroDivisionError
    assert (tmp_path / "disk").read_bytes() == b"old" and list(tmp_path.iterdir()) == [tmp_path / "disk"]


def test_what_a_killed_process_has_left_is_overwritten(old: LocalFile, tmp_path: Path) -> None:
    (tmp_path / f".disk.{os.getpid()}.partial").write_bytes(b"left behind, and longer")
    with replacement(old, Use.WRITABLE_IMAGE) as new:
        new.pwrite(b"new", 0)
    assert (tmp_path / "disk").read_bytes() == b"new"


def test_a_file_of_two_names_is_not_replaced(old: LocalFile, tmp_path: Path) -> None:
    os.link(tmp_path / "disk", tmp_path / "other")
    with pytest.raises(UsageError, match="2 names"), replacement(old, Use.WRITABLE_IMAGE):
        pass
    assert (tmp_path / "other").read_bytes() == b"old"


def test_a_name_of_the_greatest_length_has_room_for_another_beside_it(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    path.write_bytes(b"old")
    with closing(LocalFile(path, writable=True)) as file, replacement(file, Use.WRITABLE_IMAGE) as new:
        new.pwrite(b"new", 0)
    assert path.read_bytes() == b"new"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Return a name at which a file is mounted, where that is allowed."""
    name = tmp_path / "there" / "disk"
    name.parent.mkdir()
    name.touch()
    (tmp_path / "kept").write_bytes(b"old and longer than the new")
    if os.geteuid() or subprocess.run(["mount", "--bind", tmp_path / "kept", name], check=False).returncode:
        pytest.skip("nothing mounted at a file: only the superuser can do that")
    try:
        yield name
    finally:
        subprocess.run(["umount", name], check=True)


def test_where_something_is_mounted_the_content_is_replaced(mounted: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").chmod(0o604)
    identity = mounted.stat().st_ino
    with complete_file(mounted, Use.WRITABLE_IMAGE) as new:
        new.pwrite(b"first", 0)
    assert (tmp_path / "kept").read_bytes() == b"first"
    with closing(LocalFile(mounted, writable=True)) as file, replacement(file, Use.WRITABLE_IMAGE) as new:
        new.pwrite(b"second", 1 << 20)
    assert (tmp_path / "kept").read_bytes() == bytes(1 << 20) + b"second"
    assert mounted.stat().st_ino == identity and stat.S_IMODE(mounted.stat().st_mode) == 0o604
    assert list(mounted.parent.iterdir()) == [mounted]
