"""`hash` on the command line: the report, the manifest, the exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main

Capture = pytest.CaptureFixture[str]


def test_the_report_is_the_same_twice_but_for_its_times(examples: Path, capfd: Capture) -> None:
    words = ["hash", "--output=json", "--ranges", str(examples / "demo.qcow2")]
    reports = []
    for _ in range(2):
        assert main(words) == 0
        lines = capfd.readouterr().out.splitlines()
        reports.append([line for line in lines if '"started"' not in line and '"finished"' not in line])
    assert reports[0] == reports[1]
    assert '    "name": "qcow2c",' in reports[0]


def test_the_disk_and_its_snapshots_are_shown(examples: Path, capfd: Capture) -> None:
    assert main(["hash", "--algorithm", "blake2b-256", "--range-size", "64k", str(examples / "demo.qcow2")]) == 0
    out = capfd.readouterr().out
    assert "snapshot before-update (ID 1): 16777216 bytes" in out and out.count("content") == 3
    assert main(["hash", "--no-snapshots", "-p", str(examples / "demo.qcow2")]) == 0
    assert "before-update" not in capfd.readouterr().out


def test_a_manifest_is_verified(examples: Path, tmp_path: Path, capfd: Capture) -> None:
    for name in ("demo.qcow2", "base.qcow2"):
        shutil.copyfile(examples / name, tmp_path / name)
    image, manifest = tmp_path / "demo.qcow2", tmp_path / "m.json"
    assert main(["hash", "--output=json", "--ranges", str(image)]) == 0
    manifest.write_text(capfd.readouterr().out)
    assert main(["hash", "--verify", str(manifest), "--file", str(image)]) == 0
    assert capfd.readouterr().out == "All is as in the manifest.\n"
    with qcow2c.open(image, "r+") as opened:
        opened.pwrite(b"changed", 0)
    assert main(["hash", "--verify", str(manifest), str(image)]) == 2
    assert capfd.readouterr().out == "the disk has another content in 0x0..0xfffff\n"
    found = json.loads(manifest.read_text())
    found["disks"] += [{**found["disks"][0], "snapshot": {"id": str(n), "name": "\x1b"}} for n in range(2, 30)]
    manifest.write_text(json.dumps(found))
    assert main(["hash", "--verify", str(manifest), str(image)]) == 2
    out = capfd.readouterr().out
    assert "\x1b" not in out and out.endswith("... and 9 more\n")


def test_what_cannot_be_read_is_status_one(examples: Path, tmp_path: Path, capfd: Capture) -> None:
    assert main(["hash", str(tmp_path / "none")]) == 1
    assert main(["hash", "--verify", str(tmp_path / "none"), str(examples / "demo.qcow2")]) == 1
    assert main(["hash", "--range-size", "3M", str(examples / "demo.qcow2")]) == 1
    assert capfd.readouterr().err.count("\n") == 3
