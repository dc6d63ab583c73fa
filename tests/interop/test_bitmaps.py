"""bitmap beside qemu-img bitmap: the same words do the same to the same image, and each reads what the other wrote."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.format.header import Header
from qcow2c.format.records import read_bitmaps
from qcow2c.storage.sources import Memory

from .conftest import Outcome, run_qemu_img

pytestmark = pytest.mark.usefixtures("requires_qemu")

RunOurs = Callable[..., Outcome]
MIB = 1 << 20
IMAGE, OTHER = "disk.qcow2", "other.qcow2"
Dirty = list[tuple[int, int]]


@pytest.fixture(scope="module")
def images(
    tmp_path_factory: pytest.TempPathFactory,
    qemu_img: Path,  # noqa: ARG001 - a fixture cannot be marked to use another
) -> Path:
    """A folder with images, made once."""
    folder = tmp_path_factory.mktemp("bitmaps")
    make(folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path, images: Path) -> tuple[Path, Path]:
    """Two folders with the same images: one for qemu-img, one for us."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        shutil.copytree(images, folder)
    return theirs, ours


def qemu_io(folder: Path, *commands: str, name: str = IMAGE) -> None:
    words = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, name], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def make(folder: Path, options: str = "cluster_size=4k", size: str = "50M") -> None:
    for name in (IMAGE, OTHER):
        assert run_qemu_img(folder, "create", "-q", "-f", "qcow2", "-o", options, name, size).status == 0
    for words in (
        ["--add", "-g", "512", IMAGE, "fine"],
        ["--add", "-g", "1M", IMAGE, "coarse"],
        ["--add", "--disable", IMAGE, "off"],
        ["--add", "-g", "32k", OTHER, "elsewhere"],
    ):
        assert run_qemu_img(folder, "bitmap", *words).status == 0
    qemu_io(folder, "write 3k 5k", "write 10M 3M", "write 49M 1M", "discard 20M 1M")
    qemu_io(folder, "write 30M 77k", "write 0 512", name=OTHER)


def dirty(path: Path) -> dict[str, tuple[bool, int, Dirty]]:
    """Return what we read of the bitmaps of an image."""
    with qcow2c.open(path) as image:
        return {found.name: (found.enabled, found.granularity, list(found.ranges())) for found in image.bitmaps}


def info(folder: Path, name: str = IMAGE) -> dict[str, Any]:
    found = run_qemu_img(folder, "info", "--output=json", name).json()
    del found["actual-size"]
    return dict(found)


@contextmanager
def served(folder: Path, name: str, bitmap: str) -> Iterator[str]:
    """Serve an image with one of its bitmaps by qemu-nbd; give out the socket."""
    socket = str(folder / "socket")
    words = ["qemu-nbd", "-f", "qcow2", "-r", "-B", bitmap, "-k", socket, "-t", name]
    server = subprocess.Popen(words, cwd=folder)
    try:
        for _ in range(500):
            if Path(socket).exists():
                break
            time.sleep(0.01)
        yield socket
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def seen_by_qemu(folder: Path, name: str, bitmap: str) -> Dirty:
    """Return the dirty ranges of a bitmap as qemu-img map shows them; a dirty block counts as no data there."""
    with served(folder, name, bitmap) as socket:
        where = f"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
        extents = run_qemu_img(folder, "map", "--output=json", "--image-opts", where).json()
    found: Dirty = []
    for one in extents:
        if not one["data"]:
            if found and sum(found[-1]) == one["start"]:
                found[-1] = found[-1][0], found[-1][1] + one["length"]
            else:
                found.append((one["start"], one["length"]))
    return found


ACTIONS = (
    ["--add", IMAGE, "new"],
    ["--add", "-g", "2k", "--disable", IMAGE, "new"],
    ["--remove", IMAGE, "fine"],
    ["--remove", "--add", "-g", "64k", IMAGE, "fine"],
    ["--clear", IMAGE, "coarse"],
    ["--enable", IMAGE, "off"],
    ["--disable", IMAGE, "fine"],
    ["--merge", "fine", IMAGE, "coarse"],
    ["--merge", "coarse", IMAGE, "fine"],
    ["--merge", "fine", "--merge", "coarse", "--enable", IMAGE, "off"],
    ["--clear", "--merge", "fine", "--disable", IMAGE, "coarse"],
    ["--merge", "fine", "--clear", IMAGE, "coarse"],
    ["--merge", "elsewhere", "-b", OTHER, "-F", "qcow2", IMAGE, "fine"],
    ["--add", "-g", "4M", "--merge", "elsewhere", "-b", OTHER, IMAGE, "new"],
    ["--add", "-g", "1k", "--merge", "fine", "--remove", IMAGE, "new"],
    ["--merge", "fine", IMAGE, "fine"],
    ["--add", "--merge", "gone", "--disable", IMAGE, "new"],
    ["--clear", "--add", IMAGE, "coarse"],
    ["--remove", "--enable", IMAGE, "off"],
    ["--add", "-g", "2G", IMAGE, "new"],
    ["--add", "-g", "1000", IMAGE, "new"],
    ["--add", IMAGE, "n" * 1023],
    ["--add", IMAGE, "n" * 1024],
    ["--add", IMAGE, "bücher \N{BOOKS}"],
    ["--clear", IMAGE],
    ["--clear", "-g", "4k", IMAGE, "fine"],
    [IMAGE, "fine"],
    ["--merge", "elsewhere", "-F", "qcow2", IMAGE, "fine"],
    ["--clear", "-b", OTHER, IMAGE, "fine"],
    ["--add", "-g", "x", IMAGE, "new"],
)


