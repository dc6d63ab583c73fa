"""export: a snapshot becomes an image of its own, or an overlay."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import StoreError, UsageError
from qcow2c.ops.export import export
from tests.two_states import SIZE, two_states


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(two_states())
    return path


def content(path: Path) -> bytes:
    with qcow2c.open(path) as image:
        return image.readall()


def test_a_snapshot_becomes_an_image_of_its_own(disk: Path, tmp_path: Path) -> None:
    with qcow2c.open(disk) as image, image.snapshots["one"].open() as snapshot:
        expected = snapshot.readall()
    export(disk, "one", tmp_path / "one.qcow2", compressed=True, cluster_size=4096)
    export(disk, "one", tmp_path / "one.raw", output_format="raw")
    assert content(tmp_path / "one.qcow2") == (tmp_path / "one.raw").read_bytes() == expected


@pytest.mark.parametrize("relative", [None, "one"])
def test_a_snapshot_becomes_an_overlay(disk: Path, tmp_path: Path, relative: str | None) -> None:
    from qcow2c.ops import snapshots

    snapshots.create(disk, "two")
    with qcow2c.open(disk, "r+") as image:
        image.pwrite(b"later", 0)
    with qcow2c.open(disk) as image, image.snapshots["two"].open() as snapshot:
        expected = snapshot.readall()
    export(disk, "one", tmp_path / "one.qcow2")
    options = {"backing_file": "one.qcow2", "backing_fmt": "qcow2", "cluster_size": 4096}
    export(disk, "two", tmp_path / "two.qcow2", relative_to=relative, **options)
    assert content(tmp_path / "two.qcow2") == expected
    with qcow2c.open(tmp_path / "two.qcow2", backing=False) as image:
        held = [run.length for run in image.layer.runs(0, image.size()) if run.kind.name != "UNALLOCATED"]
    assert sum(held) == 2 * SIZE


def test_exports_that_make_no_sense_are_refused(disk: Path, tmp_path: Path) -> None:
    over = {"backing_file": "disk.qcow2", "backing_fmt": "qcow2"}
    before = disk.read_bytes()
    for target, options, words in (
        ("x", {"colour": 1}, "Invalid parameter 'colour'"),
        ("x", {"output_format": "vmdk"}, "Unknown file format"),
        ("x", {"relative_to": "one"}, "needs a backing file"),
        ("x", {"output_format": "raw", "compressed": True}, "Compression not supported"),
        ("x", {"output_format": "raw", **over}, "not supported for file format 'raw'"),
        ("x", over | {"backing_file": "gone"}, "No such file"),
        ("disk.qcow2", over, "cannot be an overlay and its backing file"),
    ):
        with pytest.raises(UsageError, match=words):
            export(disk, "one", tmp_path / target, **options)
    with pytest.raises(UsageError, match="Can't find snapshot"):
        export(disk, "three", tmp_path / "x")
    with pytest.raises(StoreError, match="this very copy reads it"):
        export(disk, "one", disk)
    assert disk.read_bytes() == before and list(tmp_path.iterdir()) == [disk]
