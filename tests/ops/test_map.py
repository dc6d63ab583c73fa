"""`map` as the library offers it: of open images, of snapshots, and of files, which it opens and closes."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from tests.building import Builder


def test_an_open_image_its_file_and_its_bytes_have_one_map(examples: Path) -> None:
    path = examples / "demo.qcow2"
    with qcow2c.open(path) as image:
        found = list(qcow2c.map(image))
        assert found == list(qcow2c.map(path))
        assert sum(extent.length for extent in found) == image.size()
    assert {extent.depth for extent in found} == {0, 1}


def test_a_snapshot_has_a_map_of_its_own(examples: Path) -> None:
    with qcow2c.open(examples / "demo.qcow2") as image, image.snapshots["before-update"].open() as before:
        assert list(qcow2c.map(before)) != list(qcow2c.map(image))


def test_a_range_begins_and_ends_where_it_is_told_to(examples: Path) -> None:
    path = examples / "demo.qcow2"
    with qcow2c.open(path) as image:
        for source in (image, path):
            found = list(qcow2c.map(source, start=5000, max_length=4000))
            assert found[0].start == 5000 and found[-1].start + found[-1].length >= 9000


def test_a_raw_file_is_mapped_with_its_holes(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(b"data".ljust(4096, b"\0"))
    with path.open("r+b") as file:
        file.truncate(1 << 20)
    assert [(extent.start, extent.data) for extent in qcow2c.map(path)] == [(0, True), (4096, False)]


def test_what_is_opened_is_closed_with_the_map(tmp_path: Path) -> None:
    builder = Builder(1 << 20)
    builder.data(0, b"x")
    path = tmp_path / "disk.qcow2"
    path.write_bytes(builder.build())
    found = qcow2c.map(path)
    next(found)
    with pytest.raises(qcow2c.ImageLocked):
        qcow2c.open(path, "r+")
    found.close()  # type: ignore[attr-defined]
    qcow2c.open(path, "r+").close()


def test_what_the_image_names_goes_through_the_gate(examples: Path) -> None:
    with pytest.raises(qcow2c.GateRefused):
        list(qcow2c.map(examples / "demo.qcow2", gate="deny"))