@pytest.mark.parametrize("words", ACTIONS, ids=lambda words: " ".join(words)[:60])
def test_the_same_words_do_the_same(words: list[str], folders: tuple[Path, Path], run_ours: RunOurs) -> None:
    theirs, ours = folders
    expected = run_qemu_img(theirs, "bitmap", *words)
    got = run_ours(ours, "bitmap", *words)
    assert (got.status, got.out) == (expected.status, expected.out)
    assert info(ours) == info(theirs)
    assert dirty(ours / IMAGE) == dirty(theirs / IMAGE)
    assert run_qemu_img(ours, "check", IMAGE).status == 0
    if "persistent" not in expected.err:
        plain = [line.removeprefix("qemu-img: ").strip() for line in expected.err.splitlines()]
        for line, complaint in zip(plain, got.err.splitlines(), strict=True):
            assert complaint.removeprefix("qcow2c: ").removeprefix(f"{IMAGE}: ") == line


def test_qemu_sees_the_bits_that_we_wrote(folders: tuple[Path, Path], run_ours: RunOurs) -> None:
    _, ours = folders
    assert run_ours(ours, "bitmap", "--add", "-g", "16k", "--disable", "--merge", "fine", IMAGE, "new").status == 0
    assert run_ours(ours, "bitmap", "--merge", "elsewhere", "-b", OTHER, IMAGE, "new").status == 0
    for name, (_, _, ranges) in dirty(ours / IMAGE).items():
        assert bool(ranges) == (name != "off")
        assert seen_by_qemu(ours, IMAGE, name) == ranges


def test_inconsistent_and_stale_bitmaps(folders: tuple[Path, Path], run_ours: RunOurs) -> None:
    theirs, ours = folders
    for folder in folders:
        with qcow2c.open(folder / IMAGE) as image:
            at = image.bitmaps.find("fine").record.span.offset + 15
        data = bytearray((folder / IMAGE).read_bytes())
        data[at] |= 1
        (folder / IMAGE).write_bytes(data)
    for words in (
        ["--clear", IMAGE, "fine"],
        ["--enable", IMAGE, "fine"],
        ["--merge", "coarse", IMAGE, "fine"],
        ["--merge", "fine", IMAGE, "coarse"],
        ["--clear", IMAGE, "coarse"],
        ["--remove", IMAGE, "fine"],
    ):
        expected, got = run_qemu_img(theirs, "bitmap", *words), run_ours(ours, "bitmap", *words)
        assert got.status == expected.status
        assert got.err.splitlines()[:1] == [
            line.replace("qemu-img:", f"qcow2c: {IMAGE}:") for line in expected.err.splitlines()[:1]
        ]
        assert info(ours) == info(theirs)
    for folder in folders:
        data = bytearray((folder / IMAGE).read_bytes())
        data[95] &= 0xFE
        (folder / IMAGE).write_bytes(data)
    expected, got = run_qemu_img(theirs, "bitmap", "--add", IMAGE, "x"), run_ours(ours, "bitmap", "--add", IMAGE, "x")
    assert got.status == expected.status == 0
    assert got.err.splitlines()[0] == expected.err.splitlines()[0].replace("qemu-img: warning", "qcow2c: warning")
    assert info(ours) == info(theirs)


OPTIONS = (
    "cluster_size=512,refcount_bits=1",
    "cluster_size=2M",
    "lazy_refcounts=on",
    "extended_l2=on",
    "data_file=data.raw",
)


