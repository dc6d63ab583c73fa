"""`qcow2://` as fsspec and what builds on it see it."""

from __future__ import annotations

import io
import os
import pickle
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

import qcow2c
from qcow2c.errors import GateRefused, ImageLocked, NotQcow2, UsageError
from qcow2c.fs import Qcow2FileSystem

SIZE = 1 << 20
NOW = b"second".ljust(1 << 16, b".")


@pytest.fixture(autouse=True)
def registered() -> None:
    """The entry point counts only where the package is installed as it is now."""
    fsspec.register_implementation("qcow2", Qcow2FileSystem, clobber=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "vm.qcow2"
    qcow2c.create(image, SIZE)
    with qcow2c.open(image, "r+") as disk:
        disk.pwrite(b"first", 0)
        disk.snapshots.create("a/b")
        disk.pwrite(NOW, 0)
        disk.pwrite(b"end", SIZE - 3)
    return image


@pytest.fixture
def system(path: Path) -> Iterator[Qcow2FileSystem]:
    with Qcow2FileSystem(str(path)) as found:
        yield found


@pytest.fixture
def content(path: Path) -> bytes:
    with qcow2c.open(path) as image:
        return image.readall()


def test_the_entry_point_names_the_class(project_root: Path) -> None:
    declared = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]["entry-points"]["fsspec.specs"]
    assert declared == {"qcow2": f"{Qcow2FileSystem.__module__}:{Qcow2FileSystem.__name__}"}


def test_a_chain_of_urls_opens_the_disk_and_snapshots(path: Path, content: bytes) -> None:
    with fsspec.open(f"qcow2://data::file://{path}") as file:
        assert file.size == SIZE and file.read() == content
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"end"
    with fsspec.open(f"qcow2://snapshots/a%2Fb::{path}") as file:
        assert file.read(5) == b"first"
    with pytest.raises(FileNotFoundError), fsspec.open(f"qcow2://snapshots/none::{path}"):
        pass


def test_what_there_is_is_listed(system: Qcow2FileSystem) -> None:
    assert system.ls("", detail=False) == ["data", "snapshots"] == [one["name"] for one in system.ls("qcow2://")]
    assert system.ls("snapshots", detail=False) == ["snapshots/a%2Fb"] == system.ls("/snapshots/", detail=False)
    assert list(system.walk("")) == [("", ["snapshots"], ["data"]), ("snapshots", [], ["a%2Fb"])]
    assert system.find("") == ["data", "snapshots/a%2Fb"] and system.glob("snap*/*") == ["snapshots/a%2Fb"]
    assert system.info("data") == {"name": "data", "type": "file", "size": SIZE}
    assert system.info("snapshots/a%2Fb")["id"] == "1" and system.isdir("snapshots") and system.info("/")["size"] == 0
    assert system.exists("data") and not system.exists("other") and system.du("") == 2 * SIZE
    with pytest.raises(FileNotFoundError):
        system.ls("other")
    with pytest.raises(IsADirectoryError):
        system.open("snapshots")


def test_an_image_without_snapshots_has_an_empty_directory(tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "new", SIZE)
    with Qcow2FileSystem(tmp_path / "new") as system:
        assert system.ls("snapshots") == [] and system.isdir("snapshots")


def test_ranges_are_read_at_once(system: Qcow2FileSystem, content: bytes) -> None:
    assert system.cat_file("data", 3, 9) == content[3:9] and system.cat_file("data", -3) == b"end"
    assert system.cat_file("data", -5, -2) == content[-5:-2] and system.cat_file("data", 9, 3) == b""
    assert system.cat_ranges(["data", "snapshots/a%2Fb"], [0, 0], [6, 5]) == [b"second", b"first"]
    missing = system.cat_ranges(["none"], [0], [6])
    assert isinstance(missing[0], FileNotFoundError)
    assert system.cat(["data"])["data"] == content
    assert system.head("data", 6) == b"second" and system.tail("data", 3) == b"end"


def test_several_threads_read(system: Qcow2FileSystem, content: bytes) -> None:
    with ThreadPoolExecutor(4) as pool:
        starts = range(0, SIZE, 1 << 16)
        assert b"".join(pool.map(lambda at: system.cat_file("data", at, at + (1 << 16)), starts)) == content


def test_pickled_it_opens_its_image_again(system: Qcow2FileSystem) -> None:
    other = pickle.loads(pickle.dumps(system))
    assert other is not system and other.cat_file("data", 0, 6) == b"second"
    with system.open("data") as file:
        file.seek(2)
        copy = pickle.loads(pickle.dumps(file))
        assert copy.read(6)[-2:] in (b"nd", b"..")
        copy.close()
        copy.fs.close()
    other.close()
    with fsspec.open(f"qcow2://data::{system.fo}") as opened:
        assert opened.read(6) == b"second"
    later = pickle.loads(pickle.dumps(fsspec.open(f"qcow2://data::{system.fo}")))
    with later as opened:
        assert opened.read(6) == b"second"


