"""Objects that are almost files, and what cannot be copied: all of them are read, and none is closed twice."""

from __future__ import annotations

import copy
import gzip
import io
import mmap
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
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
