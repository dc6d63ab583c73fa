"""`qcow2c compact`: where the result goes, what is told, and complaints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main

Run = Callable[..., tuple[int, str, str]]
MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command beside an image with much that is not needed: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.raw").write_bytes(b"b" * MIB)
    qcow2c.create("disk.qcow2", MIB, cluster_size=4096, backing_file="base.raw", backing_fmt="raw")
    with qcow2c.open("disk.qcow2", "r+") as image:
        image.pwrite(b"text" * 4096, 0)
        image.pwrite(bytes(65536), 65536)

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["compact", *words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def content(path: Path | str) -> bytes:
    with qcow2c.open(path) as image:
        return image.readall()


def test_a_new_file(run: Run, tmp_path: Path) -> None:
    before = (tmp_path / "disk.qcow2").read_bytes()
    status, out, err = run("disk.qcow2", "small.qcow2")
    assert (status, err) == (0, "")
    length = (tmp_path / "small.qcow2").stat().st_size
    saved = len(before) - length
    assert out == (
        f"disk.qcow2: {len(before)} bytes\n"
        f"compacted is {length} bytes: {saved // 1024} KiB ({saved} bytes) less\n"
        "clusters: 4 data, 16 zero, 0 newly compressed\n"
        "kept: 0 snapshots, 0 bitmaps\n"
    )
    assert content("small.qcow2") == content("disk.qcow2") and (tmp_path / "disk.qcow2").read_bytes() == before
    assert run("-q", "-c", "small.qcow2", "smaller.qcow2") == (0, "", "")
    assert content("smaller.qcow2") == content("disk.qcow2")


def test_in_place_and_what_it_would_do(run: Run, tmp_path: Path) -> None:
    before, shown = (tmp_path / "disk.qcow2").read_bytes(), content("disk.qcow2")
    status, out, _ = run("--dry-run", "-c", "--compression-level=9", "disk.qcow2")
    assert status == 0 and "compacted would be" in out and "4 newly compressed" in out
    assert (tmp_path / "disk.qcow2").read_bytes() == before
    status, out, _ = run("--dry-run", "--output=json", "-p", "disk.qcow2")
    told = json.loads(out)
    assert status == 0 and told["length"] == len(before) and told["saved"] == len(before) - told["compacted-length"]
    status, out, _ = run("--in-place", "-p", "disk.qcow2")
    assert status == 0 and "    (100.00/100%)\r" in out
    assert (tmp_path / "disk.qcow2").stat().st_size == told["compacted-length"]
    assert content("disk.qcow2") == shown
    assert json.loads(run("--dry-run", "--output=json", "disk.qcow2")[1])["saved"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.raw", "disk.qcow2"]


def test_an_image_may_be_small_already(run: Run) -> None:
    qcow2c.create("tight.qcow2", 0)
    with open("tight.qcow2", "r+b") as file:
        file.truncate(3 * 65536)
    assert "compacted would be 196608 bytes: 0 B (0 bytes) less\n" in run("--dry-run", "tight.qcow2")[1]


def test_a_copy_elsewhere_names_another_backing_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    status, _, err = run("disk.qcow2", "there/small.qcow2")
    assert status == 0
    assert err == (
        "qcow2c: warning: the copy names the backing file 'base.raw', as seen from the folder of 'there/small.qcow2'\n"
    )
    qcow2c.create("alone.qcow2", MIB)
    assert run("alone.qcow2", "there/alone.qcow2")[2] == ""
    assert run("disk.qcow2", "./again.qcow2")[2] == ""


@pytest.mark.parametrize("words", [["disk.qcow2"], ["--in-place", "disk.qcow2", "x"], ["--dry-run", "disk.qcow2", "x"]])
def test_one_place_must_be_given(run: Run, words: list[str], tmp_path: Path) -> None:
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert err == "qcow2c: disk.qcow2: give one of OUTPUT, --in-place and --dry-run: where the result goes\n"
    assert not (tmp_path / "x").exists()


def test_complaints(run: Run) -> None:
    assert run("disk.qcow2", "disk.qcow2") == (
        1, "", "qcow2c: disk.qcow2: 'disk.qcow2' exists already: a compact copy is a new file\n"
    )  # fmt: skip
    status, _, err = run("--dry-run", "base.raw")
    assert status == 1 and err.startswith("qcow2c: base.raw: not a qcow2 image")
    for words in (["gone.qcow2", "x"], ["--in-place", "gone.qcow2"]):
        message = "qcow2c: gone.qcow2: Could not open 'gone.qcow2': No such file or directory\n"
        assert run(*words) == (1, "", message)
