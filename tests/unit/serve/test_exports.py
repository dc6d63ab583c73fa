"""What is served: a raw file and an image alike, whole or in part, with what is known of their ranges."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import ImageLocked, UsageError
from qcow2c.serve.exports import Choices
from qcow2c.serve.opening import open_exports

SIZE = 1 << 20


@pytest.fixture(params=["raw", "qcow2"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A disk of zeros with 64 KiB of data in the middle."""
    image = tmp_path / "disk"
    if request.param == "raw":
        with open(image, "wb") as file:
            file.truncate(SIZE)
            file.seek(SIZE // 2)
            file.write(b"d" * 65536)
    else:
        qcow2c.create(image, SIZE)
        with qcow2c.open(image, "r+") as disk:
            disk.pwrite(b"d" * 65536, SIZE // 2)
    return image


def content(path: Path) -> bytes:
    with open_exports(path) as exports:
        return read(exports[b""])


def read(export: object) -> bytes:
    buffer = bytearray(export.size)  # type: ignore[attr-defined]
    export.read_into(memoryview(buffer), 0)  # type: ignore[attr-defined]
    return bytes(buffer)


def test_the_allocation_is_told_in_whole_and_in_parts(path: Path) -> None:
    with open_exports(path) as exports:
        told = exports[b""].contexts()[b"base:allocation"]
        assert list(told(0, SIZE)) == [(SIZE // 2, 3), (65536, 0), (SIZE // 2 - 65536, 3)]
        assert list(told(SIZE // 2 + 512, 1024)) == [(1024, 0)]
    with open_exports(path, offset=SIZE // 2 - 512, size=2048) as exports:
        assert exports[b""].size == 2048
        assert list(exports[b""].contexts()[b"base:allocation"](0, 2048)) == [(512, 3), (1536, 0)]


def test_a_part_is_written_where_it_lies(path: Path) -> None:
    expected = bytearray(content(path))
    with open_exports(path, offset=1000, size=5000, choices=Choices(writable=True)) as exports:
        part = exports[b""]
        part.write(memoryview(b"w" * 100), 50)
        part.write_zeroes(100, 25, unmap=True)
        part.trim(0, 0)
        part.flush()
        expected[1050:1150] = b"w" * 100
        expected[1100:1125] = bytes(25)
        assert read(part) == expected[1000:6000]
    assert content(path) == expected
    for where in ({"offset": SIZE + 1}, {"offset": 1, "size": SIZE}, {"size": SIZE + 1}):
        with pytest.raises(UsageError, match="do not lie on the disk"), open_exports(path, **where):  # type: ignore[arg-type]
            pass


def test_what_is_served_for_writing_is_served_by_one_alone(path: Path) -> None:
    with open_exports(path, choices=Choices(writable=True)), pytest.raises(ImageLocked), open_exports(path):
        pass
    with open_exports(path), open_exports(path):
        pass


@pytest.mark.parametrize("discard", [False, True])
def test_a_trim_gives_space_back_or_does_nothing(path: Path, *, discard: bool) -> None:
    with open_exports(path, choices=Choices(writable=True, discard=discard)) as exports:
        exports[b""].trim(SIZE // 2, 65536)
    assert (content(path) == bytes(SIZE)) is discard


def test_zeros_that_are_written_are_found_if_they_should_be(path: Path) -> None:
    for detect in ("off", "on", "unmap"):
        with open_exports(path, choices=Choices(writable=True, detect_zeroes=detect)) as exports:
            export = exports[b""]
            export.write(memoryview(b"d" * 65536), SIZE // 2)
            export.write(memoryview(bytes(65536)), SIZE // 2)
            assert read(export) == bytes(SIZE)
            found = {flags for _, flags in export.contexts()[b"base:allocation"](SIZE // 2, 65536)}
            assert found == {0} or detect != "off"


def test_layers_and_bitmaps(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    qcow2c.create(base, SIZE)
    with qcow2c.open(base, "r+") as disk:
        disk.pwrite(b"b" * 65536, 65536)
    qcow2c.create(top, backing_file="base", backing_fmt="qcow2")
    with qcow2c.open(top, "r+") as disk, disk.engine.changing_bitmaps() as edit:
        edit.add("changed", 65536, enabled=True)
    with qcow2c.open(top, "r+") as disk:
        disk.pwrite(b"t" * 65536, 3 * 65536)
    choices = Choices(allocation_depth=True, bitmap="changed")
    with open_exports(top, choices=choices) as exports:
        told = exports[b""].contexts()
        assert list(told) == [b"base:allocation", b"qemu:allocation-depth", b"qemu:dirty-bitmap:changed"]
        depths = list(told[b"qemu:allocation-depth"](0, 5 * 65536))
        assert depths == [(65536, 0), (65536, 2), (65536, 0), (65536, 1), (65536, 0)]
        dirty = told[b"qemu:dirty-bitmap:changed"]
        assert list(dirty(0, SIZE)) == [(3 * 65536, 0), (65536, 1), (SIZE - 4 * 65536, 0)]
        assert list(dirty(3 * 65536 + 512, 512)) == [(512, 1)]
        assert list(dirty(4 * 65536, 512)) == [(512, 0)]
    with pytest.raises(KeyError), open_exports(top, choices=Choices(bitmap="other")):
        pass


def test_bytes_that_a_file_has_as_they_are_have_a_place_in_it(path: Path) -> None:
    with open_exports(path) as exports, open(path, "rb") as file:
        whole = read(exports[b""])
        place = exports[b""].place_in_file(SIZE // 2, 65536)
        assert place is not None
        file.seek(place.offset)
        assert file.read(65536) == whole[SIZE // 2 :][:65536]
    with open_exports(path, offset=SIZE // 2 - 512, size=2048) as exports:
        read(exports[b""])
        part = exports[b""].place_in_file(512, 1536)
        assert part is not None and part.offset == place.offset
    with open_exports(path, choices=Choices(writable=True)) as exports:
        assert exports[b""].place_in_file(SIZE // 2, 512) is None
    with open_exports(path.read_bytes()) as exports:
        assert exports[b""].place_in_file(SIZE // 2, 512) is None
    with open_exports(path) as exports:
        read(exports[b""])
        os.truncate(path, place.offset + 65535)
        assert exports[b""].place_in_file(SIZE // 2, 65536) is None
        again = exports[b""].place_in_file(SIZE // 2 + 1, 65534)
        assert again is not None and again.offset == place.offset + 1
