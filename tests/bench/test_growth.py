"""How time and memory grow: the commands run on images that qemu-img makes, and the picture shows each of them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import growth, inputs
from bench.growth import COMMANDS, GIB, Point, draw, line, shown
from bench.timing import Spent


@pytest.mark.skipif(bool(inputs.missing_programs()), reason="qemu-img and qemu-io are not installed")
def test_each_command_runs_on_both_kinds_of_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.main(["--directory", str(tmp_path), "--sparse", "1G", "--full", "1G"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("sparse", "full metadata"))]
    assert [line.partition("GiB")[2].split()[0] for line in lines] == [*COMMANDS, *COMMANDS]
    assert list(tmp_path.iterdir()) == []


def test_a_line_says_what_was_measured() -> None:
    assert line(Point("check", "sparse", 4 << 40, Spent(1.5, 0.25, 64 << 20))).split() == (
        ["sparse", "4", "TiB", "check", "1.50", "s", "250", "ms", "64", "MiB"]
    )
    assert shown(512 * GIB) == "512 GiB"


def test_the_picture_has_a_line_for_each_command_and_is_the_same_each_time(tmp_path: Path) -> None:
    points = [
        Point(name, kind, size, Spent(size / GIB, 1.0, size >> 10))
        for name in COMMANDS
        for kind in ("sparse", "full metadata")
        for size in (GIB, 4 * GIB)
    ]
    for name in ("one.svg", "other.svg"):
        draw(points, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "other.svg").read_text()
    root = ElementTree.fromstring(text)
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert words >= {*COMMANDS, "seconds", "disk: sparse", "disk: full metadata"}
