"""`report` on the command line: a file that is there when it is complete, and never in the place of the image."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qcow2c.cli import main

Capture = pytest.CaptureFixture[str]


def test_a_report_is_written_and_replaces_the_last(examples: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for _ in range(2):
        assert main(["report", "--html", str(page), str(examples / "demo.qcow2")]) == 0
        assert page.read_text(encoding="utf-8").endswith("</html>\n")
    assert [*tmp_path.iterdir()] == [page]


def test_what_fails_leaves_nothing(examples: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "text").write_text("no image")
    assert main(["report", "--html", str(tmp_path / "page.html"), str(tmp_path / "text")]) == 1
    assert main(["report", "--html", str(tmp_path / "none/page.html"), str(examples / "demo.qcow2")]) == 1
    image = tmp_path / "demo.qcow2"
    shutil.copyfile(examples / "demo.qcow2", image)
    assert main(["report", "--html", str(image), str(image)]) == 1
    assert image.read_bytes() == (examples / "demo.qcow2").read_bytes()
    assert capfd.readouterr().err.count("\n") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.qcow2", "text"]
