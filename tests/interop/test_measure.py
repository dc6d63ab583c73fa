"""measure: the numbers, the output, the complaints and the exit status of the real qemu-img."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qcow2c.disk import map
from tests.corpus.hostile import BY_NAME, CASES, make_case

from .conftest import Outcome, run_qemu_img
from .images import RECIPES
from .workshop import IMAGE, KIB, MIB, RealImage

Run = Callable[..., Outcome]

ALL = [recipe.name for recipe in RECIPES]
OPEN = [recipe.name for recipe in RECIPES if not recipe.sealed]
SNAPSHOTS = [(recipe.name, name) for recipe in RECIPES if not recipe.sealed for name in recipe.snapshots]

SIZES = ("0", "1", "513", "65536", "10M", "1.5G", "3T", "1P", "9223372036854775807")
OPTIONS = (
    "",
    "compat=0.10",
    "compat=1.1,cluster_size=512",
    "cluster_size=4k,refcount_bits=64",
    "cluster_size=2M",
    "cluster_size=2M,refcount_bits=1",
    "cluster_size=1k,refcount_bits=2",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,preallocation=metadata",
    "extended_l2=on,compat=0.10,lazy_refcounts=on",
    "preallocation=metadata,refcount_bits=8",
    "preallocation=falloc,cluster_size=128k",
    "preallocation=full,compat=0.10",
    "preallocation=off,backing_file=,backing_fmt=nothing",
    "backing_file=no-such-file,preallocation=full,refcount_bits=32",
    "data_file=none,data_file_raw=on,refcount_bits=4",
    "data_file_raw=on,compression_type=none,nocow=on,extent_size_hint=1M",
    "size=7G,lazy_refcounts=on",
)
# Each image meets one of these, in turn.
OF_IMAGES = (
    "cluster_size=512,refcount_bits=64",
    "cluster_size=2M,compat=0.10",
    "extended_l2=on,preallocation=full",
    "backing_file=base",
)

pytestmark = pytest.mark.usefixtures("requires_qemu")


def assert_same(folder: Path, run_ours: Run, *words: str) -> Outcome:
    """Run both programs; return what ours did. Warnings of QEMU's are not repeated."""
    theirs = run_qemu_img(folder, "measure", *words)
    ours = run_ours(folder, "measure", *words)
    if ours.out != theirs.out:  # What ours has read is no hole any more, where ext4 has space that was never written.
        theirs = run_qemu_img(folder, "measure", *words)
    assert (ours.out, ours.status) == (theirs.out, theirs.status)
    assert ours.err == ("" if theirs.status == 0 else theirs.err.replace("qemu-img: ", "qcow2c: "))
    return ours


@pytest.mark.parametrize("options", OPTIONS)
def test_a_new_image(options: str, tmp_path: Path, run_ours: Run) -> None:
    for size in SIZES:
        with_options = ["-o", options] if options else []
        assert_same(tmp_path, run_ours, "-O", "qcow2", *with_options, "--size", size)


@pytest.mark.parametrize("size", SIZES)
def test_a_new_raw_image(size: str, tmp_path: Path, run_ours: Run) -> None:
    for words in ([], ["-O", "raw", "--output=json"], ["-o", "preallocation=whatever,extent_size_hint=1M"]):
        assert_same(tmp_path, run_ours, *words, "--size", size)


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_a_copy_of_an_image(image: RealImage, run_ours: Run) -> None:
    assert_same(image.folder, run_ours, "-O", "qcow2", IMAGE)
    assert_same(image.folder, run_ours, "--output=json", "-f", "qcow2", "-O", "qcow2", "-U", IMAGE)
    assert_same(image.folder, run_ours, IMAGE)
    assert_same(image.folder, run_ours, "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", IMAGE)
    options = OF_IMAGES[OPEN.index(image.recipe.name) % len(OF_IMAGES)]
    assert_same(image.folder, run_ours, "-O", "qcow2", "-o", options, IMAGE)


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_a_copy_of_an_image_by_arrays(image: RealImage, run_ours: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map, "ARRAYS_FROM", 0)
    for options in ("cluster_size=512", "cluster_size=64k"):
        assert_same(image.folder, run_ours, "-O", "qcow2", "-o", options, IMAGE)


