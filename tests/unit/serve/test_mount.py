"""What FUSE asks, and what it is told; the file system itself is mounted in tests/interop/test_mount.py."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import CorruptData, MissingKey, StoreError, UsageError
from qcow2c.serve import mount
from qcow2c.serve.folder import Folder, open_folder
from qcow2c.serve.mount import PROCESS, SEEK_DATA, SEEK_HOLE, Answers, library

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk"
    qcow2c.create(image, SIZE)
    with qcow2c.open(image, "r+") as disk:
        disk.pwrite(b"first".ljust(1 << 16, b"."), 0)
        disk.snapshots.create("one")
    return image


@pytest.fixture
def folder(path: Path) -> Iterator[Folder]:
    with open_folder(path, writable=True) as found:
        yield found


@pytest.fixture
def answers(folder: Folder) -> Answers:
    return Answers(folder, changed_at=5)


def opened(answers: Answers, path: str, flags: int = os.O_RDWR) -> Any:
    info = SimpleNamespace(flags=flags, fh=0, direct_io=0, keep_cache=0)
    assert answers.open(path, info) == 0
    return info


def refused(what: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        what()
    return caught.value.errno


def test_files_and_directories_are_what_they_are(answers: Answers) -> None:
    assert stat.S_ISDIR(answers.getattr("/")["st_mode"]) and stat.S_ISDIR(answers.getattr("/snapshots")["st_mode"])
    disk = answers.getattr("/disk")
    assert (disk["st_size"], disk["st_mtime"]) == (SIZE, 5) and disk["st_mode"] & 0o777 == 0o644
    assert disk["st_blocks"] * 512 < SIZE
    assert answers.getattr("/snapshots/one")["st_mode"] & 0o777 == 0o444
    assert list(answers.readdir("/", None)) == [".", "..", "bitmaps", "disk", "info.json", "map.json", "snapshots"]
    assert refused(lambda: answers.getattr("/snapshots/two")) == errno.ENOENT
    assert answers.getxattr("/", PROCESS) == str(os.getpid()).encode()
    assert refused(lambda: answers.getxattr("/disk", PROCESS)) == errno.ENODATA


def test_a_disk_is_read_and_written_and_keeps_its_size(answers: Answers) -> None:
    info = opened(answers, "/disk", os.O_RDWR | os.O_TRUNC)
    assert (info.direct_io, info.keep_cache) == (0, 1)
    buffer = bytearray(5)
    assert answers.read(memoryview(buffer), 0, info.fh) == 5 and buffer == b"first"
    assert answers.write(memoryview(b"ab"), SIZE - 1, info.fh) == 1
    assert refused(lambda: answers.write(memoryview(b"ab"), SIZE, info.fh)) == errno.ENOSPC
    assert answers.getattr("/disk")["st_mtime"] > 5
    assert answers.truncate("/disk", SIZE) == 0
    assert refused(lambda: answers.truncate("/disk", 0, info)) == errno.EINVAL
    for call in (answers.flush, answers.release):
        assert call("/disk", info) == 0


def test_open_says_what_cannot_be(answers: Answers) -> None:
    assert refused(lambda: opened(answers, "/snapshots/one")) == errno.EROFS
    assert refused(lambda: opened(answers, "/snapshots", os.O_RDONLY)) == errno.EISDIR
    assert refused(lambda: opened(answers, "/two", os.O_RDONLY)) == errno.ENOENT


def test_fallocate_makes_zeros(answers: Answers, path: Path) -> None:
    info = opened(answers, "/disk")
    assert answers.write(memoryview(b"x" * (3 << 16)), 0, info.fh) == 3 << 16
    assert answers.fallocate("/disk", 3, 0, 1 << 16, info) == 0
    assert answers.fallocate("/disk", 16, 1 << 16, 1 << 16, info) == 0
    assert answers.fallocate("/disk", 17, SIZE - 5, 99, info) == 0
    assert refused(lambda: answers.fallocate("/disk", 16, SIZE - 5, 99, info)) == errno.ENOSPC
    for mode in (0, 1, 2, 8, 32):
        assert refused(lambda mode=mode: answers.fallocate("/disk", mode, 0, 9, info)) == errno.EOPNOTSUPP  # type: ignore[misc]
    assert answers.fsync("/disk", 0, info) == 0
    assert answers.release("/disk", info) == 0
    found = [(one.length, one.zero, one.offset is None) for one in qcow2c.map(path, share=True)][:3]
    assert found[0] == (1 << 16, True, True) and found[1] == (1 << 16, True, False) and not found[2][1]


def test_texts_are_read_and_not_kept_by_the_kernel(answers: Answers) -> None:
    info = opened(answers, "/map.json", os.O_RDONLY)
    assert (info.direct_io, info.keep_cache) == (1, 0)
    assert refused(lambda: answers.fallocate("/map.json", 3, 0, 1, info)) == errno.EOPNOTSUPP
    assert answers.lseek(1, SEEK_DATA, info.fh) == 1
    for call in (answers.flush, answers.release):
        assert call("/map.json", info) == 0
    assert answers.fsync("/disk", 0, opened(answers, "/disk")) == 0


def test_seek_knows_data_holes_and_nothing_else(answers: Answers) -> None:
    info = opened(answers, "/disk")
    assert answers.lseek(0, SEEK_HOLE, info.fh) == 1 << 16
    assert refused(lambda: answers.lseek(1 << 16, SEEK_DATA, info.fh)) == errno.ENXIO
    assert refused(lambda: answers.lseek(0, 2, info.fh)) == errno.EINVAL


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (CorruptData("bad"), errno.EIO),
        (StoreError("no space", errno=errno.ENOSPC), errno.ENOSPC),
        (MissingKey("secret"), errno.EACCES),
        (UsageError("wrong"), errno.EINVAL),
        (MemoryError(), errno.ENOMEM),
    ],
)
def test_errors_have_numbers_and_are_told(error: Exception, number: int, folder: Folder) -> None:
    told: list[str] = []
    answers = Answers(folder, complain=told.append)
    info = opened(answers, "/disk")

    def fail(*_: object) -> int:
        raise error

    answers._open[info.fh].read_into = fail  # type: ignore[method-assign]
    assert refused(lambda: answers.read(memoryview(bytearray(1)), 0, info.fh)) == number
    assert told == ([] if isinstance(error, MemoryError) else [str(error)])


def test_it_is_ready_once_it_is_mounted(folder: Folder) -> None:
    said: list[str] = []
    here = os.open(os.curdir, os.O_RDONLY)
    answers = Answers(folder, directory=here, ready=lambda: said.append("ready"))
    assert not answers.mounted
    answers.init("/")
    os.close(here)
    assert answers.mounted and said == ["ready"]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSE_LIBRARY_PATH", "")
    monkeypatch.setenv("FUSE_LIBRARY_NAME", "")
    monkeypatch.setattr(mount, "LIBRARIES", ("libnothing.so",))
    with pytest.raises(UsageError, match=r"libfuse \(Debian: fuse3.*libnothing"):
        library()
    monkeypatch.setenv("FUSE_LIBRARY_PATH", "libnothing.so")
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    with pytest.raises(UsageError, match=r"qcow2c\[fuse\]"):
        library()
