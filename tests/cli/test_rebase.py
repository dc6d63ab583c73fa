"""`qcow2c rebase`: its options, its output, its complaints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main

Run = Callable[..., tuple[int, str, str]]

_OBJECT = "--object s: only secrets are known here, other objects only to QEMU"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command in a folder with an overlay: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.raw").write_bytes(b"old" * 30_000)
    (tmp_path / "new.raw").write_bytes(b"new" * 40_000)
    qcow2c.create("over.qcow2", 100_352, backing_file="old.raw", backing_fmt="raw")

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(["rebase", *words])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def disk(backing_file: bytes | None) -> bytes:
    with qcow2c.open("over.qcow2") as image:
        assert image.header.backing_file == backing_file
        return image.pread(100_352, 0)


OLD = (b"old" * 30_000).ljust(100_352, b"\0")


def test_the_backing_file_is_replaced_and_the_disk_stays(run: Run) -> None:
    assert run("-b", "new.raw", "-F", "raw", "over.qcow2") == (0, "", "")
    assert disk(b"new.raw") == OLD
    assert run("-f", "qcow2", "-q", "-p", "-t", "none", "-T", "unsafe", "-U", "-b", "", "over.qcow2") == (0, "", "")
    assert disk(None) == OLD


def test_the_new_backing_file_is_seen_from_the_image(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert run("-b", "./new.raw", "-F", "raw", "../over.qcow2") == (0, "", "")
    monkeypatch.chdir(tmp_path)
    assert disk(b"./new.raw") == OLD


def test_progress_is_shown(run: Run) -> None:
    status, out, err = run("-p", "-b", "new.raw", "-F", "raw", "over.qcow2")
    assert (status, err) == (0, "")
    assert out.startswith("    (0.00/100%)\r") and out.endswith("    (100.00/100%)\r\n")


def test_only_the_names_change_without_looking(run: Run) -> None:
    assert run("-u", "-b", "new.raw", "-F", "raw", "over.qcow2") == (0, "", "")
    assert disk(b"new.raw") == (b"new" * 40_000)[:100_352]
    assert run("-u", "over.qcow2") == (0, "", "")
    assert disk(None) == bytes(100_352)


def test_the_image_can_be_given_by_options(run: Run) -> None:
    assert run("--image-opts", "-b", "new.raw", "-F", "raw", "driver=qcow2,file.filename=over.qcow2") == (0, "", "")
    assert disk(b"new.raw") == OLD
    opts = "driver=qcow2,file.filename=over.qcow2,backing.driver={},backing.file.filename=new.raw"
    status, _, err = run("--image-opts", "-b", "", opts.format("qcow2"))
    assert (status, err) == (
        1, "qcow2c: driver=qcow2,file.filename=over.qcow2,backing.driver=qcow2,backing.file.filename=new.raw: "
        "Could not open backing file: the image says that it has another format\n",
    )  # fmt: skip
    assert run("--image-opts", "-b", "", opts.format("raw")) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-b", "x"], "Expecting one image file name\nTry 'qcow2c rebase --help' for more information"),
        (["-b", "x", "a", "b"], "Expecting one image file name\nTry 'qcow2c rebase --help' for more information"),
        (
            ["over.qcow2"],
            "Must specify backing file (-b) or use unsafe mode (-u)\nTry 'qcow2c rebase --help' for more information",
        ),
        (["-b", "x", "-t", "foo", "over.qcow2"], "Invalid cache option: foo"),
        (["-b", "x", "-T", "foo", "over.qcow2"], "Invalid source cache option: foo"),
        (["-b", "x", "--object", "s", "over.qcow2"], _OBJECT),
        (["-b", "", "gone.qcow2"], "gone.qcow2: Could not open 'gone.qcow2': No such file or directory"),
        (
            ["-b", "", "--image-opts", "driver=qcow2,file.filename=over.qcow2,force-share=on"],
            "Could not open 'driver=qcow2,file.filename=over.qcow2,force-share=on': "
            "force-share=on can only be used with read-only images",
        ),
        (
            ["-b", "gone.raw", "-F", "raw", "over.qcow2"],
            "Could not open new backing file 'gone.raw': Could not open 'gone.raw': No such file or directory",
        ),
        (
            ["-b", "new.raw", "over.qcow2"],
            "Could not change the backing file to 'new.raw': backing format must be specified",
        ),
    ],
)  # fmt: skip
def test_complaints(run: Run, words: list[str], complaint: str) -> None:
    assert run(*words) == (1, "", f"qcow2c: {complaint}\n")
    assert disk(b"old.raw") == OLD


def test_the_line_of_the_progress_ends_before_a_complaint(run: Run) -> None:
    status, out, err = run("-p", "-b", "new.raw", "-F", "foo", "over.qcow2")
    assert (status, out, err) == (1, "    (0.00/100%)\r\n", "qcow2c: Invalid format name: 'foo'\n")