@pytest.mark.parametrize("options", OPTIONS)
def test_other_images_get_bitmaps_just_as_well(options: str, tmp_path: Path, run_ours: RunOurs) -> None:
    run_qemu_img(tmp_path, "create", "-q", "-f", "qcow2", "-o", options, IMAGE, "20M")
    assert run_ours(tmp_path, "bitmap", "--add", "-g", "512", IMAGE, "one").status == 0
    qemu_io(tmp_path, "write 1M 100k", "write 5M 10k")
    assert run_ours(tmp_path, "bitmap", "--add", "-g", "1M", "--merge", "one", IMAGE, "two").status == 0
    qemu_io(tmp_path, "write 15M 1k")
    assert dirty(tmp_path / IMAGE) == {
        "one": (True, 512, [(MIB, 102400), (5 * MIB, 10240), (15 * MIB, 1024)]),
        "two": (True, MIB, [(MIB, MIB), (5 * MIB, MIB), (15 * MIB, MIB)]),
    }
    assert run_qemu_img(tmp_path, "check", IMAGE).status == 0


def test_both_programs_take_turns_on_one_image(tmp_path: Path, run_ours: RunOurs) -> None:
    chooser = random.Random(5)
    run_qemu_img(tmp_path, "create", "-q", "-f", "qcow2", "-o", "cluster_size=1k", IMAGE, "8M")
    model: dict[str, tuple[bool, int, set[int]]] = {}
    for turn in range(60):
        name = chooser.choice("abcd")
        verb = chooser.choice(("add", "add", "remove", "clear", "enable", "disable", "merge", "merge", "write"))
        if verb == "write":
            start, length = chooser.randrange(8 * MIB - 70_000), chooser.randrange(1, 70_000)
            for known, (enabled, bits, found) in model.items():
                if enabled:
                    touched = range(start >> bits, (start + length - 1 >> bits) + 1)
                    model[known] = enabled, bits, found | set(touched)
            if turn % 2:
                qemu_io(tmp_path, f"write {start} {length}")
            else:
                with qcow2c.open(tmp_path / IMAGE, "r+") as image:
                    image.pwrite(bytes(length), start)
            continue
        words, bits, other = [f"--{verb}"], chooser.randrange(9, 20), chooser.choice("abcd")
        words += ["-g", str(1 << bits)] if verb == "add" else [other] if verb == "merge" else []
        words += [IMAGE, name]
        if turn % 2:
            status = run_qemu_img(tmp_path, "bitmap", *words).status
        else:
            status = run_ours(tmp_path, "bitmap", *words).status
        works = (name in model) != (verb == "add") and (verb != "merge" or other in model)
        assert status == (0 if works else 1), (turn, words)
        if works:
            apply(model, verb, name, bits, other)
        assert run_qemu_img(tmp_path, "check", IMAGE).status == 0, (turn, words)
    expected = {
        name: (enabled, 1 << bits, {bit << bits for bit in found}) for name, (enabled, bits, found) in model.items()
    }
    got = {
        name: (enabled, size, {at for start, length in ranges for at in range(start, start + length, size)})
        for name, (enabled, size, ranges) in dirty(tmp_path / IMAGE).items()
    }
    assert got == expected and any(found for _, _, found in got.values())


def apply(model: dict[str, tuple[bool, int, set[int]]], verb: str, name: str, bits: int, other: str) -> None:
    """Do to the model what is done to the image."""
    if verb == "add":
        model[name] = True, bits, set()
        return
    enabled, bits, found = model.pop(name)
    if verb == "remove":
        return
    if verb == "clear":
        found = set()
    elif verb == "merge" and other != name:
        _, other_bits, dirty_bits = model[other]
        for bit in dirty_bits:
            found = found | set(range(bit << other_bits >> bits, ((bit + 1 << other_bits) - 1 >> bits) + 1))
    else:
        enabled = enabled if verb == "merge" else verb == "enable"
    model[name] = enabled, bits, found


@pytest.mark.parametrize("size", ["+7M", "2G", "10753536", "49M"])
def test_bitmaps_follow_the_size_of_the_disk(size: str, folders: tuple[Path, Path], run_ours: RunOurs) -> None:
    theirs, ours = folders
    words = ["resize", "--shrink", IMAGE, size]
    assert run_qemu_img(theirs, *words).status == run_ours(ours, *words).status == 0
    assert dirty(ours / IMAGE) == dirty(theirs / IMAGE)
    assert info(ours) == info(theirs)
    for folder in folders:
        run_qemu_img(folder, "resize", IMAGE, "3G")
    assert dirty(ours / IMAGE) == dirty(theirs / IMAGE)
    assert run_qemu_img(ours, "check", IMAGE).status == 0


