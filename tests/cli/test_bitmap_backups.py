"""`qcow2c bitmap --overlay` and `--stream`: what a bitmap has recorded is what the last backup lacks."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from qcow2c.ops import bitmaps

Run = Callable[..., tuple[int, str, str]]
MIB = 1 << 20
SIZE = 5 * MIB + 512
FULL = "backing_file=full.qcow2,backing_fmt=qcow2"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command in an empty folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["bitmap", *words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def disk(path: str) -> bytes:
    with qcow2c.open(path) as image:
        return image.pread(image.size(), 0)


def make(granularity: int, seed: int, **options: object) -> None:
    """Make a disk with contents, a full backup of it, a bitmap, and changes of all sorts after it."""
    chooser = random.Random(seed)
    qcow2c.create("disk.qcow2", SIZE, cluster_size=4096, **options)
    with qcow2c.open("disk.qcow2", "r+", gate="any") as image:
        for _ in range(20):
            image.pwrite(chooser.randbytes(50_000), chooser.randrange(SIZE - 50_000))
    qcow2c.convert("disk.qcow2", "full.qcow2", output_format="qcow2", gate="any")
    bitmaps.add("disk.qcow2", "b", granularity=granularity, gate="any")
    with qcow2c.open("disk.qcow2", "r+", gate="any") as image:
        for _ in range(10):
            image.pwrite(chooser.randbytes(chooser.randrange(1, 9000)), chooser.randrange(SIZE - 9000))
            image.write_zeroes(chooser.randrange(SIZE - 70_000), 70_000, unmap=chooser.random() < 0.5)
            image.discard(chooser.randrange(SIZE - 70_000), 70_000)
        image.pwrite(b"end" * 100, SIZE - 300)
        if "data_file" not in options:
            image.write_compressed(b"packed!!" * 512, 40 * 4096)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("granularity", "options"), [(512, []), (65536, ["-c"]), (4096, ["-o", "cluster_size=1M"])])
def test_full_backup_and_overlay_show_the_disk(run: Run, granularity: int, options: list[str], seed: int) -> None:
    make(granularity, seed)
    before = Path("disk.qcow2").read_bytes()
    assert run("--overlay", "inc.qcow2", "-o", FULL, *options, "disk.qcow2", "b") == (0, "", "")
    assert disk("inc.qcow2") == disk("disk.qcow2") != disk("full.qcow2")
    assert qcow2c.check("inc.qcow2").exit_code == 0
    assert Path("disk.qcow2").read_bytes() == before


def test_a_data_file_and_a_backing_file_below_the_disk(run: Run) -> None:
    Path("base.raw").write_bytes(random.Random(9).randbytes(SIZE))
    make(4096, 4, backing_file="base.raw", backing_fmt="raw")
    with qcow2c.open("disk.qcow2", "r+") as image:
        image.write_zeroes(MIB, MIB)
    assert run("--overlay", "inc.qcow2", "-o", FULL, "disk.qcow2", "b")[0] == 0
    assert disk("inc.qcow2") == disk("disk.qcow2")
    Path("disk.qcow2").unlink()
    make(4096, 5, data_file="data.raw")
    assert run("--overlay", "inc.qcow2", "-o", FULL, "disk.qcow2", "b")[0] == 0
    assert disk("inc.qcow2") == disk("disk.qcow2")


def test_what_is_not_dirty_is_not_in_the_overlay(run: Run) -> None:
    make(4096, 6)
    bitmaps.clear("disk.qcow2", "b")
    with qcow2c.open("disk.qcow2", "r+") as image:
        image.pwrite(b"x" * 4096, 2 * MIB)
        image.write_zeroes(3 * MIB, 64 << 10)
    assert run("--overlay", "inc.qcow2", "-p", "-o", f"{FULL},cluster_size=4k", "disk.qcow2", "b")[0] == 0
    with qcow2c.open("inc.qcow2", backing=False) as image:
        found = [(run.kind.name, run.guest_offset, run.length) for run in image.layer.runs(0, SIZE)]
    assert [one for one in found if one[0] != "UNALLOCATED"] == [
        ("DATA", 2 * MIB, 4096),
        ("ZERO", 3 * MIB, 64 << 10),
    ]


def test_the_stream_patches_the_full_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(512, 7)
    capfdbinary.readouterr()
    assert main(["bitmap", "--stream", "disk.qcow2", "b"]) == 0
    Path("stream").write_bytes(capfdbinary.readouterr().out)
    assert main(["patch", "-q", "full.qcow2", "stream"]) == 0
    assert disk("full.qcow2") == disk("disk.qcow2")


WRONG = {
    "two at once": (["--show", "--stream", "disk.qcow2", "b"], "go alone, and without any change"),
    "with a change": (["--stream", "--clear", "disk.qcow2", "b"], "go alone, and without any change"),
    "options of none": (["--clear", "-o", FULL, "disk.qcow2", "b"], "-o, -c and -p go with --overlay"),
    "no bitmap": (["--overlay", "x", "-o", FULL, "disk.qcow2", "c"], "Dirty bitmap 'c' not found"),
    "a raw file": (["--stream", "disk.raw", "c"], "Dirty bitmap 'c' not found"),
    "no backing file": (["--overlay", "x", "disk.qcow2", "b"], "an overlay has a backing file"),
    "a size": (["--overlay", "x", "-o", f"{FULL},size=1M", "disk.qcow2", "b"], "Invalid parameter 'size'"),
    "itself": (["--overlay", "disk.qcow2", "-o", FULL, "disk.qcow2", "b"], "disk.qcow2"),
}


@pytest.mark.parametrize(("words", "complaint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_and_nothing_changes(run: Run, words: list[str], complaint: str, tmp_path: Path) -> None:
    make(4096, 8)
    Path("disk.raw").write_bytes(bytes(MIB))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert complaint in err and "Traceback" not in err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_help_lists_the_options_of_the_overlay(run: Run) -> None:
    status, out, _ = run("-o", "help")
    assert status == 0 and out.startswith("Supported qcow2 options:\n")


def test_an_inconsistent_bitmap_is_no_backup(run: Run) -> None:
    make(4096, 9)
    with qcow2c.open("disk.qcow2") as image:
        at = image.bitmaps.find("b").record.span.offset + 15
    data = bytearray(Path("disk.qcow2").read_bytes())
    data[at] |= 1
    Path("disk.qcow2").write_bytes(data)
    status, _, err = run("--overlay", "inc.qcow2", "-o", FULL, "disk.qcow2", "b")
    assert status == 1 and "Bitmap 'b' is inconsistent and cannot be used" in err
    assert not Path("inc.qcow2").exists()