def test_a_directory_of_it_is_a_file_system(system: Qcow2FileSystem) -> None:
    folder = fsspec.filesystem("dir", path="snapshots", fs=system)
    assert folder.ls("", detail=False) == ["a%2Fb"] and folder.cat_file("a%2Fb", 0, 5) == b"first"


def test_a_cache_may_lie_over_and_under_it(path: Path, tmp_path: Path, content: bytes) -> None:
    above = f"simplecache::qcow2://data::file://{path}"
    with fsspec.open(above, simplecache={"cache_storage": str(tmp_path / "above")}) as file:
        assert file.read() == content
    assert len(os.listdir(tmp_path / "above")) == 1
    with fsspec.filesystem("memory").open("/images/vm.qcow2", "wb") as target:
        target.write(path.read_bytes())
    below = "qcow2://data::simplecache::memory://images/vm.qcow2"
    with fsspec.open(below, simplecache={"cache_storage": str(tmp_path / "below")}) as file:
        assert file.read() == content
    assert len(os.listdir(tmp_path / "below")) == 1


def test_an_image_at_a_url_finds_its_backing_file_beside_it_alone(path: Path, tmp_path: Path, content: bytes) -> None:
    over = tmp_path / "over.qcow2"
    qcow2c.create(over, backing_file="vm.qcow2", backing_fmt="qcow2")
    memory = fsspec.filesystem("memory")
    for name in (path, over):
        memory.pipe_file(f"/chain/{name.name}", name.read_bytes())
    with fsspec.open("qcow2://data::memory://chain/over.qcow2") as file:
        assert file.read() == content
    with pytest.raises(GateRefused), fsspec.open("qcow2://data::memory://chain/over.qcow2", qcow2={"gate": "deny"}):
        pass
    with memory.open("/chain/over.qcow2", "rb") as file, pytest.raises(GateRefused):
        Qcow2FileSystem(file)
    with memory.open("/chain/vm.qcow2", "rb") as file, Qcow2FileSystem(file) as system:
        assert system.cat_file("data") == content
        assert system.ukey("data") == system.ukey("/data") != system.ukey("snapshots/a%2Fb")
    with Qcow2FileSystem(memory.open("/chain/vm.qcow2", "rb")) as system:
        assert system.cat_file("data", 0, 6) == b"second"
    with Qcow2FileSystem(fsspec.open("memory://chain/vm.qcow2")) as system:
        assert system.cat_file("data", 0, 6) == b"second"


def test_a_local_image_is_written(path: Path, tmp_path: Path) -> None:
    with Qcow2FileSystem(str(path), mode="r+") as system:
        with system.open("data", "r+b") as file:
            assert file.seek(10) == 10 == file.tell() and file.write(b"written") == 7
            file.seek(-7, os.SEEK_CUR)
            assert file.read(7) == b"written" and file.size == SIZE
            file.seek(-1, os.SEEK_END)
            with pytest.raises(OSError, match="do not lie on the disk"):
                file.write(b"ab")
            with pytest.raises(UsageError):
                file.seek(-1)
        with qcow2c.open(path, share=True) as reader:
            assert reader.pread(7, 10) == b"written"
        with pytest.raises(io.UnsupportedOperation):
            system.open("snapshots/a%2Fb", "r+b")
        with pytest.raises(io.UnsupportedOperation):
            system.open("data", "ab")
        with pytest.raises(ImageLocked):
            Qcow2FileSystem(str(path), mode="r+")
        source = tmp_path / "raw"
        source.write_bytes(b"all of it")
        system.put_file(str(source), "data")
        assert system.cat_file("data") == b"all of it".ljust(SIZE, b"\0")
        system.pipe_file("data", b"else")
        assert system.cat_file("data", 0, 6) == b"else\0\0" and system.cat_file("snapshots/a%2Fb", 0, 5) == b"first"
        with system.open("data", "wb") as file, pytest.raises(io.UnsupportedOperation):
            file.read(1)
    with fsspec.open(f"qcow2://data::{path}", "r+b", qcow2={"mode": "r+"}) as file:
        file.write(b"once more")
    assert qcow2c.check(path).exit_code == 0
    with Qcow2FileSystem(str(path)) as system:
        assert system.cat_file("data", 0, 9) == b"once more"
        with pytest.raises(io.UnsupportedOperation, match=r"mode='r\+'"):
            system.open("data", "r+b")


def test_what_cannot_be_opened_is_an_error_that_fsspec_knows(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Qcow2FileSystem(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        Qcow2FileSystem("none", target_protocol="memory")
    (tmp_path / "raw").write_bytes(bytes(1024))
    with pytest.raises(NotQcow2):
        Qcow2FileSystem(str(tmp_path / "raw"))


def test_a_changed_image_has_another_key(path: Path) -> None:
    with Qcow2FileSystem(str(path)) as system:
        before = system.ukey("data")
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"x" * (1 << 16), 1 << 17)
    with Qcow2FileSystem(str(path)) as system:
        assert system.ukey("data") != before
