"""`qcow2c dd`: which bytes are copied, into which format, and what it says where something is wrong."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from qcow2c.errors import UsageError
from qcow2c.ops.dd import Part, dd, part_of

Run = Callable[..., tuple[int, str, str]]

DISK = random.Random(5).randbytes(9 << 20) + bytes(3 << 20) + b"end".ljust(3000, b"\0")
WHOLE = -(-len(DISK) // 512) * 512


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command beside `disk.raw` and `disk.qcow2`: status, output, errors."""
    (tmp_path / "disk.raw").write_bytes(DISK)
    qcow2c.create(tmp_path / "disk.qcow2", WHOLE, cluster_size=4096)
    with qcow2c.open(tmp_path / "disk.qcow2", "r+") as image:
        image.pwrite(DISK[: 9 << 20], 0)
        image.pwrite(DISK[12 << 20 :], 12 << 20)
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["dd", *words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def expected(first: int, end: int) -> bytes:
    data = DISK[first:end].ljust(min(end, WHOLE) - first, b"\0")
    return data.ljust(-(-len(data) // 512) * 512, b"\0")


PARTS = {
    "all": ([], 0, WHOLE),
    "blocks": (["bs=1M", "count=7", "skip=2"], 2 << 20, 7 << 20),
    "odd bytes": (["bs=7", "skip=100001", "count=1200001"], 700007, 8400007),
    "into the hole": (["bs=1000", "skip=9437"], 9437000, WHOLE),
    "the end": (["bs=4k", "skip=3072", "count=1P"], 12 << 20, WHOLE),
    "nothing": (["count=0"], 0, 0),
    "the last value": (["bs=1", "bs=512", "count=9", "count=2"], 0, 1024),
}


@pytest.mark.parametrize("source", ["disk.raw", "disk.qcow2"])
@pytest.mark.parametrize(("words", "first", "end"), PARTS.values(), ids=PARTS)
def test_a_part_is_copied(words: list[str], first: int, end: int, source: str, run: Run, tmp_path: Path) -> None:
    assert run(f"if={source}", *words, "of=out.raw") == (0, "", "")
    assert (tmp_path / "out.raw").read_bytes() == expected(first, end)
    assert run(f"if={source}", "of=out.qcow2", *words, "-O", "qcow2") == (0, "", "")
    with qcow2c.open(tmp_path / "out.qcow2") as image:
        assert image.pread(image.size(), 0) == expected(first, end)
    assert qcow2c.check(tmp_path / "out.qcow2").exit_code == 0


def test_what_reads_as_zeros_takes_no_space(run: Run, tmp_path: Path) -> None:
    assert run("if=disk.raw", "of=out.raw", "bs=1M", "skip=9")[0] == 0
    assert (tmp_path / "out.raw").stat().st_blocks * 512 < 1 << 20
    assert run("if=disk.raw", "of=out.qcow2", "-O", "qcow2", "bs=1M", "skip=9")[0] == 0
    assert (tmp_path / "out.qcow2").stat().st_size < 1 << 20


def test_more_to_skip_than_there_is_makes_an_empty_copy_and_says_so(run: Run, tmp_path: Path) -> None:
    complaint = "qcow2c: disk.raw: cannot skip to specified offset\n"
    assert run("if=disk.raw", "of=out", "skip=30000") == (0, "", complaint)
    assert (tmp_path / "out").read_bytes() == b""
    assert run("if=disk.raw", "of=out", "skip=3", "count=2") == (0, "", complaint)
    assert run("if=disk.raw", "of=out", "skip=3", "count=3") == (0, "", "")


def test_options_of_how_the_source_is_opened(run: Run, tmp_path: Path) -> None:
    assert run("-f", "raw", "-U", "if=disk.qcow2", "of=out", "count=1") == (0, "", "")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "disk.qcow2").read_bytes()[:512]
    assert run("--image-opts", "if=driver=qcow2,file.filename=disk.qcow2", "of=file:out", "count=1")[0] == 0
    assert (tmp_path / "out").read_bytes() == DISK[:512]


BOUNDS = "Must be between {} and {}."
FORM = (
    "You may use k, M, G, T, P or E suffixes for\n"
    "qcow2c: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
)
WRONG = {
    "nothing": ([], "Must specify both input and output files"),
    "no target": (["if=disk.raw"], "Must specify both input and output files"),
    "no operand": (["if=disk.raw", "of"], "unrecognized operand of"),
    "unknown": (["conv=sparse"], "unrecognized operand conv"),
    "no block": (["bs=0"], "Invalid bs specified. " + BOUNDS.format(1, 2147483647)),
    "large block": (["bs=2G"], "Invalid bs specified. " + BOUNDS.format(1, 2147483647)),
    "large count": (["count=8E"], "Invalid count specified. " + BOUNDS.format(0, (1 << 63) - 1)),
    "no number": (["skip=some"], f"Invalid skip specified. {FORM}"),
    "no source": (["if=gone", "of=out"], "gone: Could not open 'gone': No such file or directory"),
    "no format": (["if=disk.raw", "of=out", "-O", "vmdk"], "Unknown file format"),
    "both": (
        ["if=disk.raw", "of=out", "-f", "raw", "--image-opts"],
        "--image-opts and --format are mutually exclusive",
    ),
    "object": (["--object", "secret,id=a"], "Either 'file' or 'data' must be provided"),
    "no folder": (
        ["if=disk.raw", "of=no/out", "-O", "qcow2"],
        "no/out: error while creating output image: Could not create 'no/out': No such file or directory",
    ),
}


@pytest.mark.parametrize(("words", "complaint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_and_nothing_is_made(words: list[str], complaint: str, run: Run, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert run(*words) == (1, "", f"qcow2c: {complaint}\n")
    assert sorted(tmp_path.iterdir()) == before


def test_an_image_is_not_copied_onto_itself(run: Run, tmp_path: Path) -> None:
    before = (tmp_path / "disk.qcow2").read_bytes()
    for image_format in ("raw", "qcow2"):
        status, _, err = run("if=disk.qcow2", "of=disk.qcow2", "-O", image_format)
        assert status == 1
        assert err.startswith('qcow2c: disk.qcow2: error while creating output image: Failed to get "write" lock')
    assert (tmp_path / "disk.qcow2").read_bytes() == before


@pytest.mark.usefixtures("run")
def test_the_function_copies_to_a_file_object() -> None:
    with open("copy", "w+b") as file:
        assert dd("disk.qcow2", file, block_size=1000, skip=1, count=3) == Part(1000, 2000, beyond=False)
        file.seek(0)
        assert file.read() == DISK[1000:3000].ljust(2048, b"\0")
    with pytest.raises(UsageError, match="Unknown file format"):
        dd("disk.raw", io.BytesIO(), output_format="qed")


def test_no_number_of_blocks_is_too_large() -> None:
    assert part_of(1000, block_size=1 << 30, count=1 << 62) == Part(0, 1000, beyond=False)
    assert part_of(1000, block_size=1 << 30, skip=1 << 62) == Part(1000, 0, beyond=True)
    assert part_of(1000, block_size=500, skip=2) == Part(1000, 0, beyond=False)
