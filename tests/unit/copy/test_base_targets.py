"""The layer that a commit writes to: data and zeros replace what is there, and its disk grows where it must."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from qcow2c.copy.base_targets import BaseTarget, open_base
from qcow2c.copy.plan import Piece, Slab
from qcow2c.errors import ImageLocked

SIZE = 4096
OLD = b"o" * (8 * SIZE)


def base_of(path: Path, image_format: str) -> Path:
    if image_format == "raw":
        path.write_bytes(OLD)
    else:
        qcow2c.create(path, len(OLD), cluster_size=SIZE)
        with qcow2c.open(path, "r+") as image:
            image.pwrite(OLD, 0)
    return path


def content(path: Path, image_format: str) -> bytes:
    if image_format == "raw":
        return path.read_bytes()
    with qcow2c.open(path) as image:
        return image.readall()


FORMATS = ["raw", "qcow2"]


def give(target: BaseTarget, slab: Slab, buffer: bytes) -> None:
    view = memoryview(bytearray(buffer))
    target.take(slab, view, target.prepare(slab, view))
    view[:] = b"?" * len(view)  # The buffer can be used again.


@pytest.mark.parametrize("image_format", FORMATS)
def test_data_and_zeros_replace_what_is_there_and_the_rest_stays(image_format: str, tmp_path: Path) -> None:
    path = base_of(tmp_path / "base", image_format)
    pieces = [Piece(SIZE, 100, None, 0, -1), Piece(SIZE + 100, 400, None, 0, -1), Piece(3 * SIZE, 512, None, 0, -1)]
    slab = Slab(0, 8 * SIZE, pieces, ((5 * SIZE, 7 * SIZE),))
    buffer = bytearray(8 * SIZE)
    buffer[SIZE : SIZE + 500], buffer[3 * SIZE : 3 * SIZE + 512] = b"n" * 500, b"m" * 512
    with open_base(path, image_format, "directory") as target:
        give(target, slab, bytes(buffer))
        target.finish(8 * SIZE)
    expected = bytearray(OLD)
    expected[SIZE : SIZE + 500], expected[3 * SIZE : 3 * SIZE + 512] = b"n" * 500, b"m" * 512
    expected[5 * SIZE : 7 * SIZE] = bytes(2 * SIZE)
    assert content(path, image_format) == expected


@pytest.mark.parametrize("image_format", FORMATS)
def test_it_grows_by_zeros_and_never_shrinks(image_format: str, tmp_path: Path) -> None:
    path = base_of(tmp_path / "base", image_format)
    with open_base(path, image_format, "directory") as target:
        assert not target.grow(4 * SIZE) and not target.grow(8 * SIZE)
        assert target.grow(10 * SIZE)
        target.finish(10 * SIZE)
    assert content(path, image_format) == OLD + bytes(2 * SIZE)


@pytest.mark.parametrize("image_format", FORMATS)
def test_nobody_else_may_have_it_meanwhile(image_format: str, tmp_path: Path) -> None:
    path = base_of(tmp_path / "base", image_format)
    with open_base(path, image_format, "directory") as target:
        assert target.stores()[0].path == str(path)
        with pytest.raises(ImageLocked), open_base(path, image_format, "directory"):
            pass


def test_zeros_of_a_raw_file_give_their_space_back(tmp_path: Path) -> None:
    path = tmp_path / "base"
    path.write_bytes(b"x" * (1 << 20))
    with open_base(path, "raw", "directory") as target:
        target.zero(0, 1 << 30)
        target.finish(1 << 20)
    assert path.stat().st_size == 1 << 20 and path.stat().st_blocks * 512 < 1 << 19
    assert not any(path.read_bytes())