@pytest.mark.parametrize("image", [name for name in ALL if name not in OPEN], indirect=True)
def test_a_copy_of_an_encrypted_image_needs_no_key(image: RealImage, run_ours: Run) -> None:
    theirs = run_qemu_img(image.folder, "measure", "-O", "qcow2", *image.source())
    ours = run_ours(image.folder, "measure", "-O", "qcow2", IMAGE)
    assert (ours.out, ours.status) == (theirs.out, theirs.status)


@pytest.mark.parametrize(
    ("image", "snapshot"), [pair for pair in SNAPSHOTS if pair != ("snapshots-shrunk", "one")], indirect=["image"]
)
def test_a_copy_of_a_snapshot(image: RealImage, snapshot: str, run_ours: Run) -> None:
    for choice in (snapshot, f"snapshot.name={snapshot}", f"snapshot.id=1,snapshot.name={snapshot}", "2"):
        words = ["-l", choice, "-O", "qcow2", "-o", "cluster_size=1k", IMAGE]
        assert_same(image.folder, run_ours, *words)
    assert_same(image.folder, run_ours, "-l", snapshot, IMAGE)


def qemu(folder: Path, *words: str) -> None:
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def named_like_an_id(
    requires_qemu: None,  # noqa: ARG001 - a fixture cannot be marked to use another
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a folder with an image whose first snapshot has the ID 1 and the name 2, and so on; then it grew."""
    folder = tmp_path_factory.mktemp("named")
    qemu(folder, "qemu-img", "create", "-f", "qcow2", "-o", "cluster_size=4k", IMAGE, "4M")
    for name, write in (("2", "write 0 64k"), ("1", "write 1M 300k"), ("same", "write 3M 1M"), ("same", "write 2M 4k")):
        qemu(folder, "qemu-io", "-c", write, IMAGE)
        qemu(folder, "qemu-img", "snapshot", "-c", name, IMAGE)
    qemu(folder, "qemu-img", "resize", IMAGE, "40M")
    qemu(folder, "qemu-io", "-c", "write 30M 1M", IMAGE)
    return folder


CHOICES = {
    "an id before a name": "1",
    "another": "2",
    "a name twice": "same",
    "an id": "snapshot.id=4",
    "a name": "snapshot.name=1",
    "both": "snapshot.id=4,snapshot.name=same",
    "both, not together": "snapshot.id=1,snapshot.name=1",
    "none": "5",
    "the last one counts": "snapshot.id=1,snapshot.id=2",
    "no name": "snapshot.name=",
    "no such key": "snapshot.colour=red",
    "no key": "snapshot.=1",
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_which_snapshot(choice: str, named_like_an_id: Path, run_ours: Run) -> None:
    assert_same(named_like_an_id, run_ours, "-l", choice, "-O", "qcow2", IMAGE)


@pytest.mark.parametrize("size", ["1M", "4M", "5M", "40M", "1G"])
def test_a_snapshot_of_a_disk_that_had_another_size(
    size: str, named_like_an_id: Path, tmp_path: Path, run_ours: Run
) -> None:
    """It is measured at the size of today, and what its tables say beyond its own end counts, too.

    One that is larger is measured, and copied, whole: as the reference program does on a disk that has its size.
    """
    found = []
    for folder, disk in ((tmp_path / "own", size), (tmp_path / "whole", "4M" if size == "1M" else size)):
        folder.mkdir()
        shutil.copy(named_like_an_id / IMAGE, folder / IMAGE)
        for words in (["snapshot", "-d", "2"], ["resize", "-q", "--shrink", IMAGE, disk]):
            run_qemu_img(folder, *words)
        found.append(folder)
    for choice in ("1", "2", "same"):
        words = ["measure", "-l", choice, "-O", "qcow2", "-o", "cluster_size=512", IMAGE]
        ours, theirs = run_ours(found[0], *words), run_qemu_img(found[1], *words)
        assert (ours.out, ours.status) == (theirs.out, theirs.status)


@pytest.mark.parametrize("granularity", ["512", "4k", "64k", "2G"])
@pytest.mark.parametrize("size", ["1", "10M", "3G", "1T"])
def test_bitmaps(granularity: str, size: str, tmp_path: Path, run_ours: Run) -> None:
    if (size, granularity) == ("1T", "512"):
        size = "60G"  # More than that is too large a bitmap for QEMU.
    qemu(tmp_path, "qemu-img", "create", "-f", "qcow2", IMAGE, size)
    for number, how in enumerate(([], ["--disable"], [])):
        words = ["bitmap", "--add", *how, "-g", granularity, IMAGE, "bitmap" * (7 * number + 1)]
        qemu(tmp_path, "qemu-img", *words)
        for options in ("compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=2M,extended_l2=on"):
            ours = assert_same(tmp_path, run_ours, "-O", "qcow2", "-o", options, IMAGE)
            assert ("bitmaps" in ours.out) == ("0.10" not in options)
    assert_same(tmp_path, run_ours, "--output=json", "-O", "qcow2", IMAGE)
    assert_same(tmp_path, run_ours, "-f", "raw", "-O", "qcow2", IMAGE)


LOOKED_INTO = {"bitmap-table-size-largest-allowed", "bitmap-table-entry-reserved"}
"""QEMU reads the tables of all bitmaps when it opens an image; to measure them, their records are enough."""


@pytest.mark.parametrize("name", [case.name for case in CASES if case.name.startswith("bitmap") and case.askable])
def test_damaged_bitmaps(name: str, tmp_path: Path, run_ours: Run) -> None:
    path = make_case(BY_NAME[name], tmp_path)
    words = ["measure", "-O", "qcow2", "-f", "qcow2", path.name]
    theirs = run_qemu_img(path.parent, *words)
    ours = run_ours(path.parent, *words)
    if name in LOOKED_INTO:
        assert (ours.status, theirs.status) == (0, 1)
    else:
        assert (ours.out, ours.status) == (theirs.out, theirs.status)


@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=4k", "", "cluster_size=2M"])
@pytest.mark.parametrize("length", [0, 1, 1000, 3 * MIB, 3 * MIB + 513])
def test_sparse_raw_files(length: int, options: str, tmp_path: Path, run_ours: Run) -> None:
    with (tmp_path / "disk.raw").open("wb") as file:
        for place in (0, 4096, 68 * KIB, MIB - 4096, MIB + 64 * KIB, 2 * MIB + 512):
            if place + 10 < length:
                file.seek(place)
                file.write(b"some bytes")
        file.truncate(length)
    with_options = ["-o", options] if options else []
    for words in (["disk.raw"], ["-f", "raw", "disk.raw"], ["-O", "qcow2", *with_options, "disk.raw"]):
        assert_same(tmp_path, run_ours, *words)


@pytest.mark.parametrize("name", ["empty-file", "text-file", "all-zeros", "random-bytes", "cut-v3-at-3"])
def test_what_is_no_image_is_probed_as_raw(name: str, tmp_path: Path, run_ours: Run) -> None:
    path = make_case(BY_NAME[name], tmp_path)
    assert_same(path.parent, run_ours, "-O", "qcow2", "--output=json", path.name)


@pytest.mark.parametrize("mode", ["metadata", "falloc"])
@pytest.mark.parametrize("options", ["", "cluster_size=4k", "extended_l2=on", "data_file=data"])
def test_preallocated_images(options: str, mode: str, tmp_path: Path, run_ours: Run) -> None:
    """Clusters in holes of the file hold no data."""
    qemu(
        tmp_path, "qemu-img", "create", "-f", "qcow2", "-o", f"preallocation={mode},{options}".strip(","), IMAGE, "50M"
    )
    assert_same(tmp_path, run_ours, "-O", "qcow2", IMAGE)
    qemu(tmp_path, "qemu-io", "-c", "write 1000k 100k", "-c", "write 30M 512", IMAGE)
    for wanted in ("cluster_size=512", "cluster_size=64k", "cluster_size=2M"):
        assert_same(tmp_path, run_ours, "-O", "qcow2", "-o", wanted, IMAGE)


COMPLAINTS: dict[str, list[str]] = {
    "nothing": [],
    "two images": ["a", "b"],
    "size and image": ["--size", "1M", "a"],
    "format without image": ["-f", "raw", "--size", "1M"],
    "snapshot without image": ["-l", "one"],
    "snapshot options without image": ["-l", "snapshot.id=1", "--size", "1M"],
    "wrong snapshot options": ["-l", "snapshot.di=1", "--size", "1M", "a", "b"],
    "no size": ["--size", "big"],
    "negative size": ["--size=-1"],
    "too large a size": ["--size", "9E"],
    "no format": ["-O", "nothing", "-o", "anything=1", "--size", "1M"],
    "no measuring": ["-O", "vmdk", "--size", "1M"],
    "no creating": ["-O", "dmg", "--size", "1M"],
    "no option": ["-O", "qcow2", "-o", "colour=red", "--size", "1M"],
    "no option of raw": ["-O", "raw", "-o", "cluster_size=4k", "--size", "1M"],
    "no boolean": ["-O", "qcow2", "-o", "extended_l2=perhaps", "--size", "1M"],
    "no number": ["-O", "qcow2", "-o", "refcount_bits=few", "--size", "1M"],
    "cluster size": ["-O", "qcow2", "-o", "cluster_size=100", "--size", "1M"],
    "large clusters": ["-O", "qcow2", "-o", "cluster_size=4M", "--size", "1M"],
    "no clusters": ["-O", "qcow2", "-o", "cluster_size=0", "--size", "1M"],
    "small subclusters": ["-O", "qcow2", "-o", "cluster_size=8k,extended_l2=on", "--size", "1M"],
    "refcount width": ["-O", "qcow2", "-o", "refcount_bits=3", "--size", "1M"],
    "wide refcounts": ["-O", "qcow2", "-o", "refcount_bits=128", "--size", "1M"],
    "old refcounts": ["-O", "qcow2", "-o", "refcount_bits=8,compat=0.10", "--size", "1M"],
    "version": ["-O", "qcow2", "-o", "compat=v3", "--size", "1M"],
    "preallocation": ["-O", "qcow2", "-o", "preallocation=some", "--size", "1M"],
    "too large for the clusters": ["-O", "qcow2", "-o", "cluster_size=512", "--size", "1T"],
    "size beside an image": ["-O", "qcow2", "-o", "cluster_size=512,size=1T", "disk"],
    "snapshot of a raw image": ["-l", "1", "-f", "raw", "disk"],
}


@pytest.mark.parametrize("words", COMPLAINTS.values(), ids=COMPLAINTS)
def test_what_is_wrong_is_said_in_the_same_words(words: list[str], tmp_path: Path, run_ours: Run) -> None:
    (tmp_path / "disk").write_bytes(bytes(5000))
    assert assert_same(tmp_path, run_ours, *words).status == 1


def test_a_measured_copy_has_the_size_that_was_said(tmp_path: Path, run_ours: Run) -> None:
    """The fully allocated size is that of a preallocated image, less what QEMU lays out more tightly."""
    for options in ("cluster_size=4k", "", "cluster_size=2M,refcount_bits=1", "extended_l2=on"):
        wanted = f"{options},preallocation=metadata".strip(",")
        qemu(tmp_path, "qemu-img", "create", "-f", "qcow2", "-o", wanted, IMAGE, "100M")
        measured = run_ours(tmp_path, "measure", "--output=json", "-O", "qcow2", "-o", wanted, "--size", "100M").json()
        real = (tmp_path / IMAGE).stat().st_size
        assert 0 <= measured["fully-allocated"] - real <= 2 * MIB
