"""`qcow2c measure`: its output in both forms, its options, and one line for whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qcow2c.cli import main
from tests.building import Builder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command beside `disk.qcow2` and `disk.raw`: status, output, errors."""
    builder = Builder(16 * 4096)
    builder.data(0, b"data")
    builder.snapshot(b"before", id_str=b"7")
    builder.data(1, b"more")
    (tmp_path / "disk.qcow2").write_bytes(builder.build())
    (tmp_path / "disk.raw").write_bytes(b"raw" * 1000)
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(["measure", *words])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def test_a_size_as_text_and_json(run: Run) -> None:
    assert run("--size", "1.5G", "-O", "qcow2") == (
        0,
        "required size: 458752\nfully allocated size: 1611071488\n",
        "",
    )
    status, out, _ = run("--size", "1.5G", "-O", "qcow2", "--output=json")
    assert (status, out) == (0, '{\n    "required": 458752,\n    "fully-allocated": 1611071488\n}\n')
    assert run("--size", "1000")[1] == "required size: 1024\nfully allocated size: 1024\n"


def test_numbers_in_json_have_a_sign_as_those_of_qemu(run: Run) -> None:
    assert json.loads(run("--size", "9223372036854775807", "--output=json")[1])["required"] == -(1 << 63)


def test_an_image_as_text_and_json(run: Run) -> None:
    words = ["-O", "qcow2", "-o", "cluster_size=4k", "disk.qcow2"]
    assert run(*words) == (0, "required size: 28672\nfully allocated size: 86016\nbitmaps size: 0\n", "")
    assert json.loads(run("--output=json", *words)[1]) == {
        "bitmaps": 0,
        "required": 28672,
        "fully-allocated": 86016,
    }
    assert run("disk.raw")[1] == "required size: 3072\nfully allocated size: 3072\n"
    assert run("-f", "raw", "-U", "--gate", "deny", "disk.qcow2")[0] == 0


@pytest.mark.parametrize("choice", ["7", "before", "snapshot.id=7", "snapshot.id=7,snapshot.name=before"])
def test_a_snapshot(choice: str, run: Run) -> None:
    out = run("-l", choice, "-O", "qcow2", "-o", "cluster_size=4k", "disk.qcow2")[1]
    assert out.startswith("required size: 24576\n")


def test_help_lists_the_options(run: Run) -> None:
    for image_format in ("qcow2", "raw"):
        status, out, _ = run("-O", image_format, "-o", "help")
        assert status == 0
        assert out.startswith(f"Supported {image_format} options:\n")
        assert "\n  extent_size_hint=<size> - Extent size hint for the image file, 0 to disable\n" in out
    assert "examples:" in run("--help")[1]


def test_a_size_among_the_options_beside_an_image_must_only_be_possible(run: Run) -> None:
    options = "size=1T,cluster_size=4k,extent_size_hint=1M"
    assert run("-O", "qcow2", "-o", options, "disk.qcow2")[1].startswith("required size: 28672\n")
    status, out, err = run("-O", "qcow2", "-o", f"{options},cluster_size=512", "disk.qcow2")
    assert (status, out) == (1, "")
    assert err == "qcow2c: The image size is too large (try using a larger cluster size)\n"


WRONG = {
    "nothing": ([], "Either --size N or one filename must be specified."),
    "two images": (["a", "b"], "At most one filename argument is allowed."),
    "both": (["--size", "1", "disk.raw"], "--size N cannot be used together with a filename."),
    "format alone": (["-f", "raw", "--size", "1"], "--image-opts, -f, and -l require a filename argument."),
    "snapshot alone": (["-l", "1", "--size", "1"], "--image-opts, -f, and -l require a filename argument."),
    "no size": (
        ["--size", "big"],
        "Invalid image size specified. You may use k, M, G, T, P or E suffixes for\n"
        "qcow2c: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.",
    ),
    "large size": (["--size", "8E"], "Invalid image size specified. Must be between 0 and 9223372036854775807."),
    "no option": (
        ["--size", "1", "-o", "colour=red"],
        "Invalid parameter 'colour'\nqcow2c: Invalid options for file format 'raw'",
    ),
    "no format": (["--size", "1", "-O", "foo", "-o", "help"], "Unknown file format 'foo'"),
    "no snapshot": (["-l", "8", "disk.qcow2"], "Failed to load snapshot: Can't find snapshot"),
    "no such key": (
        ["-l", "snapshot.colour=red", "disk.qcow2"],
        "Invalid parameter 'snapshot.colour'\nqcow2c: Failed in parsing snapshot param 'snapshot.colour=red'",
    ),
    "no image": (["gone"], "gone: Could not open 'gone': No such file or directory"),
}


@pytest.mark.parametrize(("words", "complaint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(words: list[str], complaint: str, run: Run) -> None:
    assert run(*words) == (1, "", f"qcow2c: {complaint}\n")
