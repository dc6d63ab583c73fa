"""Resize beside the real program: the same words do the same, and both go on with what the other has left."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from tests.profile import DEEP

from .conftest import Outcome, run_qemu_img
from .workshop import IMAGE, Workshop

pytestmark = pytest.mark.usefixtures("requires_qemu")

RunOurs = Callable[..., Outcome]
KIB, MIB = 1024, 1 << 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, made once."""
    shop = Workshop(tmp_path_factory.mktemp("resized"), 3)
    shop.create(4 * MIB, "cluster_size=64k", name="base.qcow2")
    shop.io("write -P 7 0 4M", name="base.qcow2")
    below = ("-b", "base.qcow2", "-F", "qcow2")
    for name, options, more in (
        ("plain", "", ()),
        ("lazy", "lazy_refcounts=on,cluster_size=4k", ()),
        ("old", "compat=0.10", ()),
        ("kept", "compat=0.10", ()),
        ("marked", "", ()),
        ("over", "", below),
        ("subclusters", "extended_l2=on,cluster_size=16k", below),
        ("old_over", "compat=0.10", below),
        ("outside", "data_file=outside.data", ()),
        ("raw_outside", "data_file=raw.data,data_file_raw=on", ()),
    ):
        shop.create(1000 * KIB, options, *more, name=name)
        shop.io("write -P 3 0 100k", "write -P 4 990k 10k", name=name)
    shop.img("snapshot", "-c", "s", "kept")
    shop.img("snapshot", "-c", "s", "plain")
    shop.img("bitmap", "--add", "marked", "b")
    shop.raw("disk.raw", 1000, (0, b"x" * 1000))
    return shop.folder


@pytest.fixture
def folders(tmp_path: Path, images: Path) -> tuple[Path, Path]:
    """Two folders with the same images: one for qemu-img, one for us."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        shutil.copytree(images, folder)
    return theirs, ours


LINES = [
    "{} 2M",
    "{} +512",
    "{} +3G",
    "--shrink {} 500k",
    "--shrink {} -1000k",
    "--shrink {} -1k",
    "{} 1000k",
    "--preallocation=metadata {} 3M",
    "--preallocation=falloc {} +1536k",
    "--preallocation=full {} 5M",
    "--preallocation=full {} 1000k",
    "{} 1000",
    "{} 900k",
    "{} -1k",
    "{} -9M",
    "{} 7E",
    "-q {} 1M",
]
RAW_LINES = ["disk.raw 2000", "-f raw disk.raw 3001", "-f raw --preallocation=metadata disk.raw 1M"]
RAW_LINES += ["-f raw --preallocation=full disk.raw 1M", "-f raw --shrink disk.raw 100", "-f raw disk.raw 1010"]
RAW_LINES += ["-f raw disk.raw +1", "-f raw disk.raw 0"]
OTHER_LINES = ["--preallocation=some plain 2M", "plain", "", "a b 1M", "plain 2M --shrink", "plain ++1M"]
NAMES = ("plain", "lazy", "old", "kept", "marked", "over", "subclusters", "old_over")
NAMES += ("outside", "raw_outside")


def said(outcome: Outcome, name: str) -> list[str]:
    """Return what a program has said, without its name, the image's, and the numbers that only we tell."""
    words = outcome.err.replace("qcow2c resize --help", "--help").replace("qemu-img --help", "--help")
    for program in ("qemu-img: ", "qcow2c: "):
        words = words.replace(program, "")
    return [outcome.out, *(line.removeprefix(f"{name}: ").partition(" (")[0] for line in words.splitlines())]


def shown(folder: Path, name: str) -> tuple[int, bytes]:
    """Return size and contents of a disk that qemu-img finds sound."""
    assert run_qemu_img(folder, "check", "-f", "qcow2", name).status == 0
    size = json.loads(run_qemu_img(folder, "info", "--output=json", "-f", "qcow2", name).out)["virtual-size"]
    if size > 100 * MIB:
        return size, b""
    assert run_qemu_img(folder, "convert", "-f", "qcow2", "-O", "raw", name, "out.raw").status == 0
    return size, hashlib.sha256((folder / "out.raw").read_bytes()).digest()


