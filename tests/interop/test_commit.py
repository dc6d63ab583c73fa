"""commit beside qemu-img commit: one chain twice, the same command to each, and then the same disks and messages."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import qcow2c

from .conftest import Outcome, run_qemu_img
from .workshop import KIB, MIB, Workshop

pytestmark = pytest.mark.usefixtures("requires_qemu")

RAW = "raw"


@dataclass(frozen=True)
class Layer:
    """An image of a chain: options of qemu-img create, size, how it is written to; RAW options: a raw file."""

    options: str = ""
    size: int = 2 * MIB
    actions: str = "wwzdc"
    snapshot: bool = False
    bitmap: bool = False

    @property
    def grain(self) -> int:
        words = dict(part.split("=") for part in self.options.split(",") if "=" in part)
        return int(words.get("cluster_size", "64k").removesuffix("k")) * KIB


BASES = {
    "raw": Layer(RAW),
    "raw with an odd end": Layer(RAW, 2 * MIB - 100),
    "version 3": Layer(),
    "version 2": Layer("compat=0.10"),
    "version 2 with 4k clusters": Layer("compat=0.10,cluster_size=4k"),
    "subclusters": Layer("extended_l2=on,cluster_size=16k"),
    "4k clusters": Layer("cluster_size=4k"),
    "narrow refcounts": Layer("cluster_size=4k,refcount_bits=1"),
    "zstd": Layer("compression_type=zstd"),
    "a data file": Layer("data_file=base.bin", actions="wwzd"),
    "a raw data file": Layer("data_file=base.bin,data_file_raw=on", actions="wwzd"),
    "lazy refcounts": Layer("lazy_refcounts=on"),
    "larger": Layer(size=3 * MIB),
    "a snapshot": Layer("cluster_size=4k", snapshot=True),
    "a bitmap": Layer("cluster_size=4k", bitmap=True),
}
TOPS = {
    "version 3": Layer(),
    "version 2": Layer("compat=0.10"),
    "subclusters": Layer("extended_l2=on,cluster_size=16k"),
    "4k clusters": Layer("cluster_size=4k"),
    "compressed": Layer("compression_type=zstd", actions="ccc"),
    "zeros": Layer("cluster_size=4k", actions="zzz"),
    "zeros in subclusters": Layer("extended_l2=on,cluster_size=16k", actions="zzw"),
    "a data file": Layer("data_file=top.bin", actions="wwzd"),
    "a snapshot": Layer("cluster_size=4k", snapshot=True),
    "a snapshot, version 2": Layer("compat=0.10,cluster_size=4k", snapshot=True),
    "a bitmap": Layer("cluster_size=4k", bitmap=True),
    "an odd size": Layer(size=MIB + 512),
    "nothing": Layer(actions=""),
}


def build(folder: Path, *layers: Layer, seed: int = 1) -> list[str]:
    """Make a chain, from the base up; return the names, from the top down."""
    shop = Workshop(folder, seed)
    names: list[str] = []
    for number, layer in enumerate(layers):
        name = f"{number}.raw" if layer.options == RAW else f"{number}.qcow2"
        if layer.options == RAW:
            shop.raw(name, layer.size, *((at, shop.noise(70_000)) for at in range(0, layer.size - MIB // 4, MIB // 4)))
        else:
            below = ["-b", names[-1], "-F", names[-1].split(".")[1]] if names else []
            shop.create(layer.size, layer.options, *below, name=name)
            write(shop, name, layer)
            if layer.snapshot:
                shop.img("snapshot", "-c", "one", name)
                write(shop, name, replace(layer, actions="wzd"))
            if layer.bitmap:
                shop.img("bitmap", "--add", "-g", "4k", name, "dirty")
        names.append(name)
    for source in folder.glob("noise*"):
        source.unlink()
    return names[::-1]


def write(shop: Workshop, name: str, layer: Layer) -> None:
    """Write to an image by qemu-io: w writes, z writes zeros, d discards, c compresses clusters not yet in use."""
    chooser, grain = shop.random, layer.grain
    used: set[int] = set()
    commands = []
    for number in range(8 if layer.actions else 0):
        kind = layer.actions[number % len(layer.actions)]
        unit = grain if kind in "cd" else chooser.choice((512, 4096, grain))
        start = chooser.randrange(layer.size // unit) * unit
        length = unit if kind == "c" else chooser.choice((unit, 3 * unit, 8 * unit))
        length = min(length, layer.size - start) & -512
        clusters = set(range(start // grain, -(-(start + length) // grain)))
        if not length or (kind == "c" and (length < grain or clusters & used)):
            continue
        used |= clusters
        if kind in "wc":
            commands.append(shop.write(start, length, flags="-c" if kind == "c" else ""))
        else:
            commands.append(f"{'write -z' if kind == 'z' else 'discard'} {start} {length}")
    if commands:
        shop.io(*commands, name=name)


@pytest.fixture
def twice(tmp_path: Path) -> Callable[..., tuple[list[str], Path, Path]]:
    """Return a function that makes a chain in two folders."""

    def make(*layers: Layer, seed: int = 1) -> tuple[list[str], Path, Path]:
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        ours.mkdir()
        names = build(ours, *layers, seed=seed)
        shutil.copytree(ours, theirs)
        return names, ours, theirs

    return make


def disk(folder: Path, name: str) -> bytes:
    """Return what QEMU shows of an image."""
    target = folder / "converted"
    words = ["convert", "-f", name.split(".")[1], "-O", "raw", name, target.name]
    assert run_qemu_img(folder, *words) == Outcome(0, "", "")
    content = target.read_bytes()
    target.unlink()
    return content


def snapshot(folder: Path, name: str) -> bytes:
    shutil.copy(folder / name, folder / "applied.qcow2")
    assert run_qemu_img(folder, "snapshot", "-a", "one", "applied.qcow2").status == 0
    content = disk(folder, "applied.qcow2")
    (folder / "applied.qcow2").unlink()
    return content


def require_clean(folder: Path, *names: str) -> None:
    for name in names:
        if name.endswith("qcow2"):
            assert run_qemu_img(folder, "check", "-f", "qcow2", name).out.startswith("No errors"), name
            assert qcow2c.check(folder / name).exit_code == 0


Ours = Callable[..., Outcome]


def commit_both(run_ours: Ours, ours: Path, theirs: Path, *words: str) -> Outcome:
    """Run the command of both programs, which say the same; return what they said."""
    expected = run_qemu_img(theirs, "commit", *words)
    found = run_ours(ours, "commit", *words)
    assert (found.status, found.out) == (expected.status, expected.out)
    assert found.err.replace("qcow2c", "qemu-img") == expected.err
    return found


def require_same_disks(names: list[str], ours: Path, theirs: Path) -> None:
    for name in names:
        assert disk(ours, name) == disk(theirs, name), name


@pytest.mark.parametrize("base", BASES)
def test_any_base_holds_the_same(base: str, twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours) -> None:
    names, ours, theirs = twice(BASES[base], Layer("cluster_size=4k"))
    shown, old = disk(ours, names[0]), BASES[base].snapshot and snapshot(ours, names[1])
    commit_both(run_ours, ours, theirs, names[0])
    require_same_disks(names, ours, theirs)
    assert disk(ours, names[0]) == shown
    require_clean(ours, *names)
    if BASES[base].snapshot:
        assert snapshot(ours, names[1]) == old


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("drop", [False, True])
def test_any_image_is_committed_and_emptied_alike(
    top: str, *, drop: bool, twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours
) -> None:
    names, ours, theirs = twice(Layer("cluster_size=4k"), TOPS[top], seed=2)
    shown = disk(ours, names[0])
    before = (ours / names[0]).read_bytes()
    kept = TOPS[top].snapshot and snapshot(ours, names[0])
    commit_both(run_ours, ours, theirs, *["-d"] * drop, names[0])
    require_same_disks(names, ours, theirs)
    assert disk(ours, names[0]) == shown
    if drop:
        assert (ours / names[0]).read_bytes() == before
    assert mapped(ours, names[0]) == mapped(theirs, names[0])
    require_clean(ours, *names)
    if TOPS[top].snapshot:  # It shows the base, too, which has changed: with -d, and always in QEMU.
        assert snapshot(ours, names[0]) == (snapshot(theirs, names[0]) if drop else kept)
    if TOPS[top].bitmap:
        assert facts(ours, names[0]) == facts(theirs, names[0])


def mapped(folder: Path, name: str) -> set[int]:
    """Return which layers hold anything."""
    extents = json.loads(run_qemu_img(folder, "map", "--output=json", name).out)
    return {extent["depth"] for extent in extents if extent["present"]}


def facts(folder: Path, name: str) -> object:
    return json.loads(run_qemu_img(folder, "info", "--output=json", name).out)["format-specific"]


SIZES = (
    (2, (2 * MIB,) * 4),
    (3, (2 * MIB,) * 4),
    (3, (2 * MIB, MIB, MIB // 2, 2 * MIB)),
    (2, (2 * MIB, 2 * MIB, MIB // 2, MIB)),
    (3, (3 * MIB, 2 * MIB, MIB + 512, MIB)),
)
"""How far below the base is, and sizes from below; the base is no smaller than the image."""


@pytest.mark.parametrize(("depth", "sizes"), SIZES)
@pytest.mark.parametrize("bottom", [RAW, "compat=0.10", "cluster_size=4k"])
def test_a_layer_further_below_takes_the_same(
    sizes: tuple[int, ...], bottom: str, depth: int, twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours
) -> None:
    kinds = (bottom, "cluster_size=4k", "compat=0.10", "extended_l2=on,cluster_size=16k")
    names, ours, theirs = twice(*(Layer(kind, size) for kind, size in zip(kinds, sizes, strict=True)), seed=3)
    shown = disk(ours, names[0])
    commit_both(run_ours, ours, theirs, "-b", names[depth], names[0])
    require_same_disks(names, ours, theirs)
    assert disk(ours, names[0]) == shown
    require_clean(ours, *names)


def test_version_2_has_no_zeros_that_would_hide_what_lies_below(
    twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours
) -> None:
    names, ours, theirs = twice(Layer(RAW), Layer("compat=0.10", MIB), Layer())
    before = [(ours / name).read_bytes() for name in names]
    expected, found = run_qemu_img(theirs, "commit", names[0]), run_ours(ours, "commit", names[0])
    assert (found.status, found.out) == (expected.status, expected.out) == (1, "")
    assert expected.err.endswith("Operation not supported\n") and found.err.endswith("Operation not supported\n")
    assert [(ours / name).read_bytes() for name in names] == before


@pytest.mark.parametrize("options", ["", "extended_l2=on,cluster_size=16k", "data_file=base.bin"])
def test_a_smaller_image_grows_alike(
    options: str, twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours
) -> None:
    actions = "wwzd" if "data_file" in options else "wwzdc"
    names, ours, theirs = twice(Layer(RAW), Layer(options, MIB + 512, actions), Layer())
    commit_both(run_ours, ours, theirs, names[0])
    require_same_disks(names, ours, theirs)
    require_clean(ours, *names)


@pytest.mark.parametrize("size", [MIB, MIB - 512, 1000])
def test_a_smaller_raw_base_grows_alike(
    size: int, twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours
) -> None:
    names, ours, theirs = twice(Layer(RAW, size), Layer())
    commit_both(run_ours, ours, theirs, names[0])
    require_same_disks(names, ours, theirs)
    assert (ours / names[1]).stat().st_size == (theirs / names[1]).stat().st_size


def test_bitmaps_of_the_base_record_what_is_written(
    twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours
) -> None:
    names, ours, theirs = twice(Layer("cluster_size=4k", bitmap=True), Layer("cluster_size=4k"))
    before = disk(ours, names[1])
    commit_both(run_ours, ours, theirs, names[0])
    assert facts(ours, names[1]) == facts(theirs, names[1])
    after, marked = disk(ours, names[1]), dirty(ours, names[1])
    changed = {at // 4096 for at in range(0, len(after), 4096) if after[at : at + 4096] != before[at : at + 4096]}
    assert changed and changed <= marked
    assert marked <= dirty(theirs, names[1])


def dirty(folder: Path, name: str) -> set[int]:
    """Return the granules that a bitmap marks, as QEMU's server shows them."""
    words = f"driver=nbd,server.type=unix,server.path={folder}/socket,export=x,x-dirty-bitmap=qemu:dirty-bitmap:dirty"
    options = ["-r", "-f", "qcow2", "-x", "x", "-B", "dirty", "-k", str(folder / "socket")]
    subprocess.run(["qemu-nbd", *options, "--fork", name], cwd=folder, check=True)
    extents = json.loads(run_qemu_img(folder, "map", "--output=json", "--image-opts", words).out)
    return {
        granule
        for extent in extents
        if not extent["data"]
        for granule in range(extent["start"] // 4096, -(-(extent["start"] + extent["length"]) // 4096))
    }


# --- what is said ---------------------------------------------------------------------------------------------------

WORDS = (
    [],
    ["a", "b"],
    ["-t", "foo", "2.qcow2"],
    ["-r", "foo", "-t", "foo", "2.qcow2"],
    ["-r", "9E", "2.qcow2"],
    ["-r", "-1", "2.qcow2"],
    ["-q", "2.qcow2"],
    ["-d", "-r", "0", "2.qcow2"],
    ["-r", "1G", "-t", "none", "2.qcow2"],
    ["-b", "0.qcow2", "2.qcow2"],
    ["-b", "./0.qcow2", "2.qcow2"],
    ["-b", "", "2.qcow2"],
    ["-b", "gone", "2.qcow2"],
    ["-b", "2.qcow2", "2.qcow2"],
    ["-b", "file:0.qcow2", "2.qcow2"],
    ["0.qcow2"],
    ["-f", "raw", "2.qcow2"],
    ["-f", "qcow2", "file:2.qcow2"],
    ["--image-opts", "-f", "qcow2", "2.qcow2"],
    ["--image-opts", "driver=qcow2,file.filename=2.qcow2"],
    ["--image-opts", "driver=qcow2,file.filename=2.qcow2,backing="],
    ["--image-opts", "-b", "1.qcow2", "driver=qcow2,file.filename=2.qcow2,backing.file.filename=0.qcow2"],
    ["--image-opts", "-b", "0.qcow2", "driver=qcow2,file.filename=2.qcow2,backing.file.filename=0.qcow2"],
    ["--image-opts", "-b", "./0.qcow2", "driver=qcow2,file.filename=2.qcow2,backing.file.filename=0.qcow2"],
)


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_the_same_is_said_line_by_line(
    words: list[str], twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours
) -> None:
    names, ours, theirs = twice(Layer(size=MIB, actions="w"), Layer(size=MIB, actions=""), Layer(size=MIB))
    expected = run_qemu_img(theirs, "commit", *words)
    found = run_ours(ours, "commit", *words)
    assert (found.status, found.out) == (expected.status, expected.out)
    assert found.err.replace("qcow2c commit --help", "qemu-img --help").replace("qcow2c:", "qemu-img:") == expected.err
    require_same_disks(names, ours, theirs)


@pytest.mark.parametrize("words", [["-p", "2.qcow2"], ["-p", "-b", "gone", "2.qcow2"], ["-p", "-q", "2.qcow2"]])
def test_progress_begins_and_ends_alike(
    words: list[str], twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours
) -> None:
    _, ours, theirs = twice(Layer(), Layer(), Layer())
    expected, found = run_qemu_img(theirs, "commit", *words), run_ours(ours, "commit", *words)
    assert (found.status, found.err.replace("qcow2c", "qemu-img")) == (expected.status, expected.err)
    for place in (0, -1):
        steps = [outcome.out.split("\r")[place] for outcome in (found, expected)]
        assert steps[0] == steps[1]


def test_a_raw_file_that_nobody_calls_raw_stays_one(
    twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours
) -> None:
    names, ours, theirs = twice(Layer(RAW, MIB), Layer(size=MIB, actions=""))
    extension = bytes.fromhex("e2792aca")
    for folder in (ours, theirs):
        (folder / "head").write_bytes(b"QFI\xfb\0\0\0\x03" + bytes(504))
        image = bytearray((folder / names[0]).read_bytes())
        image[image.index(extension) :][:4] = b"unkn"
        at = image.index(extension)
        image[at : at + 4] = b"unkn"
        (folder / names[0]).write_bytes(image)
        Workshop(folder, 1).io("write -s head 0 512", name=names[0])
    expected, found = run_qemu_img(theirs, "commit", names[0]), run_ours(ours, "commit", names[0])
    assert expected.err == "qemu-img: Block job failed: Operation not permitted\n"
    assert (found.status, found.out) == (expected.status, expected.out)
    assert "would be taken for an image of format 'qcow2'" in found.err
    assert (ours / names[1]).read_bytes() == (theirs / names[1]).read_bytes()


def test_random_chains_hold_the_same(twice: Callable[..., tuple[list[str], Path, Path]], run_ours: Ours) -> None:
    """The one program commits, writes go on, the other commits."""
    chooser = random.Random(8)
    kinds = ("cluster_size=4k", "compat=0.10", "extended_l2=on,cluster_size=16k", "cluster_size=512")
    names, ours, theirs = twice(Layer(RAW), *(Layer(chooser.choice(kinds)) for _ in range(3)), seed=4)
    for step in range(6):
        depth = chooser.randrange(1, len(names))
        for folder in (ours, theirs):
            shop = Workshop(folder, step)
            write(shop, names[0], Layer("cluster_size=16k", actions="wwzd"))
        shown = disk(ours, names[0])
        words = ["commit", "-b", names[depth]] if chooser.random() < 0.5 else ["commit"]
        first, second = (ours, theirs) if step % 2 else (theirs, ours)
        assert run_ours(first, *words, names[0]).status == 0
        assert run_qemu_img(second, *words, names[0]).status == 0
        assert disk(ours, names[0]) == shown
        require_same_disks(names, ours, theirs)
        require_clean(ours, *names)
