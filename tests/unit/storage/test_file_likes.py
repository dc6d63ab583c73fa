"""Objects that are almost files, and what cannot be copied: all of them are read, and none is closed twice."""

from __future__ import annotations

import copy
import gzip
import io
import mmap
import multiprocessing
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import qcow2c


class Silent(io.BytesIO):
    """Its `seek` returns None, and it reads bytearrays."""

    def seek(self, offset: int, whence: int = 0) -> None:  # type: ignore[override]
        super().seek(offset, whence)

    def read(self, size: int | None = -1) -> bytearray:  # type: ignore[override]
        return bytearray(super().read(size))


class Bare:
    """Has what is needed, and nothing else."""

    def __init__(self, data: bytes) -> None:
        file = io.BytesIO(data)
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.qcow2"
    qcow2c.create(path, 4 << 20)
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"content" * 1000, 1 << 20)
    return path


@pytest.fixture(params=["mmap", "gzip", "zip", "zip stored", "tar", "silent", "bare"])
def source(request: pytest.FixtureRequest, path: Path) -> Iterator[Any]:
    data, packed = path.read_bytes(), path.with_suffix(".packed")
    with ExitStack() as stack:
        match request.param:
            case "mmap":
                file: Any = stack.enter_context(path.open("rb"))
                yield stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            case "gzip":
                packed.write_bytes(gzip.compress(data))
                yield stack.enter_context(gzip.open(packed))
            case "zip" | "zip stored":
                method = zipfile.ZIP_DEFLATED if request.param == "zip" else zipfile.ZIP_STORED
                with zipfile.ZipFile(packed, "w", method) as made:
                    made.writestr("member", data)
                archive = stack.enter_context(zipfile.ZipFile(packed))
                yield stack.enter_context(archive.open("member"))
            case "tar":
                with tarfile.open(packed, "w") as tar:
                    tar.add(path, "member")
                file = stack.enter_context(tarfile.open(packed)).extractfile("member")
                yield stack.enter_context(file)
            case "silent":
                yield Silent(data)
            case _:
                yield Bare(data)


def test_what_is_almost_a_file_is_read(source: Any) -> None:
    with qcow2c.open(source) as image:
        assert image.pread(7000, 1 << 20) == b"content" * 1000
        assert image.pread(7, 0) == bytes(7)
    assert qcow2c.check(source).exit_code == 0
    assert qcow2c.info(source)["virtual-size"] == 4 << 20  # type: ignore[call-overload]


def test_a_memory_map_is_written_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(4 << 20)
        with mmap.mmap(file.fileno(), 0) as memory, qcow2c.open(memory, "r+") as image:
            image.pwrite(b"mapped", 1 << 20)
    with qcow2c.open(path) as image:
        assert image.pread(7, 1 << 20) == b"mappedt"
    assert qcow2c.check(path).exit_code == 0


def test_nothing_that_holds_a_file_is_copied_or_pickled(path: Path) -> None:
    with qcow2c.open(path, "r+") as image:
        image.snapshots.create("one")
        with image.snapshots["one"].open() as state, image.snapshots["one"].vm_state() as vm_state:
            for held in (image, state, vm_state, image.layer.store, image.snapshots["one"]):
                for act in (pickle.dumps, copy.deepcopy):
                    with pytest.raises(TypeError):
                        act(held)
            for held in (image, state, image.layer.store):
                with pytest.raises(TypeError, match="cannot copy or pickle"):
                    copy.copy(held)
        image.pwrite(b"still open", 0)


def first_bytes(image: qcow2c.Image) -> bytes:
    return image.pread(10, 0)


def test_an_image_that_is_only_read_opens_itself_again_in_other_processes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qcow2c.create(path.parent / "over", 1 << 20, backing_file=path.name, backing_fmt="qcow2")
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"0123456789", 0)
    root = Path(__file__).parents[3]
    monkeypatch.chdir(path.parent)
    with qcow2c.open("over") as image:
        image.seek(3)
        expected = image.pread(10, 0)
        monkeypatch.chdir(root)
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            assert list(pool.map(first_bytes, [image] * 4)) == [b"0123456789"] * 4
        for again in (pickle.loads(pickle.dumps(image)), copy.copy(image), copy.deepcopy(image)):
            with again:
                assert again is not image and again.tell() == 3 and again.pread(10, 0) == expected
                again.seek(7)
        assert image.tell() == 3 and image.pread(10, 0) == expected
    with pytest.raises(qcow2c.UsageError, match="closed"):
        pickle.dumps(image)


def test_choices_of_the_opening_are_kept_in_a_copy(path: Path) -> None:
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"base", 0)
    over = path.parent / "over"
    qcow2c.create(over, 1 << 20, backing_file=path.name, backing_fmt="qcow2")
    with qcow2c.open(over, backing=path, gate="deny") as image, copy.copy(image) as again:
        assert again.pread(4, 0) == b"base"
    with qcow2c.open(over, backing=False) as image, copy.copy(image) as again:
        assert again.pread(4, 0) == bytes(4)


def test_an_image_of_something_that_is_open_or_that_needs_a_key_is_not_pickled(path: Path) -> None:
    with path.open("rb") as file, qcow2c.open(path) as base:
        for opening in (
            lambda: qcow2c.open(file),
            lambda: qcow2c.open(path.read_bytes()),
            lambda: qcow2c.open(path, backing=base),
            lambda: qcow2c.open(path, key="secret"),
        ):
            with opening() as image, pytest.raises(TypeError, match="cannot copy or pickle"):
                pickle.dumps(image)


def test_files_of_an_image_have_positions_and_ends_of_their_own(path: Path) -> None:
    with qcow2c.open(path, "r+") as image:
        with image.file() as one, image.file() as other:
            assert one.write(b"abc") == 3 and one.tell() == 3 and image.tell() == other.tell() == 0
            assert other.read(2) == b"ab" and image.read(1) == b"a" and one.size() == image.size()
            assert one.writable() and repr(one) == f"<file of {str(path)!r} r+>"
            other.close()
            other.close()
            with pytest.raises(qcow2c.UsageError, match="this file of it was closed"):
                other.read(1)
            with pytest.raises(TypeError, match="cannot copy or pickle"):
                pickle.dumps(one)
            one.seek(1)
            assert one.read(2) == b"bc"
        assert image.pread(3, 0) == b"abc"
        left = image.file()
    with pytest.raises(qcow2c.UsageError, match="closed image"):
        left.read(1)
    left.close()
    with qcow2c.open(path) as image, image.file() as file:
        assert qcow2c.info(file).virtual_size == image.size()
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")


def test_each_repr_says_which_file_is_meant(path: Path) -> None:
    with qcow2c.open(path, "r+") as image:
        snapshot = image.snapshots.create("one")
        name = repr(str(path))
        for shown in (image, image.layer.store, snapshot, image.snapshots):
            assert name in repr(shown)
        assert repr(image) == f"<Image {name} r+>"
        with snapshot.open() as state:
            assert repr(state) == f"<Image {str(path) + '@one'!r} r>"
    assert repr(image) == f"<Image {name} closed>"


def test_a_file_that_nobody_closes_is_closed_with_a_warning(path: Path) -> None:
    for mode in ("r", "r+"):
        with pytest.warns(ResourceWarning, match="unclosed"):
            qcow2c.open(path, mode)
        qcow2c.open(path, "r+").close()
    qcow2c.open(path.read_bytes())
