"""`qcow2c amend`: its options, its output, its complaints."""

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
    """Return a function that runs a command in a folder with an image: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    qcow2c.create("disk.qcow2", 1 << 20)
    Path("disk.raw").write_bytes(bytes(512))

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(["amend", *words])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def facts() -> tuple[int, bool, int, int]:
    with qcow2c.open("disk.qcow2") as image:
        header = image.header
        return header.version, header.lazy_refcounts, 1 << header.refcount_order, header.size


def test_options_change(run: Run) -> None:
    words = ["-f", "qcow2", "-q", "-p", "-t", "none", "--force", "-o", "compat=v3,lazy_refcounts=on"]
    assert run(*words, "-o", "refcount_bits=64,size=2M", "disk.qcow2") == (0, "", "")
    assert facts() == (3, True, 64, 2 << 20)
    assert run("--image-opts", "-o", "compat=v2,refcount_bits=16", "driver=qcow2,file.filename=disk.qcow2")[0] == 0
    assert facts() == (2, False, 16, 2 << 20)


def test_progress_is_shown(run: Run) -> None:
    assert run("-p", "-o", "compat=v2", "disk.qcow2") == (0, "    (0.00/100%)\r    (100.00/100%)\r\n", "")


@pytest.mark.parametrize("words", [["-f", "qcow2"], ["disk.qcow2"], ["-f", "qcow2", "nothing"]], ids=" ".join)
def test_help_lists_the_options(run: Run, words: list[str]) -> None:
    status, out, err = run("-o", "help", *words)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "Amend options for 'qcow2':"
    keys = "encrypt.iter-time encrypt.keyslot encrypt.new-secret encrypt.old-secret encrypt.state"
    names = f"backing_file backing_fmt compat data_file data_file_raw {keys} lazy_refcounts refcount_bits size"
    assert [line.split("=")[0].strip() for line in lines[1:]] == names.split()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "Must specify options (-o)\nTry 'qcow2c amend --help' for more information"),
        (["-o", "compat=v2"], "Expecting one image file name"),
        (["-o", "", "disk.qcow2"], "Invalid option list: "),
        (["-o", "compat=v2,", "disk.qcow2"], "Invalid option list: compat=v2,"),
        (["-o", ",compat=v2", "disk.qcow2"], "Invalid option list: ,compat=v2"),
        (["-o", "compat=v2,,", "disk.qcow2"], "Unknown compatibility level v2,"),
        (["-o", "compat", "disk.qcow2"], "Unknown compatibility level on"),
        (["-o", "compat=v2", "-t", "foo", "disk.qcow2"], "Invalid cache option: foo"),
        (
            ["-o", "compat=v2", "--object", "s", "disk.qcow2"],
            _OBJECT,
        ),
        (["-o", "compat=v2", "gone"], "gone: Could not open 'gone': No such file or directory"),
        (["-o", "compat=v2", "disk.raw"], "Format driver 'raw' does not support option amendment"),
        (["-f", "raw", "-o", "help"], "Format driver 'raw' does not support option amendment"),
        (["-f", "foo", "-o", "help"], "Unknown file format 'foo'"),
        (["-o", "foo=1", "disk.qcow2"], "Invalid parameter 'foo'"),
        (
            ["-o", "cluster_size=4k", "disk.qcow2"],
            "Invalid parameter 'cluster_size'\nThis option is only supported for image creation",
        ),
        (
            ["-o", "encrypt.state=active", "disk.qcow2"],
            "'new-secret' is required to activate a keyslot",
        ),
        (
            ["-o", "backing_file=x", "disk.qcow2"],
            "Cannot amend the backing file\nYou can use 'qcow2c rebase' instead.",
        ),
        (
            ["-o", "compat=v2", "--image-opts", "driver=qcow2,file.filename=disk.qcow2,force-share=on"],
            "Could not open 'driver=qcow2,file.filename=disk.qcow2,force-share=on': "
            "force-share=on can only be used with read-only images",
        ),
    ],
)
def test_complaints(run: Run, words: list[str], complaint: str) -> None:
    before = Path("disk.qcow2").read_bytes()
    assert run(*words) == (1, "", f"qcow2c: {complaint}\n")
    assert Path("disk.qcow2").read_bytes() == before
