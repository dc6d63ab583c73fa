"""`qcow2c resize`: sizes as qemu-img takes them, what it says, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main

Run = Callable[..., tuple[int, str, str]]
KIB, MIB = 1024, 1 << 20

SHRINKING = """\
qcow2c: Use the --shrink option to perform a shrink operation.
qcow2c: warning: Shrinking an image will delete all data beyond the shrunken image's end. \
Before performing such an operation, make sure there is no important data there.
"""
HINT = "Try 'qcow2c resize --help' for more information\n"
NO_SIZE = "qcow2c: Parameter 'size' expects a non-negative number below 2^64 (optional suffix"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command in a folder of images: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    qcow2c.create("disk.qcow2", 10 * MIB)
    Path("disk.raw").write_bytes(b"x" * 1000)

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["resize", *words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def size(path: str = "disk.qcow2") -> int:
    assert qcow2c.check(path).exit_code == 0
    with qcow2c.open(path) as image:
        return image.size()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("disk.qcow2", "20M"), 20 * MIB),
        (("disk.qcow2", "+1.5M"), 11 * MIB + MIB // 2),
        (("--shrink", "disk.qcow2", "-1M"), 9 * MIB),
        (("disk.qcow2", "--shrink", "--", "-1M"), 9 * MIB),
        (("--shrink", "disk.qcow2", "512"), 512),
        (("disk.qcow2", "+0"), 10 * MIB),
        (("--preallocation=falloc", "disk.qcow2", "+64k"), 10 * MIB + 64 * KIB),
        (("--preallocation", "metadata", "-f", "qcow2", "disk.qcow2", "0x1000000"), 16 * MIB),
        (("--image-opts", "driver=qcow2,file.filename=disk.qcow2", "11M"), 11 * MIB),
        ((json.dumps({"driver": "qcow2", "file.filename": "disk.qcow2"}).join(("json:", "")), "++1M"), 11 * MIB),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_disk_has_the_size(run: Run, words: tuple[str, ...], expected: int) -> None:
    assert run(*words) == (0, "Image resized.\n", "")
    assert size() == expected


def test_quiet_prints_nothing(run: Run) -> None:
    assert run("-q", "disk.qcow2", "+1M") == (0, "", "")
    assert size() == 11 * MIB


@pytest.mark.parametrize(
    ("words", "errors"),
    [
        (("disk.qcow2", "1M"), SHRINKING),
        (("disk.qcow2", "-1M"), SHRINKING),
        (("--shrink", "disk.qcow2", "-10M"), "qcow2c: New image size must be positive\n"),
        (("disk.qcow2", "0"), "qcow2c: New image size must be positive\n"),
        (("disk.qcow2", "+7E"), "qcow2c: disk.qcow2: Failed to grow the L1 table: File too large (12025908"),
        (("disk.qcow2", "+1000"), "qcow2c: The new size must be a multiple of 512\n"),
        (
            ("--preallocation=full", "--shrink", "disk.qcow2", "1M"),
            "qcow2c: Preallocation can only be used for growing images\n",
        ),
        (("--preallocation=most", "disk.qcow2", "1M"), "qcow2c: Invalid preallocation mode 'most'\n"),
        (("disk.qcow2", "large"), NO_SIZE),
        (("disk.qcow2", "+-5"), NO_SIZE),
        (("disk.qcow2", "1,5M"), NO_SIZE),
        (("disk.qcow2", ""), NO_SIZE),
        (("disk.qcow2", "--shrink"), NO_SIZE),
        (("disk.qcow2",), f"qcow2c: Not enough arguments\n{HINT}"),
        ((), f"qcow2c: Not enough arguments\n{HINT}"),
        (("a", "disk.qcow2", "1M"), f"qcow2c: Expecting image file name and size\n{HINT}"),
        (("--object", "secret,id=a", "disk.qcow2", "1M"), "qcow2c: Either 'file' or 'data' must be provided"),
        (
            ("-f", "vdi", "disk.qcow2", "20M"),
            "qcow2c: disk.qcow2: Could not open 'disk.qcow2': Unknown driver 'vdi': it can be qcow2 or raw",
        ),
        (("missing", "20M"), "qcow2c: missing: Could not open 'missing': No such file or directory\n"),
        (
            ("-f", "qcow2", "--image-opts", "driver=qcow2,file.filename=disk.qcow2", "20M"),
            "qcow2c: --image-opts and --format are mutually exclusive\n",
        ),
        (
            ('json:{"force-share": true, "driver": "qcow2", "file.filename": "disk.qcow2"}', "20M"),
            "force-share=on can only be used with read-only images\n",
        ),
        (
            ('json:{"driver": "qcow2", "file.filename": "disk.qcow2", "backing.driver": "raw"}', "20M"),
            "Could not open backing file: the image says that it has another format\n",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_told(run: Run, words: tuple[str, ...], errors: str) -> None:
    status, output, told = run(*words)
    assert (status, output) == (1, "")
    assert told.startswith(errors) or told.endswith(errors)
    assert size() == 10 * MIB


def test_the_help_is_there_although_the_last_word_is_a_size(run: Run) -> None:
    assert run("disk.qcow2", "--help")[0] == 0
    assert "usage: qcow2c resize" in run("-h")[1]


def test_a_raw_file_that_nobody_calls_raw_gets_a_warning(run: Run) -> None:
    status, output, errors = run("disk.raw", "2000")
    assert (status, output) == (0, "Image resized.\n")
    assert errors.splitlines()[0] == ("WARNING: Image format was not specified for 'disk.raw' and probing guessed raw.")
    assert len(errors.splitlines()) == 3
    assert run("-f", "raw", "disk.raw", "+48") == (0, "Image resized.\n", "")
    assert Path("disk.raw").read_bytes() == b"x" * 1000 + bytes(1096)
    assert run("-f", "raw", "disk.raw", "2000") == (1, "", SHRINKING)
    assert run("-f", "raw", "--shrink", "disk.raw", "10") == (0, "Image resized.\n", "")
    assert Path("disk.raw").read_bytes() == b"x" * 10


def test_a_backing_file_is_opened_only_through_the_gate(run: Run, tmp_path: Path) -> None:
    qcow2c.create("../base.qcow2", MIB)
    qcow2c.create("disk.qcow2", backing_file="../base.qcow2", backing_fmt="qcow2")
    status, _, errors = run("disk.qcow2", "2M")
    assert status == 1 and "../base.qcow2" in errors
    assert size_of(tmp_path / "disk.qcow2") == MIB
    assert run("--gate=any", "disk.qcow2", "2M")[0] == 0
    assert size_of(tmp_path / "disk.qcow2") == 2 * MIB


def size_of(path: Path) -> int:
    with qcow2c.open(path, backing=False) as image:
        return image.size()


def test_an_image_that_somebody_uses_is_left_alone(run: Run) -> None:
    with qcow2c.open("disk.qcow2", "r+"):
        status, _, errors = run("disk.qcow2", "20M")
    assert status == 1 and "lock" in errors
    assert size() == 10 * MIB
