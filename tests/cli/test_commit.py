"""`qcow2c commit`: its options, its line, its progress, its complaints; what is wrong changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main

Run = Callable[..., tuple[int, str, str]]
KIB = 1024


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command in a folder with a chain of three: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    Path("base.raw").write_bytes(b"b" * 256 * KIB)
    for name, below, text in (("mid.qcow2", "base.raw", b"m"), ("top.qcow2", "mid.qcow2", b"t")):
        qcow2c.create(name, backing_file=below, backing_fmt="raw" if below == "base.raw" else "qcow2")
        with qcow2c.open(name, "r+") as image:
            image.pwrite(text * 1000, 0 if text == b"m" else 500)

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(["commit", *words])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def start_of(name: str) -> bytes:
    with qcow2c.open(name) as image:
        return bytes(image.pread(1600, 0))


SHOWN = b"m" * 500 + b"t" * 1000 + b"b" * 100


def test_the_image_goes_into_the_next_one(run: Run) -> None:
    assert run("top.qcow2") == (0, "Image committed.\n", "")
    assert start_of("mid.qcow2") == start_of("top.qcow2") == SHOWN
    with qcow2c.open("top.qcow2") as image:
        assert not any(image.layer.l1_table)
    assert Path("base.raw").read_bytes() == b"b" * 256 * KIB


def test_with_d_the_image_stays_as_it_is(run: Run) -> None:
    before = Path("top.qcow2").read_bytes()
    assert run("-d", "-f", "qcow2", "-t", "none", "top.qcow2") == (0, "Image committed.\n", "")
    assert Path("top.qcow2").read_bytes() == before
    assert start_of("mid.qcow2") == SHOWN


def test_with_b_both_layers_go_into_the_base(run: Run) -> None:
    files = Path("mid.qcow2").read_bytes(), Path("top.qcow2").read_bytes()
    assert run("-b", "base.raw", "-r", "1G", "top.qcow2") == (0, "Image committed.\n", "")
    assert (Path("mid.qcow2").read_bytes(), Path("top.qcow2").read_bytes()) == files
    assert Path("base.raw").read_bytes() == SHOWN + b"b" * (256 * KIB - 1600)


def test_progress_is_drawn_over_and_quiet_is_quiet(run: Run) -> None:
    status, out, _ = run("-p", "-d", "top.qcow2")
    assert status == 0 and out.startswith("    (0.00/100%)\r")
    assert out.endswith("    (100.00/100%)\r\nImage committed.\n")
    assert run("-p", "-q", "top.qcow2") == (0, "", "")


def test_the_line_of_the_progress_ends_before_an_error(run: Run) -> None:
    assert run("-p", "-b", "gone", "top.qcow2") == (
        1,
        "    (0.00/100%)\r\n",
        "qcow2c: Did not find 'gone' in the backing chain of 'top.qcow2'\n",
    )
    assert run("-p", "gone.qcow2")[1] == ""


def test_an_image_is_given_by_options(run: Run) -> None:
    words = "driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=mid.qcow2"
    assert run("--image-opts", "-d", words) == (0, "Image committed.\n", "")
    assert start_of("mid.qcow2") == SHOWN
    assert run('json:{"file": {"filename": "top.qcow2"}, "driver": "qcow2"}')[0] == 0
    with qcow2c.open("top.qcow2") as image:
        assert not any(image.layer.l1_table)


SIZES = (
    "You may use k, M, G, T, P or E suffixes for\n"
    "qcow2c: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.\n"
)
WRONG = {
    "no image": ([], "Expecting one image file name\nTry 'qcow2c commit --help' for more information\n"),
    "two images": (["a", "b"], "Expecting one image file name\nTry 'qcow2c commit --help' for more information\n"),
    "no rate": (["-r", "fast", "-t", "x"], f"Invalid rate limit specified. {SIZES}"),
    "negative rate": (["-r", "-5", "top.qcow2"], f"Invalid rate limit specified. {SIZES}"),
    "a high rate": (
        ["-r", "9E", "top.qcow2"],
        "Invalid rate limit specified. Must be between 0 and 9223372036854775807.\n",
    ),
    "no cache mode": (["-t", "sometimes", "gone"], "Invalid cache option: sometimes\n"),
    "no backing file": (["-d", "base.raw"], "Image does not have a backing file\n"),
    "raw": (["-f", "raw", "top.qcow2"], "Image does not have a backing file\n"),
    "no layer": (["-b", "", "top.qcow2"], "Did not find '' in the backing chain of 'top.qcow2'\n"),
    "itself": (["-b", "top.qcow2", "top.qcow2"], "Did not find 'top.qcow2' in the backing chain of 'top.qcow2'\n"),
    "both": (["--image-opts", "-f", "qcow2", "x"], "--image-opts and --format are mutually exclusive\n"),
    "an object": (["--object", "secret,id=s", "top.qcow2"], "Either 'file' or 'data' must be provided\n"),
    "shared": (
        ["--image-opts", "driver=qcow2,force-share=on,file.filename=top.qcow2"],
        "Could not open 'driver=qcow2,force-share=on,file.filename=top.qcow2': "
        "force-share=on can only be used with read-only images\n",
    ),
    "another format below": (
        ["--image-opts", "driver=qcow2,file.filename=top.qcow2,backing.driver=raw,backing.file.filename=mid.qcow2"],
        "driver=qcow2,file.filename=top.qcow2,backing.driver=raw,backing.file.filename=mid.qcow2: "
        "Could not open backing file: the image says that it has another format\n",
    ),
    "no file": (["gone"], "gone: Could not open 'gone': No such file or directory\n"),
    "unknown format": (
        ["-f", "vdi", "top.qcow2"],
        "top.qcow2: Could not open 'top.qcow2': Unknown driver 'vdi': it can be qcow2 or raw\n",
    ),
}


@pytest.mark.parametrize(("words", "complaint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_and_nothing_is_done(run: Run, words: list[str], complaint: str) -> None:
    names = ("base.raw", "mid.qcow2", "top.qcow2")
    before = [Path(name).read_bytes() for name in names]
    assert run(*words) == (1, "", f"qcow2c: {complaint}")
    assert [Path(name).read_bytes() for name in names] == before


def test_the_gate_is_an_option(run: Run, tmp_path: Path) -> None:
    Path("far").mkdir()
    qcow2c.create("far/top.qcow2", backing_file=str(tmp_path / "base.raw"), backing_fmt="raw")
    status, _, err = run("far/top.qcow2")
    assert status == 1 and f"--gate {tmp_path}" in err
    assert run("--gate", str(tmp_path), "far/top.qcow2")[0] == 0


def test_unsupported_kinds_are_named(run: Run) -> None:
    Path("disk.vmdk").write_bytes(b"KDMV" + bytes(1000))
    status, _, err = run("disk.vmdk")
    assert status == 1 and "format 'vmdk'" in err
