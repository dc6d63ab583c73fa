"""What create makes is what qemu-img create makes of the same options, field by field; and each can use the other's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from qcow2c.errors import Qcow2Error
from qcow2c.format.header import Header
from qcow2c.storage.sources import LocalFile
from qcow2c.structs import ExtensionType

pytestmark = pytest.mark.usefixtures("requires_qemu")

OPTIONS = (
    "",
    "compat=0.10",
    "compat=v2,cluster_size=512",
    "compat=v3,lazy_refcounts=on",
    "cluster_size=512",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=2,cluster_size=4k",
    "refcount_bits=4",
    "refcount_bits=8",
    "refcount_bits=32",
    "refcount_bits=64,cluster_size=1k",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,lazy_refcounts=on",
    "compression_type=zstd",
    "nocow=on",
    "extent_size_hint=2M,nocow=on",
    "data_file=data.raw",
    "data_file=data.raw,data_file_raw=on,extended_l2=on",
)
SIZES = ("0", "512", "1000", "3M", "70G")
PREALLOCATIONS = ("metadata", "falloc", "full")
MOVED = {"refcount_table_offset", "refcount_table_clusters", "l1_table_offset"}
"""Places, which QEMU chooses in an order of its own where an image is more than empty."""


def qemu(folder: Path, *words: str) -> str:
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout


def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Path, Path]:
    """Run the command of both programs in two folders; return the folders."""
    folders = tmp_path / "theirs", tmp_path / "ours"
    for folder in folders:
        folder.mkdir()
        (folder / "base.raw").write_bytes(b"base" * 20_000)
    qemu(folders[0], "qemu-img", "create", "-q", *words)
    monkeypatch.chdir(folders[1])
    assert main(["create", "-q", *words]) == 0
    return folders


def header(folder: Path) -> Header:
    store = LocalFile(folder / "image.qcow2")
    try:
        return Header.load(store)
    finally:
        store.close()


def facts(found: Header, *, moved: set[str]) -> dict[str, object]:
    plain = {name: value for name, value in vars(found).items() if name in Header.__dataclass_fields__}
    kept = [(part.type, part.data) for part in plain.pop("extensions")]
    left_out = moved | {"file_size", "_geometry"}
    return {name: value for name, value in plain.items() if name not in left_out} | {"extensions": kept}


def compare(folders: tuple[Path, Path], *, empty: bool) -> None:
    theirs, ours = (header(folder) for folder in folders)
    grown = MOVED if not empty or ours.l1_table_offset != theirs.l1_table_offset else set()
    assert facts(ours, moved=grown) == facts(theirs, moved=grown)
    shown, occupied = [], []
    for folder in folders:
        assert qemu(folder, "qemu-img", "check", "image.qcow2").startswith("No errors")
        assert qcow2c.check(folder / "image.qcow2").exit_code == 0
        info = json.loads(qemu(folder, "qemu-img", "info", "--output=json", "image.qcow2"))
        occupied.append(info.pop("actual-size"))
        shown.append(info)
    assert shown[0] == shown[1]
    if ours.l1_size and empty:  # A file system counts its own blocks, too, which depend on where it found room.
        assert abs(occupied[0] - occupied[1]) <= 16384
    if not empty and theirs.cluster_size < 4096:
        return  # Metadata lies between the data, and shares blocks of the file system with it.
    left, right = (json.loads(qemu(folder, "qemu-img", "map", "--output=json", "image.qcow2")) for folder in folders)
    assert without_places(left) == without_places(right)


def without_places(extents: list[dict[str, object]]) -> list[tuple[object, ...]]:
    """Join extents that differ in nothing but where they are."""
    joined: list[list[object]] = []
    for extent in extents:
        kind = [extent[key] for key in ("depth", "present", "zero", "data")]
        if joined and joined[-1][2] == kind:
            joined[-1][1] = int(str(extent["start"])) + int(str(extent["length"]))
        else:
            joined.append([extent["start"], int(str(extent["start"])) + int(str(extent["length"])), kind])
    return [tuple(row) for row in joined]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", OPTIONS)
def test_an_empty_image_is_the_same(options: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == "70G" and ("cluster_size=512" in options or "cluster_size=1k" in options):
        size = "1G"
    with_options = ["-o", options] if options else []
    compare(both(tmp_path, monkeypatch, "-f", "qcow2", *with_options, "image.qcow2", size), empty=True)


@pytest.mark.parametrize("mode", PREALLOCATIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_preallocated_image_is_the_same(
    options: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["-f", "qcow2", "-o", f"{options},preallocation={mode}".lstrip(","), "image.qcow2", "5000k"]
    folders = both(tmp_path, monkeypatch, *words)
    compare(folders, empty=False)
    ours = folders[1]
    qemu(
        ours,
        "qemu-io",
        "-c",
        "write -P 7 100k 300k",
        "-c",
        "read -P 7 100k 300k",
        "-c",
        "read -P 0 0 100k",
        "image.qcow2",
    )
    assert qemu(ours, "qemu-img", "check", "image.qcow2").startswith("No errors")


@pytest.mark.parametrize("options", ["", "compat=0.10", "cluster_size=512", "extended_l2=on,preallocation=metadata"])
def test_an_image_over_a_backing_file_is_the_same(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_options = ["-o", options] if options else []
    words = ["-f", "qcow2", *with_options, "-b", "base.raw", "-F", "raw", "image.qcow2"]
    folders = both(tmp_path, monkeypatch, *words)
    compare(folders, empty="preallocation" not in options)
    qemu(folders[1], "qemu-io", "-c", "write -P 1 1k 1k", "image.qcow2")
    with qcow2c.open(folders[1] / "image.qcow2") as image:
        assert image.pread(3072, 0) == b"base" * 256 + b"\1" * 1024 + b"base" * 256


@pytest.mark.parametrize("options", OPTIONS)
def test_qemu_writes_to_our_image_and_we_to_qemus(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_options = ["-o", options] if options else []
    theirs, ours = both(tmp_path, monkeypatch, "-f", "qcow2", *with_options, "image.qcow2", "9M")
    qemu(ours, "qemu-io", "-c", "write -P 5 1M 3M", "-c", "discard 2M 1M", "image.qcow2")
    for folder in (ours, theirs):
        with qcow2c.open(folder / "image.qcow2", "r+") as image:
            image.pwrite(b"\6" * 700_000, 1_500_160)
            image.write_zeroes(1_600_000, 100_096)
        assert qemu(folder, "qemu-img", "check", "image.qcow2").startswith("No errors")
        reads = ["read -P 6 1500160 99840", "read -P 0 1600000 100096", "read -P 6 1700096 500064", "read -P 0 5M 4M"]
        qemu(folder, "qemu-io", *[word for read in reads for word in ("-c", read)], "image.qcow2")


def test_a_feature_name_table_names_every_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = (header(folder) for folder in both(tmp_path, monkeypatch, "-f", "qcow2", "image.qcow2", "1M"))
    assert ours.extension(ExtensionType.FEATURE_NAME_TABLE) == theirs.extension(ExtensionType.FEATURE_NAME_TABLE)


@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_a_raw_image_is_the_same(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = both(tmp_path, monkeypatch, "-f", "raw", "-o", f"preallocation={mode}", "image.raw", "1000000")
    left, right = ((folder / "image.raw").stat() for folder in folders)
    assert left.st_size == right.st_size == 1000448
    assert abs(left.st_blocks - right.st_blocks) <= 8


@pytest.mark.parametrize("cut", range(0, 400_000, 40_000))
def test_a_half_made_image_does_not_look_complete(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    original = LocalFile.pwrite

    def failing(file: LocalFile, data: bytes, offset: int) -> None:
        nonlocal written
        written += len(data)
        if written > cut:
            raise KeyboardInterrupt
        original(file, data, offset)

    path = tmp_path / "image.qcow2"
    path.write_bytes(b"QFI\xfb was here before".ljust(4096))
    monkeypatch.setattr(LocalFile, "pwrite", failing)
    with pytest.raises(KeyboardInterrupt):
        qcow2c.create(path, 1 << 20, preallocation="full")
    monkeypatch.undo()
    assert path.read_bytes()[:4] != b"QFI\xfb"
    with pytest.raises(Qcow2Error):
        qcow2c.open(path)
