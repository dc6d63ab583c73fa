"""dd: the same disks, messages and exit status as the real qemu-img, from sources of all kinds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Outcome, run_qemu_img
from .images import ONE_OF_EACH, RECIPES
from .workshop import IMAGE, RealImage

Run = Callable[..., Outcome]

OPEN = [recipe.name for recipe in RECIPES if not recipe.sealed]

pytestmark = pytest.mark.usefixtures("requires_qemu")


def both(source: Path, folder: Path, run_ours: Run, *words: str) -> tuple[Outcome, Outcome]:
    """Copy with both programs, in the folder of the source, to `ours` and `theirs` in another folder."""
    theirs = run_qemu_img(source.parent, "dd", *words, f"if={source.name}", f"of={folder / 'theirs'}")
    return run_ours(source.parent, "dd", *words, f"if={source.name}", f"of={folder / 'ours'}"), theirs


def same_disks(folder: Path, image_format: str) -> None:
    """Assert that both copies hold the same, to the byte, and that qemu-img finds nothing wrong with ours."""
    if image_format == "raw":
        assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
        return
    found = run_qemu_img(folder, "compare", "-f", image_format, "-F", image_format, "ours", "theirs")
    assert (found.status, found.out) == (0, "Images are identical.\n")
    infos = [run_qemu_img(folder, "info", "--output=json", "-f", image_format, name) for name in ("ours", "theirs")]
    assert infos[0].json()["virtual-size"] == infos[1].json()["virtual-size"]
    assert run_qemu_img(folder, "check", "ours").status == 0
    assert infos[0].json()["format-specific"] == infos[1].json()["format-specific"]


EACH_KIND = [(name, "raw") for name in OPEN] + [(name, "qcow2") for name in ONE_OF_EACH if name in OPEN]
"""How an image is read shows in a raw copy; what is written of it does not depend on its sort."""


@pytest.mark.parametrize(("image", "output_format"), EACH_KIND, indirect=["image"])
def test_images_of_all_kinds(image: RealImage, output_format: str, run_ours: Run, tmp_path: Path) -> None:
    words = ["-O", output_format, "bs=64k", "skip=1", "count=200"]
    ours, theirs = both(image.folder / IMAGE, tmp_path, run_ours, *words)
    assert (ours.status, ours.out) == (theirs.status, theirs.out) == (0, "")
    same_disks(tmp_path, output_format)


@pytest.mark.parametrize(
    "operands",
    [
        "bs=512", "bs=5", "bs=1999", "bs=64k skip=3", "bs=1000 skip=7 count=100", "bs=1 skip=1 count=2000",
        "bs=3 count=1",
        "count=0", "skip=1", "skip=30", "skip=30k", "skip=8E", "count=8191P bs=1M", "skip=2 count=1", "bs=1.5k skip=1",
        "bs=2147483647 skip=4611686018427387904", "bs=0x200 count=0x3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("output_format", ["raw", "qcow2"])
def test_parts(operands: str, output_format: str, run_ours: Run, tmp_path: Path) -> None:
    chance = random.Random(operands)
    data = chance.randbytes(100_001) + bytes(70_000) + chance.randbytes(50_000)
    (tmp_path / "disk").write_bytes(data)
    ours, theirs = both(tmp_path / "disk", tmp_path, run_ours, "-f", "raw", "-O", output_format, *operands.split())
    assert (ours.status, ours.out) == (theirs.status, theirs.out)
    assert ours.err == theirs.err.replace("qemu-img: ", "qcow2c: ")
    if ours.status == 0:
        same_disks(tmp_path, output_format)
    else:
        assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "words",
    [
        "", "if=disk", "of=x", "foo", "foo=1", "if=disk of=x bs", "bs=0", "bs=-1", "bs=2G", "bs=2147483648", "bs=",
        "count=-1", "count=8E", "count=x", "skip=1z", "skip=1.5", "if=disk of=x -O foo", "conv=notrunc",
        "if=disk of=x -f raw --image-opts", "bs=1 foo=2 bs=0",
    ],
)  # fmt: skip
def test_complaints(words: str, run_ours: Run, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"disk")
    theirs = run_qemu_img(tmp_path, "dd", *words.split())
    ours = run_ours(tmp_path, "dd", *words.split())
    assert (ours.status, ours.out) == (theirs.status, theirs.out)
    assert ours.err == theirs.err.replace("qemu-img: ", "qcow2c: ")
    assert not (tmp_path / "x").exists()
