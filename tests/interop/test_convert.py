"""convert: what we write, the real qemu-img reads and checks clean; what it writes, we read; both say the same."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c

from .conftest import Outcome, run_qemu_img
from .images import RECIPES
from .workshop import IMAGE, KIB, MIB, RealImage, Workshop

Run = Callable[..., Outcome]

OPEN = [recipe.name for recipe in RECIPES if not recipe.sealed and recipe.whole]
SNAPSHOTS = [(recipe.name, name) for recipe in RECIPES for name in recipe.snapshots]
OVERLAYS = [
    "chain-raw-equal",
    "chain-raw-1000-bytes",
    "chain-raw-odd-bytes",
    "chain-qcow2-shorter",
    "chain-qcow2-longer",
    "chain-v2-512",
    "chain-2m",
    "extended-over-raw-1000",
]
OPTIONS = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=2M,refcount_bits=64",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=2M",
    "compression_type=zstd,lazy_refcounts=on",
    "preallocation=metadata",
    "preallocation=full,cluster_size=4k",
]

pytestmark = pytest.mark.usefixtures("requires_qemu")


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, 13)


def convert(run_ours: Run, folder: Path, *words: str) -> None:
    """Convert with our program, which says nothing."""
    outcome = run_ours(folder, "convert", "--gate=any", *words)
    assert (outcome.status, outcome.out, outcome.err) == (0, "", ""), words


def assert_sound(folder: Path, name: str, expected: bytes) -> None:
    """Demand that both programs find an image clean, and that the real one reads from it what is expected."""
    theirs = run_qemu_img(folder, "check", name)
    assert theirs.status == 0, theirs
    assert qcow2c.check(folder / name).exit_code == 0
    expected_path = folder / "expected.raw"
    expected_path.write_bytes(expected)
    outcome = run_qemu_img(folder, "compare", "-f", "qcow2", "-F", "raw", name, "expected.raw")
    expected_path.unlink()
    assert (outcome.status, outcome.out) == (0, "Images are identical.\n"), outcome


# --- real images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_a_real_image_becomes_what_qemu_makes_of_it(image: RealImage, run_ours: Run, tmp_path: Path) -> None:
    convert(run_ours, image.folder, IMAGE, str(tmp_path / "copy.raw"))
    assert (tmp_path / "copy.raw").read_bytes() == image.guest_data()
    chooser = random.Random(image.recipe.name)
    options = chooser.choice(OPTIONS)
    compress = ["-c"] if "preallocation" not in options and chooser.random() < 0.5 else []
    sparse = chooser.choice([[], ["-S", "0"], ["-S", "512"], ["-S", "64k"]])
    words = [*compress, *sparse, *(["-o", options] if options else [])]
    convert(run_ours, image.folder, "-O", "qcow2", *words, IMAGE, str(tmp_path / "copy.qcow2"))
    assert_sound(tmp_path, "copy.qcow2", image.guest_data())


@pytest.mark.parametrize(("name", "snapshot"), SNAPSHOTS)
def test_a_snapshot(name: str, snapshot: str, made: Callable[[str], RealImage], run_ours: Run, tmp_path: Path) -> None:
    image = made(name)
    for words in (("-l", snapshot), ("-l", f"snapshot.name={snapshot}")):
        convert(run_ours, image.folder, *words, IMAGE, str(tmp_path / "copy.raw"))
        copy, theirs = (tmp_path / "copy.raw").read_bytes(), image.guest_data(snapshot)
        assert copy[: len(theirs)] == theirs
        with qcow2c.open(image.folder / IMAGE) as opened:  # Theirs ends where the disk now ends.
            size = opened.snapshots[snapshot].disk_size
            assert len(copy) == max(size, len(theirs))
            assert copy[:size] == opened.snapshots[snapshot].open().pread(size, 0)


@pytest.mark.parametrize("compress", [[], ["-c"]], ids=["plain", "compressed"])
@pytest.mark.parametrize("image", OVERLAYS, indirect=True)
def test_over_the_same_backing_file(image: RealImage, compress: list[str], run_ours: Run) -> None:
    """Ours holds the same disk as theirs, and not much more of it."""
    backing = "raw" if "raw" in image.recipe.name else "qcow2"
    words = ["-O", "qcow2", *compress, "-B", "base.img", "-F", backing, IMAGE]
    convert(run_ours, image.folder, *words, "ours.qcow2")
    assert run_qemu_img(image.folder, "convert", *words, "theirs.qcow2").status == 0
    assert_sound(image.folder, "ours.qcow2", image.guest_data())
    sizes = [
        json.loads(run_qemu_img(image.folder, "check", "--output=json", name).out)["allocated-clusters"]
        for name in ("ours.qcow2", "theirs.qcow2")
    ]
    assert sizes[0] <= sizes[1]
    for name in ("ours.qcow2", "theirs.qcow2"):
        (image.folder / name).unlink()


@pytest.mark.parametrize("image", ["bitmaps", "bitmaps-disabled"], indirect=True)
def test_bitmaps_are_copied_as_qemu_copies_them(image: RealImage, run_ours: Run, tmp_path: Path) -> None:
    told = []
    for who, program in (("ours", run_ours), ("theirs", run_qemu_img)):
        target = tmp_path / f"{who}.qcow2"
        outcome = program(image.folder, "convert", "--bitmaps", "-O", "qcow2", IMAGE, str(target))
        assert outcome.status == 0, outcome
        assert run_qemu_img(tmp_path, "check", target.name).status == 0
        told.append(run_qemu_img(tmp_path, "info", "--output=json", target.name).json()["format-specific"]["data"])
    assert told[0] == told[1]


# --- what the other one wrote ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [[], ["-c"]], ids=["plain", "compressed"])
@pytest.mark.parametrize("options", OPTIONS)
def test_what_qemu_converted_is_converted_back(
    options: str, compress: list[str], shop: Workshop, run_ours: Run
) -> None:
    if compress and "preallocation" in options:
        options = options.partition(",")[2]
    size = 5 * MIB + 512
    shop.raw("disk.raw", size, (0, shop.noise(70_000)), (MIB, b"text" * 50_000), (size - 512, b"end" * 170))
    words = [*compress, "-O", "qcow2", *(["-o", options] if options else []), "disk.raw"]
    shop.img("convert", *words, "theirs.qcow2")
    convert(run_ours, shop.folder, "theirs.qcow2", "back.raw")
    expected = (shop.folder / "disk.raw").read_bytes()
    assert (shop.folder / "back.raw").read_bytes() == expected
    convert(run_ours, shop.folder, *words, "ours.qcow2")
    assert_sound(shop.folder, "ours.qcow2", expected)
    described = [
        {**run_qemu_img(shop.folder, "info", "--output=json", name).json(), "filename": "", "actual-size": 0}
        for name in ("ours.qcow2", "theirs.qcow2")
    ]
    for found in described:
        found.pop("children", None)
    assert described[0] == described[1]


def test_several_sources(shop: Workshop, run_ours: Run) -> None:
    shop.raw("one.raw", 70_000, (0, shop.noise(70_000)))
    shop.create(3 * MIB + 512, "cluster_size=4k", name="two.qcow2")
    shop.io(*shop.scattered(3 * MIB, 4096), name="two.qcow2")
    sources = ["one.raw", "two.qcow2", "one.raw"]
    shop.img("convert", *sources, "theirs.raw")
    expected = (shop.folder / "theirs.raw").read_bytes()
    convert(run_ours, shop.folder, *sources, "ours.raw")
    assert (shop.folder / "ours.raw").read_bytes() == expected
    for words in ((), ("-c",), ("-S", "0")):
        convert(run_ours, shop.folder, "-O", "qcow2", *words, *sources, "ours.qcow2")
        assert_sound(shop.folder, "ours.qcow2", expected)


@pytest.mark.parametrize("options", OPTIONS[:8])
def test_into_an_image_that_qemu_made(options: str, shop: Workshop, run_ours: Run) -> None:
    size = 3 * MIB + 512
    shop.create(size, "cluster_size=4k", name="source.qcow2")
    shop.io(*shop.scattered(size, 4096, 24), name="source.qcow2")
    shop.img("convert", "source.qcow2", "expected")
    expected = (shop.folder / "expected").read_bytes()
    for words in ((), ("-S", "0"), ("-c",)):
        shop.create(size, options, name="target.qcow2")
        shop.io(f"write -P 77 0 {size}", name="target.qcow2")
        convert(run_ours, shop.folder, "-n", "-O", "qcow2", *words, "source.qcow2", "target.qcow2")
        assert_sound(shop.folder, "target.qcow2", expected)


@pytest.mark.parametrize("words", [(), ("-c",), ("-o", "cluster_size=512"), ("-o", "extended_l2=on")], ids=str)
def test_what_goes_to_a_pipe_is_sound(words: tuple[str, ...], shop: Workshop, project_root: Path) -> None:
    size = 9 * MIB + 512
    shop.create(size, name="source.qcow2")
    shop.io(*shop.scattered(size, 65536, 24), name="source.qcow2")
    shop.img("convert", "source.qcow2", "expected")
    command = [sys.executable, "-m", "qcow2c", "convert", "-O", "qcow2", *words, "source.qcow2", "-"]
    with (shop.folder / "copy.qcow2").open("wb") as taken:
        pipe = subprocess.run(
            command, cwd=shop.folder, env={"PYTHONPATH": str(project_root)}, stdout=subprocess.PIPE, check=True
        )
        taken.write(pipe.stdout)
    assert_sound(shop.folder, "copy.qcow2", (shop.folder / "expected").read_bytes())


# --- at random ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_chains_at_random(seed: int, tmp_path: Path, run_ours: Run) -> None:
    """A raw file below an overlay, any writes, any target."""
    shop = Workshop(tmp_path, seed)
    chooser = shop.random
    extended = chooser.random() < 0.3
    cluster_size = chooser.choice([16 * KIB, 64 * KIB, 2 * MIB] if extended else [512, 4 * KIB, 64 * KIB, 2 * MIB])
    size = chooser.randrange(1, 2000 if cluster_size == 512 else 30_000) * 512
    shop.raw("base.raw", size, *((chooser.randrange(size), shop.noise(3000)) for _ in range(8)))
    layout = f"cluster_size={cluster_size},extended_l2={'on' if extended else 'off'}"
    shop.create(size, layout, "-b", "base.raw", "-F", "raw")
    shop.io(*shop.scattered(size, cluster_size, 18))
    shop.img("convert", IMAGE, "expected")
    expected = (tmp_path / "expected").read_bytes()
    convert(run_ours, tmp_path, "-S", chooser.choice(["0", "512", "4k"]), IMAGE, "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == expected
    for number in range(3):
        options = chooser.choice(OPTIONS)
        words = ["-o", options] if options else []
        if "preallocation" not in options:
            words += chooser.choice([[], ["-c"]]) + chooser.choice([[], ["-B", "base.raw", "-F", "raw"]])
        convert(run_ours, tmp_path, "-O", "qcow2", *words, IMAGE, f"copy{number}")
        assert_sound(tmp_path, f"copy{number}", expected)


# --- the same words -------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, ...]] = [
    (),
    ("disk.raw",),
    ("--skip-broken-bitmaps", "disk.raw", "out"),
    ("-c", "-C", "disk.raw", "out"),
    ("-S", "4k", "-C", "disk.raw", "out"),
    ("-C", "--salvage", "disk.raw", "out"),
    ("--target-image-opts", "disk.raw", "driver=raw"),
    ("-n", "-o", "size=1", "disk.raw", "out"),
    ("--target-is-zero", "disk.raw", "out"),
    ("-T", "nonsense", "disk.raw", "out"),
    ("-m", "0", "disk.raw", "out"),
    ("-m", "17", "disk.raw", "out"),
    ("-m", "many", "disk.raw", "out"),
    ("-S", "1000", "disk.raw", "out"),
    ("-S", "17M", "disk.raw", "out"),
    ("-O", "nonsense", "disk.raw", "out"),
    ("-B", "base", "disk.raw", "out"),
    ("-O", "qcow2", "-B", "base", "-F", "raw", "disk.raw", "disk.raw", "out"),
    ("-c", "disk.raw", "out"),
    ("-c", "-O", "qcow2", "-o", "preallocation=full", "disk.raw", "out"),
    ("-l", "1", "disk.raw", "disk.raw", "out"),
    ("-l", "1", "disk.raw", "out"),
    ("-l", "1", "disk.qcow2", "out"),
    ("-l", "snapshot.id=1", "disk.qcow2", "out"),
    ("--bitmaps", "-O", "qcow2", "disk.raw", "out"),
    ("--bitmaps", "disk.qcow2", "disk.qcow2", "out"),
    ("--bitmaps", "disk.qcow2", "out"),
    ("-O", "qcow2", "-o", "nonsense=1", "disk.raw", "out"),
    ("-O", "qcow2", "-o", "cluster_size=1000", "disk.raw", "out"),
    ("-n", "disk.raw", "small.raw"),
    ("-n", "-O", "qcow2", "disk.raw", "small.qcow2"),
    ("disk.raw", "nowhere/out"),
    ("-S", "huge", "disk.raw", "out"),
    ("-F", "raw", "disk.raw", "out"),
    ("-O", "qcow2", "-B", "base", "disk.raw", "out"),
    ("-n", "-O", "qcow2", "-o", "help"),
]


def both(words: tuple[str, ...], shop: Workshop, run_ours: Run) -> list[Outcome]:
    """Return what both programs say in a folder with a few disks."""
    shop.raw("disk.raw", MIB, (0, b"data"))
    shop.raw("base", MIB)
    shop.raw("small.raw", 512)
    shop.create(MIB, name="disk.qcow2")
    shop.create(512, name="small.qcow2")
    return [program(shop.folder, "convert", *words) for program in (run_ours, run_qemu_img)]


def reason(told: str, words: tuple[str, ...]) -> str:
    """Return a message without what stands before it: the program, the file that it is about, what it did."""
    told = re.sub(r"^(qcow2c|qemu-img): ", "", told, flags=re.MULTILINE)
    for word in words:
        told = told.removeprefix(f"{word}: ")
    return re.sub("^error while converting [a-z0-9]+: ", "", told)


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_what_is_wrong_is_told_in_the_same_words(words: tuple[str, ...], shop: Workshop, run_ours: Run) -> None:
    ours, theirs = both(words, shop, run_ours)
    assert (ours.status, ours.out) == (theirs.status, theirs.out)
    assert reason(ours.err, words) == reason(theirs.err, words)


@pytest.mark.parametrize(
    "words",
    [
        ("missing", "out"),
        ("-f", "qcow2", "disk.raw", "out"),
        ("-f", "nonsense", "disk.raw", "out"),
        ("--image-opts", "disk.raw", "out"),
        ("json:{}", "out"),
        ("json:", "out"),
        ("-n", "disk.raw", "out"),
        ("-n", "-O", "qcow2", "disk.raw", "small.raw"),
        ("-O", "qcow2", "-c", "-n", "disk.raw", "small.qcow2"),
        ("-l", "snapshot.nonsense=1", "disk.qcow2", "out"),
        ("-O", "qcow2", "-B", "nowhere", "-F", "raw", "disk.raw", "out"),
    ],
    ids=" ".join,
)
def test_what_fails_there_fails_here(words: tuple[str, ...], shop: Workshop, run_ours: Run) -> None:
    ours, theirs = both(words, shop, run_ours)
    assert (ours.status, ours.out) == (theirs.status, theirs.out) == (1, "")
    assert ours.err and theirs.err


@pytest.mark.parametrize("words", [("disk.raw", "out"), ("-O", "qcow2", "disk.raw", "out"), ("missing", "out")])
def test_progress_is_drawn_alike(words: tuple[str, ...], shop: Workshop, run_ours: Run) -> None:
    """QEMU says 100 % once more when it closes the files."""
    ours, theirs = both(("-p", *words), shop, run_ours)
    end = "    (100.00/100%)\r"
    assert (ours.status, ours.out) == (theirs.status, theirs.out.replace(end * 2, end))


SAME_FILES = [
    ("disk.raw", "disk.raw"),
    ("disk.raw", "link.raw"),
    ("over.qcow2", "disk.raw"),
    ("over.qcow2", "link.raw"),
    ("over.qcow2", "over.qcow2"),
    ("disk.qcow2", "disk.qcow2"),
]


@pytest.mark.parametrize("options", [("raw",), ("qcow2",), ("raw", "-n")], ids=str)
@pytest.mark.parametrize(("source", "target"), SAME_FILES)
def test_a_file_that_is_read_is_no_target(
    source: str, target: str, options: tuple[str, ...], shop: Workshop, run_ours: Run
) -> None:
    """Neither the source nor what lies below it, under whatever name; both programs leave it alone."""

    def prepare() -> dict[str, bytes]:
        shop.raw("disk.raw", MIB, (0, b"data"))
        shop.create(MIB, name="disk.qcow2")
        shop.create(MIB, "", "-b", "disk.raw", "-F", "raw", name="over.qcow2")
        (shop.folder / "link.raw").unlink(missing_ok=True)
        (shop.folder / "link.raw").hardlink_to(shop.folder / "disk.raw")
        return {path.name: path.read_bytes() for path in shop.folder.iterdir()}

    before = prepare()
    words = ("-O", *options, source, target)
    theirs = run_qemu_img(shop.folder, "convert", *words)
    assert theirs.status == 1
    prepare()
    ours = run_ours(shop.folder, "convert", *words)
    assert ours.status == theirs.status
    assert {path.name: path.read_bytes() for path in shop.folder.iterdir()} == before