def test_full_backup_and_overlay_show_the_disk(folders: tuple[Path, Path], run_ours: RunOurs) -> None:
    _, ours = folders
    run_qemu_img(ours, "convert", "-O", "qcow2", "-c", IMAGE, "full.qcow2")
    run_qemu_img(ours, "bitmap", "--add", "-g", "2k", IMAGE, "since")
    qemu_io(ours, "write -P 7 1M 33k", "write -z 11M 1M", "discard 12M 500k", "write -c -P 8 21M 4k")
    qemu_io(ours, "write -P 9 52428288 512")
    words = ["--overlay", "since.qcow2", "-o", "backing_file=full.qcow2,backing_fmt=qcow2", IMAGE, "since"]
    assert run_ours(ours, "bitmap", *words).status == 0
    assert run_qemu_img(ours, "compare", IMAGE, "since.qcow2").status == 0
    assert run_qemu_img(ours, "compare", IMAGE, "full.qcow2").status == 1
    assert run_qemu_img(ours, "check", "since.qcow2").status == 0


def test_convert_into_an_image_that_is_there(folders: tuple[Path, Path], run_ours: RunOurs) -> None:
    theirs, ours = folders
    words = ["convert", "-n", "--bitmaps", "-O", "qcow2", IMAGE]
    for folder in folders:
        for name, size in (("new.qcow2", "50M"), ("larger.qcow2", "60M"), ("taken.qcow2", "50M")):
            run_qemu_img(folder, "create", "-q", "-f", "qcow2", name, size)
        run_qemu_img(folder, "create", "-q", "-f", "qcow2", "-o", "compat=v2", "old.qcow2", "50M")
        run_qemu_img(folder, "create", "-q", "-f", "raw", "raw.qcow2", "50M")
        run_qemu_img(folder, "bitmap", "--add", "-g", "8k", "new.qcow2", "own")
        run_qemu_img(folder, "bitmap", "--add", "taken.qcow2", "coarse")
    for name in ("new.qcow2", "larger.qcow2", "taken.qcow2", "old.qcow2"):
        expected, got = run_qemu_img(theirs, *words, name), run_ours(ours, *words, name)
        assert got.status == expected.status
        assert [line.rpartition(f"{name}: ")[2].removeprefix("qcow2c: ") for line in got.err.splitlines()] == [
            line.removeprefix("qemu-img: ") for line in expected.err.splitlines()
        ]
        assert dirty(ours / name) == dirty(theirs / name)
        assert info(ours, name) == info(theirs, name)
        assert run_qemu_img(ours, "check", name).status == 0


def bitmap_records(path: Path) -> list[int]:
    data = path.read_bytes()
    header = Header.load(Memory(data))
    return [record.span.offset for record in read_bitmaps(Memory(data), header).records]


@pytest.mark.parametrize("at", [16, 17, 15], ids=["type", "granularity", "flags"])
def test_an_image_that_qemu_refuses_for_a_bitmap_is_opened_again(at: int, tmp_path: Path, run_ours: RunOurs) -> None:
    """By the removal of the bitmap, and by a repair, which gives up all of them."""
    assert run_qemu_img(tmp_path, "create", "-q", "-f", "qcow2", IMAGE, "1M").status == 0
    qemu_io(tmp_path, "write -P 7 0 512k")
    for name in ("bad", "good"):
        assert run_qemu_img(tmp_path, "bitmap", "--add", IMAGE, name).status == 0
    image = tmp_path / IMAGE
    data = bytearray(image.read_bytes())
    data[bitmap_records(image)[0] + at] = 99
    image.write_bytes(data)
    refused = run_qemu_img(tmp_path, "info", IMAGE)
    assert refused.status == 1 and "Bitmap 'bad'" in refused.err

    shown = run_ours(tmp_path, "info", IMAGE)
    assert shown.status == 0 and "bitmaps broken: bitmap 'bad': " in shown.out
    checked = run_ours(tmp_path, "check", IMAGE)
    assert checked.status == 1 and "bitmap 'bad'" in checked.err and "bitmap --remove" in checked.err
    shutil.copy(image, tmp_path / OTHER)

    assert run_ours(tmp_path, "bitmap", "--remove", IMAGE, "bad").status == 0
    kept = run_qemu_img(tmp_path, "info", "--output=json", IMAGE).json()["format-specific"]["data"]["bitmaps"]
    assert [bitmap["name"] for bitmap in kept] == ["good"]
    assert run_qemu_img(tmp_path, "check", IMAGE).status in (0, 3)

    assert run_ours(tmp_path, "check", "-r", "all", OTHER).status == 3
    assert "bitmaps" not in run_qemu_img(tmp_path, "info", "--output=json", OTHER).json()["format-specific"]["data"]
    assert run_qemu_img(tmp_path, "check", OTHER).status == 3
    assert run_qemu_img(tmp_path, "compare", IMAGE, OTHER).status == 0
