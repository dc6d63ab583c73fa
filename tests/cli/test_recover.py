"""The command `recover`: its words, its exit status, its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "damaged.qcow2"
    qcow2c.create(path, 1 << 20, cluster_size=4096)
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"content!" * 4096, 8192)
    data = bytearray(path.read_bytes())
    data[:512] = bytes(512)
    path.write_bytes(data)
    return path


def test_a_disk_is_written_and_told_about(damaged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["recover", str(damaged), str(tmp_path / "new.qcow2")]) == 0
    words = capfd.readouterr().out
    assert "image at 0x0: no header, version 3, cluster size 4096" in words
    assert "40960 named" in words
    assert words.rstrip().endswith("unchanged")
    with qcow2c.open(tmp_path / "new.qcow2") as image:
        assert image.pread(8, 8192) == b"content!"


def test_a_dry_run_writes_the_report_alone(damaged: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(damaged.parent.iterdir())
    assert main(["recover", "--dry-run", "--report", "-", str(damaged)]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["report"] == "qcow2c recover"
    assert report["disks"][0]["bytes"]["lost"] == 0
    assert sorted(damaged.parent.iterdir()) == before


def test_what_is_lost_is_listed_and_gives_its_exit_status(
    damaged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) - 4096 * 3])
    assert main(["recover", str(damaged), str(tmp_path / "new.raw"), "-O", "raw"]) == 2
    assert "lost: " in capfd.readouterr().out


@pytest.mark.parametrize(
    "words", [["recover", "a"], ["recover", "-n", "a", "b"], ["recover", "-n", "--offset", "x", "a"]]
)
def test_words_that_do_not_go_together_are_refused(words: list[str]) -> None:
    assert main(words) == 1
