"""Amend beside the real program: what info says, the disk and all snapshots, the check, and the complaints."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from qcow2c.cli import main

from .workshop import Workshop

pytestmark = pytest.mark.usefixtures("requires_qemu")

KIB, SIZE = 1024, 600 * 1024
IMAGES = {
    "4k": ("cluster_size=4k", 0, False),
    "version 2": ("compat=0.10,cluster_size=4k", 0, False),
    "version 2 with snapshots": ("compat=0.10,cluster_size=8k", 2, True),
    "over a backing file": ("cluster_size=4k,lazy_refcounts=on", 0, True),
    "snapshots": ("cluster_size=512", 3, False),
    "zstd": ("compression_type=zstd,refcount_bits=64,cluster_size=4k", 1, True),
    "data file": ("data_file=data.raw,data_file_raw=on,cluster_size=4k", 0, False),
}
CHANGES = (
    "compat=v3,lazy_refcounts=on",
    "compat=v2,lazy_refcounts=off,refcount_bits=16",
    "compat=1.1,refcount_bits=4",
    "refcount_bits=64,compat=v3",
    "lazy_refcounts=off",
    "size=1M",
    "data_file_raw=off,data_file=data.raw",
)


def img(folder: Path, *words: str) -> str:
    return subprocess.run(["qemu-img", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def shown(folder: Path, name: str) -> list[bytes]:
    """Return the disk, and those of the snapshots."""
    found = []
    tags = [snapshot["name"] for snapshot in info(folder, name).get("snapshots", [])]
    for chosen in ([], *(["-l", tag] for tag in tags)):
        img(folder, "convert", "-f", "qcow2", *chosen, "-O", "raw", name, "shown.raw")
        found.append((folder / "shown.raw").read_bytes())
    return found


def info(folder: Path, name: str) -> dict[str, object]:
    found = json.loads(img(folder, "info", "--output=json", name))
    left_out = ("actual-size", "filename", "children", "date-sec", "date-nsec")
    return {key: value for key, value in found.items() if key not in left_out}


def make(folder: Path, kind: str) -> None:
    options, snapshots, backed = IMAGES[kind]
    shop = Workshop(folder, len(kind))
    shop.raw("base.raw", SIZE, (0, shop.noise(SIZE)))
    shop.create(SIZE, options, *(["-b", "base.raw", "-F", "raw"] if backed else []), name="ours.qcow2")
    for number in range(snapshots):
        shop.io(*shop.scattered(SIZE, 4 * KIB, 6), name="ours.qcow2")
        shop.img("snapshot", "-c", f"s{number}", "ours.qcow2")
    shop.io(*shop.scattered(SIZE, 4 * KIB, 6), "write -z 64k 100k", name="ours.qcow2")
    shutil.copy(folder / "ours.qcow2", folder / "theirs.qcow2")


@pytest.mark.parametrize("kind", IMAGES)
def test_one_amendment_after_the_other_says_and_gives_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, kind)
    expected = shown(tmp_path, "ours.qcow2")
    for change in CHANGES:
        words = ["amend", "-o", change]
        theirs = subprocess.run(["qemu-img", *words, "theirs.qcow2"], capture_output=True, text=True, check=False)
        capfd.readouterr()
        before = Path("ours.qcow2").read_bytes()
        status = main([*words, "ours.qcow2"])
        said = capfd.readouterr().err
        assert (status, said) == (theirs.returncode, theirs.stderr.replace("qemu-img: ", "qcow2c: ")), change
        if status:
            assert Path("ours.qcow2").read_bytes() == before
            shutil.copy("ours.qcow2", "theirs.qcow2")  # The real program may have done a part of it.
        elif change.startswith("size"):
            expected = [
                state.ljust(1 << 20, b"\0") for state in expected
            ]  # It shows snapshots at the size of the disk.
        assert info(tmp_path, "ours.qcow2") == info(tmp_path, "theirs.qcow2"), change
        assert shown(tmp_path, "ours.qcow2") == expected, change
        img(tmp_path, "check", "-q", "ours.qcow2")


def test_snapshots_survive_a_downgrade_that_the_real_program_does_to_their_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It zeros the host clusters of zero clusters, whoever else refers to them."""
    monkeypatch.chdir(tmp_path)
    shop = Workshop(tmp_path, 1)
    shop.create(SIZE, name="ours.qcow2")
    shop.io("write -P 7 0 256k", name="ours.qcow2")
    shop.img("snapshot", "-c", "s", "ours.qcow2")
    shop.io("write -z 0 128k", name="ours.qcow2")
    expected = shown(tmp_path, "ours.qcow2")
    assert main(["amend", "-o", "compat=v2", "ours.qcow2"]) == 0
    assert shown(tmp_path, "ours.qcow2") == expected
    img(tmp_path, "check", "-q", "ours.qcow2")


def test_help_is_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    theirs = subprocess.run(
        ["qemu-img", "amend", "-f", "qcow2", "-o", "help"], capture_output=True, text=True, check=True
    )
    assert main(["amend", "-f", "qcow2", "-o", "help"]) == 0
    assert capfd.readouterr().out == theirs.stdout
