"""convert with bitmaps: into new images however they are made, and into images that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import UsageError
from qcow2c.ops import snapshots

MIB = 1 << 20


def source(path: Path, size: int = MIB) -> Path:
    """Make an image with two bitmaps, the second one disabled, and data."""
    qcow2c.create(path, size, cluster_size=4096)
    with qcow2c.open(path, "r+") as image:
        with image.engine.changing_bitmaps() as edit:
            edit.add("one", 4096)
            edit.add("two", 512)
        image.pwrite(b"x" * 9000, 20_000)
        with image.engine.changing_bitmaps() as edit:
            edit.enable("two", enabled=False)
    return path


ONE, TWO = [(16384, 16384)], [(19968, 9216)]


def found(path: Path) -> dict[str, tuple[bool, list[tuple[int, int]]]]:
    assert qcow2c.check(path).exit_code == 0
    with qcow2c.open(path, gate="any") as image:
        return {bitmap.name: (bitmap.enabled, list(bitmap.ranges())) for bitmap in image.bitmaps}


@pytest.mark.parametrize(
    "options",
    [{}, {"preallocation": "metadata"}, {"compressed": True}, {"cluster_size": 512}, {"data_file": "data.raw"}],
    ids=str,
)
def test_a_new_image_has_the_bitmaps(tmp_path: Path, options: dict[str, object]) -> None:
    options = {key: str(tmp_path / "data.raw") if key == "data_file" else value for key, value in options.items()}
    target = tmp_path / "target.qcow2"
    qcow2c.convert(source(tmp_path / "source.qcow2"), target, output_format="qcow2", bitmaps=True, **options)
    assert found(target) == {"one": (True, ONE), "two": (False, TWO)}


def test_an_image_that_is_there_gets_them_behind_its_own(tmp_path: Path) -> None:
    target = tmp_path / "target.qcow2"
    qcow2c.create(target, MIB)
    with qcow2c.open(target, "r+") as image, image.engine.changing_bitmaps() as edit:
        edit.add("own")
    qcow2c.convert(source(tmp_path / "s.qcow2"), target, output_format="qcow2", existing=True, bitmaps=True)
    assert found(target) == {"own": (True, [(0, MIB)]), "one": (True, ONE), "two": (False, TWO)}


def test_those_behind_the_one_that_cannot_be_added_stay(tmp_path: Path) -> None:
    target = tmp_path / "target.qcow2"
    qcow2c.create(target, MIB)
    with qcow2c.open(target, "r+") as image, image.engine.changing_bitmaps() as edit:
        edit.add("one", enabled=False)
    with pytest.raises(UsageError, match="Failed to create bitmap one: Bitmap already exists: one"):
        qcow2c.convert(source(tmp_path / "s.qcow2"), target, output_format="qcow2", existing=True, bitmaps=True)
    assert found(target) == {"one": (False, []), "two": (False, TWO)}


def test_disks_of_another_size_get_none(tmp_path: Path) -> None:
    target = tmp_path / "target.qcow2"
    qcow2c.create(target, 2 * MIB)
    with pytest.raises(UsageError, match="Failed to populate bitmap two: Bitmaps are of different sizes"):
        qcow2c.convert(source(tmp_path / "s.qcow2"), target, output_format="qcow2", existing=True, bitmaps=True)
    assert found(target) == {}


def test_targets_without_bitmaps_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target.qcow2"
    qcow2c.create(target, MIB, compat="0.10")
    before = target.read_bytes()
    with pytest.raises(UsageError, match="Format driver 'qcow2' does not support bitmaps"):
        qcow2c.convert(source(tmp_path / "s.qcow2"), target, output_format="qcow2", existing=True, bitmaps=True)
    assert target.read_bytes() == before


def test_a_source_must_have_sound_bitmaps_unless_they_are_left_out(tmp_path: Path) -> None:
    path, target = source(tmp_path / "s.qcow2"), tmp_path / "target.qcow2"
    with qcow2c.open(path) as image:
        at = image.bitmaps.find("one").record.span.offset + 15
    data = bytearray(path.read_bytes())
    data[at] |= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="Cannot copy inconsistent bitmap 'one'"):
        qcow2c.convert(path, target, output_format="qcow2", bitmaps=True)
    qcow2c.convert(path, target, output_format="qcow2", bitmaps=True, skip_broken_bitmaps=True)
    assert found(target) == {"two": (False, TWO)}
    qcow2c.create(path, MIB, compat="0.10")
    with pytest.raises(UsageError, match="Source lacks bitmap support"):
        qcow2c.convert(path, target, output_format="qcow2", bitmaps=True)


def test_bitmaps_are_those_of_the_active_state(tmp_path: Path) -> None:
    path = source(tmp_path / "s.qcow2")
    snapshots.create(path, "kept")
    with qcow2c.open(path) as image:
        assert [bitmap.name for bitmap in image.bitmaps] == ["one", "two"]
        kept = image.snapshots["kept"].open()
        assert len(kept.bitmaps) == 0 and not kept.bitmaps.stale
    with pytest.raises(ValueError, match="closed"):
        list(image.bitmaps)
