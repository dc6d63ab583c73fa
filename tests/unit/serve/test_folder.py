"""The files of an image: which there are, and what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import StoreError, UnsupportedFeature
from qcow2c.serve.folder import INCONSISTENT, Folder, OpenDisk, OpenEntry, open_folder

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk"
    qcow2c.create(image, SIZE)
    with qcow2c.open(image, "r+") as disk:
        disk.pwrite(b"first", 0)
        disk.snapshots.create("a/b")
    qcow2c.bitmap.add(image, "since")
    with qcow2c.open(image, "r+") as disk:
        disk.pwrite(b"second".ljust(1 << 16, b"."), 0)
        disk.pwrite(b"f" * (1 << 16), 6 << 16)
    return image


def read(folder: Folder, path: str, length: int | None = None, offset: int = 0) -> bytes:
    entry = folder.entries[path]
    buffer = bytearray(entry.size if length is None else length)
    found = entry.open()
    count = found.read_into(memoryview(buffer), offset)
    found.close()
    return bytes(buffer[:count])


def disk_of(folder: Folder, path: str = "disk") -> OpenDisk:
    found = folder.entries[path].open()
    assert isinstance(found, OpenDisk)
    return found


def test_the_files_of_an_image(path: Path) -> None:
    with open_folder(path) as folder:
        assert folder.directories == {
            "": ["bitmaps", "disk", "info.json", "map.json", "snapshots"],
            "snapshots": ["a%2Fb"],
            "bitmaps": ["since"],
        }
        assert read(folder, "disk", 6) == b"second" and read(folder, "snapshots/a%2Fb", 5) == b"first"
        assert read(folder, "disk", 10, SIZE - 4) == bytes(4) and read(folder, "disk", 10, SIZE + 4) == b""
        assert folder.entries["snapshots/a%2Fb"].size == folder.entries["disk"].size == SIZE
        assert 0 < folder.entries["disk"].used_size < SIZE > folder.entries["snapshots/a%2Fb"].used_size
        assert read(folder, "bitmaps/since").split() == [
            b"Offset",
            b"Length",
            b"0x0",
            b"0x10000",
            b"0x60000",
            b"0x10000",
        ]
        assert json.loads(read(folder, "info.json"))["virtual-size"] == SIZE
        assert json.loads(read(folder, "map.json"))[0]["data"]
        assert not any(entry.writable for entry in folder.entries.values())


def test_what_is_written_is_read_in_texts_too_and_is_durable_afterwards(path: Path) -> None:
    with open_folder(path, writable=True) as folder:
        assert [path for path, entry in folder.entries.items() if entry.writable] == ["disk"]
        before = read(folder, "map.json")
        assert read(folder, "map.json") == before
        disk = disk_of(folder)
        assert disk.write(memoryview(b"third"), SIZE - 3) == 3
        assert disk.write(memoryview(b"third"), SIZE) == 0
        disk.write_zeroes(0, 3 * SIZE, unmap=True)
        disk.write_zeroes(SIZE, 1, unmap=False)
        assert disk.write(memoryview(b"new"), 1 << 16) == 3
        disk.flush(always=False)
        disk.close()
        assert read(folder, "map.json") != before and read(folder, "bitmaps/since").startswith(b"Offset")
        assert read(folder, "snapshots/a%2Fb", 5) == b"first"
    with qcow2c.open(path) as image:
        assert image.pread(3, 1 << 16) == b"new" and image.pread(6, 0) == bytes(6)
    assert qcow2c.check(path).exit_code == 0


def ends(found: OpenEntry, size: int) -> list[int]:
    """Return where data and holes begin, in turn."""
    places, at, data = [], 0, True
    while at < size and (next_one := found.seek(at, data=data)) is not None:
        places.append(next_one)
        at, data = next_one, not data
    return places


def test_data_and_holes_are_told_apart(path: Path) -> None:
    with open_folder(path) as folder:
        disk = disk_of(folder)
        assert ends(disk, SIZE) == [0, 1 << 16, 6 << 16, 7 << 16]
        assert disk.seek(7 << 16, data=False) == 7 << 16 and disk.seek((7 << 16) + 5, data=False) == (7 << 16) + 5
        assert disk.seek(SIZE, data=False) is None and disk.seek(-1, data=True) is None
        text = folder.entries["info.json"].open()
        size = folder.entries["info.json"].size
        assert ends(text, size) == [0, size] and text.seek(size, data=True) is None
        text.close()


def test_a_raw_file_has_a_disk_and_its_map(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"x" * 700)
    with open_folder(raw, writable=True) as folder:
        assert folder.directories == {"": ["disk", "map.json"]}
        disk = disk_of(folder)
        assert disk.write(memoryview(b"raw"), 1) == 3
        disk.flush()
        assert json.loads(read(folder, "map.json"))[0]["data"]
    assert raw.read_bytes()[:5] == b"xrawx"


def test_a_bitmap_that_was_not_saved_says_so(path: Path) -> None:
    with open_folder(path, writable=True) as folder:
        disk_of(folder).write(memoryview(b"x"), 0)
        folder.flush()
        torn = path.read_bytes()
        assert read(folder, "bitmaps/since").startswith(b"Offset")
    path.write_bytes(torn)
    with open_folder(path) as folder:
        assert read(folder, "bitmaps/since").decode() == INCONSISTENT


def test_what_cannot_be_opened_is_refused(path: Path) -> None:
    with pytest.raises(UnsupportedFeature), open_folder(path, image_format="vmdk"):
        pass
    with pytest.raises(StoreError), open_folder(path.parent / "nothing"):
        pass