def decided(folder: Path, name: str) -> list[tuple[int, bool]]:
    """Return for each cluster of what is new which layer decides it, and whether it is zeros."""
    runs = json.loads(run_qemu_img(folder, "map", "--output=json", "-f", "qcow2", name).out)
    return [
        next((run["depth"], run["zero"]) for run in runs if run["start"] <= at < run["start"] + run["length"])
        for at in range(MIB, 2 * MIB, 64 * KIB)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_words_do_the_same(folders: tuple[Path, Path], run_ours: RunOurs, name: str) -> None:
    theirs, ours = folders
    data_file = {"outside": "outside.data", "raw_outside": "raw.data"}.get(name)
    for line in LINES[:: 1 if DEEP or name == "plain" else 2 if name == "over" else 4]:
        words = ["resize", *line.format(name).replace("3G", "5M" if data_file else "3G").split()]
        for part in filter(None, (name, data_file)):  # Bytes behind the end are the same, too.
            shutil.copy(theirs / part, ours / part)
        expected, found = run_qemu_img(theirs, *words), run_ours(ours, *words)
        assert (found.status, said(found, name)) == (expected.status, said(expected, name)), line
        assert shown(ours, name) == shown(theirs, name), line
        # Of a raw data file QEMU calls holes zeros or data by how much space its last cluster takes.
        if line == "{} 2M" and not found.status and name != "raw_outside":
            assert decided(ours, name) == decided(theirs, name)
        if data_file and not found.status:
            assert (ours / data_file).stat().st_size == shown(ours, name)[0]


def test_raw_files_and_wrong_words_are_treated_the_same(folders: tuple[Path, Path], run_ours: RunOurs) -> None:
    theirs, ours = folders
    for line in RAW_LINES + OTHER_LINES:
        words = ["resize", *line.split()]
        expected, found = run_qemu_img(theirs, *words), run_ours(ours, *words)
        assert (found.status, said(found, "disk.raw")) == (expected.status, said(expected, "disk.raw")), line
        assert (ours / "disk.raw").read_bytes() == (theirs / "disk.raw").read_bytes(), line


def test_a_bitmap_in_use_is_refused_by_both(folders: tuple[Path, Path], run_ours: RunOurs) -> None:
    theirs, ours = folders
    with qcow2c.open(theirs / "marked", "r+") as image:
        image.pwrite(b"x", 0)
        image.flush()
        shutil.copy(theirs / "marked", ours / "marked")
        shutil.copy(theirs / "marked", theirs / "broken")
    shutil.move(ours / "marked", ours / "broken")
    expected, found = (run_qemu_img(theirs, "resize", "broken", "2M"), run_ours(ours, "resize", "broken", "2M"))
    assert found.status == expected.status == 1
    assert said(found, "broken")[1] == said(expected, "broken")[1]


OPTIONS = {
    "standard": "cluster_size=4k",
    "sectors": "cluster_size=512",
    "subclusters": "cluster_size=16k,extended_l2=on",
    "version 2": "compat=0.10,cluster_size=1k",
    "preallocated": "cluster_size=4k,preallocation=metadata",
    "lazy": "cluster_size=4k,lazy_refcounts=on",
    "data file": "cluster_size=4k,data_file=outside.data",
    "raw data file": "cluster_size=4k,data_file=outside.data,data_file_raw=on",
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_both_resize_one_image_in_turns(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between them it is written to; snapshots keep what they hold, a bitmap what was written."""
    monkeypatch.chdir(tmp_path)
    shop = Workshop(tmp_path, len(kind))
    chooser = shop.random
    size = chooser.randrange(1, 2000) * 512
    shop.create(size, OPTIONS[kind])
    if kind != "version 2":
        shop.img("bitmap", "--add", "-g", "64k", IMAGE, "b")
    disk = bytearray(size)
    kept: dict[str, bytes] = {}
    for step in range(11):
        act = chooser.choice(("write", "theirs", "ours", "ours", "grow", "snapshot"))
        if act == "write" or not step:
            _write(shop, chooser, disk)
        elif act == "snapshot":
            if kind in ("standard", "sectors", "subclusters", "lazy"):
                shop.img("snapshot", "-c", f"s{step}", IMAGE)
                kept[f"s{step}"] = bytes(disk)
        else:
            # What qemu-img leaves in a cluster through which the end goes would show again.
            grain = 64 * KIB if act == "theirs" else 512
            size = chooser.randrange(1, 3 * MIB // grain) * grain
            size = max(size, len(disk) + 512) if act == "grow" else size
            if act == "theirs" and len(disk) % grain == 0:
                shop.img("resize", "--shrink", "-f", "qcow2", IMAGE, str(size))
            else:
                how = chooser.choice(("off", "metadata", "falloc", "full")) if act == "grow" else "off"
                assert main(["resize", "-q", "--shrink", f"--preallocation={how}", IMAGE, str(size)]) == 0
            disk[size:] = bytes(max(0, size - len(disk)))
        run = run_qemu_img(tmp_path, "check", IMAGE)
        assert run.status == 0 and qcow2c.check(IMAGE).exit_code == 0, (step, act, run.err)
        shop.img("convert", "-O", "raw", IMAGE, "out.raw")
        assert Path("out.raw").read_bytes() == disk, (step, act)
        with qcow2c.open(IMAGE) as image:
            assert image.pread(image.size(), 0) == disk, (step, act)
            for name, content in kept.items():
                assert image.snapshots[name].open().pread(10 * MIB, 0) == content, (step, act)
            dirty = [span for found in image.bitmaps for span in found.ranges()]
            written = [at for at in range(0, len(disk), 64 * KIB) if any(disk[at : at + 64 * KIB])]
        if kind != "version 2":
            assert all(any(start <= at < start + length for start, length in dirty) for at in written), (step, act)


def _write(shop: Workshop, chooser: random.Random, disk: bytearray) -> None:
    at = chooser.randrange(len(disk) // 512) * 512
    content = chooser.randbytes(min(len(disk) - at, chooser.randrange(1, 400) * 512))
    (shop.folder / "content").write_bytes(content)
    command = f"write -s content {at} {len(content)}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, IMAGE], cwd=shop.folder, check=True, capture_output=True)
    disk[at : at + len(content)] = content


def test_qemu_img_cannot_resize_what_we_are_using(folders: tuple[Path, Path]) -> None:
    theirs, _ = folders
    with qcow2c.open(theirs / "plain", "r+"):
        assert "lock" in run_qemu_img(theirs, "resize", "plain", "2M").err
    assert run_qemu_img(theirs, "resize", "plain", "2M").status == 0
