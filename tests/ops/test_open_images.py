"""Operations on an image that is open: they work on it, whatever its guest has written, and leave it open."""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import NotQcow2, UsageError

SIZE = 4 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image whose guest has written a header of its own, with a snapshot from before that."""
    inner = bytearray()
    qcow2c.create(inner, 64 << 20)
    path = tmp_path / "a.qcow2"
    qcow2c.create(path, SIZE)
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"old", 1 << 20)
        image.snapshots.create("one")
        image.pwrite(b"new", 1 << 20)
        image.pwrite(inner, 0)
    return path


def _dumped(source: Any) -> list[str]:
    with qcow2c.dump(source) as dump:
        return list(dump.json())


READERS: dict[str, Callable[[Any], object]] = {
    "check": lambda source: vars(qcow2c.check(source)) | {"filename": ""},
    "info": qcow2c.info,
    "map": lambda source: list(qcow2c.map(source)),
    "measure": lambda source: qcow2c.measure(source, output_format="qcow2"),
    "dump": _dumped,
}


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("reads", READERS.values(), ids=READERS)
def test_what_is_said_of_an_open_image_is_said_of_its_file(
    path: Path, mode: str, reads: Callable[[Any], object]
) -> None:
    with qcow2c.open(path, mode) as image:
        if mode == "r+":
            image.pwrite(b"pending" * 10000, 2 << 20)
        found = reads(image)
        image.pread(1, 0)
    assert found == reads(path) or mode == "r+"
    if mode == "r":
        return
    with qcow2c.open(path, "r+") as image:
        assert reads(image) == reads(image)


def test_copies_and_comparisons_are_of_the_disk_as_it_is(path: Path, tmp_path: Path) -> None:
    with qcow2c.open(path, "r+") as image, image.snapshots["one"].open() as state:
        image.pwrite(b"pending" * 10000, 2 << 20)
        content = image.pread(SIZE, 0)
        qcow2c.convert(image, tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == content
        qcow2c.convert(state, tmp_path / "old")
        assert (tmp_path / "old").read_bytes() == state.pread(SIZE, 0)
        qcow2c.convert(image, tmp_path / "older", snapshot="one")
        assert (tmp_path / "older").read_bytes() == (tmp_path / "old").read_bytes()
        assert qcow2c.compare(image, tmp_path / "raw", second_format="raw").identical
        assert not qcow2c.compare(image, state).identical
        assert qcow2c.check(state).exit_code == 0
        assert list(qcow2c.map(state)) != list(qcow2c.map(image))
        image.pwrite(b"still open", 0)


CHANGES: dict[str, Callable[[Any], object]] = {
    "resize": lambda source: qcow2c.resize(source, 8 << 20),
    "amend": lambda source: qcow2c.amend(source, lazy_refcounts=True),
    "rebase": lambda source: qcow2c.rebase(source, None),
    "snapshot": lambda source: qcow2c.snapshots.create(source, "two"),
    "bitmap": lambda source: qcow2c.bitmap.add(source, "b"),
    "create": lambda source: qcow2c.create(source, 1 << 20),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_a_file_does_not_do_so_behind_the_back_of_an_open_image(
    path: Path, change: Callable[[Any], object]
) -> None:
    with qcow2c.open(path, "r+") as image:
        before = path.read_bytes()
        with pytest.raises(UsageError, match="is open"):
            change(image)
        assert path.read_bytes() == before
        assert image.pread(3, 1 << 20) == b"new"


def test_an_image_within_a_disk_is_opened_where_that_is_asked_for(path: Path) -> None:
    with qcow2c.open(path, "r+") as image, qcow2c.open(image) as inner:
        assert inner.size() == 64 << 20


def test_an_image_that_another_one_lies_on_stays_open_as_long_as_needed(path: Path, tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "top", SIZE, backing_file="a.qcow2", backing_fmt="qcow2")
    with qcow2c.open(path) as below:
        qcow2c.open(tmp_path / "top", backing=below).close()
        assert below.pread(3, 1 << 20) == b"new"
    image = qcow2c.open(tmp_path / "top", backing=qcow2c.open(path))
    gc.collect()
    assert image.pread(3, 1 << 20) == b"new"
    with pytest.warns(ResourceWarning, match="unclosed"):  # It is not the upper one's to close.
        image.close()


def test_a_replacement_of_another_format_is_read_as_what_it_is_said_to_be(path: Path, tmp_path: Path) -> None:
    raw = tmp_path / "b.raw"
    qcow2c.convert(path, raw)
    qcow2c.create(tmp_path / "top", SIZE, backing_file="a.qcow2", backing_fmt="qcow2")
    with qcow2c.open(tmp_path / "top", backing=raw, backing_format="raw") as image:
        assert image.pread(3, 1 << 20) == b"new"
        assert image.pread(4, 0) == b"QFI\xfb" and image.backing is not None and image.backing.image_format == "raw"
    qcow2c.create(tmp_path / "top_raw", SIZE, backing_file="b.raw", backing_fmt="raw")
    with qcow2c.open(tmp_path / "top_raw", backing=path, backing_format="qcow2") as image:
        assert image.pread(3, 1 << 20) == b"new"
    raw.write_bytes(struct.pack(">I", 7) * 1000)
    with pytest.raises(NotQcow2):
        qcow2c.open(tmp_path / "top", backing=raw)
