"""Standard output that is closed, full, or read by nobody: what was done counts, and what is lost is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c

Run = Callable[..., tuple[int, str]]

CLOSED, FULL = ">&-", ">/dev/full"
WORDS = {CLOSED: "it is closed", FULL: "No space left on device"}


@pytest.fixture
def run(tmp_path: Path, project_root: Path) -> Run:
    qcow2c.create(tmp_path / "disk.qcow2", 1 << 20)

    def call(line: str, where: str) -> tuple[int, str]:
        command = f'"{sys.executable}" -m qcow2c {line} {where}'
        environment = {"PYTHONPATH": str(project_root), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, check=False)
        return done.returncode, done.stderr.decode()

    return call


@pytest.mark.parametrize("where", WORDS)
@pytest.mark.parametrize(
    "line",
    [
        "resize -f qcow2 disk.qcow2 2M",
        "create -f qcow2 new.qcow2 1M",
        "convert -p disk.qcow2 new.raw",
        "check disk.qcow2",
        "compare -p disk.qcow2 disk.qcow2",
        "compact disk.qcow2 new.qcow2",
    ],
)
def test_work_that_is_done_is_not_called_failed(line: str, where: str, run: Run, tmp_path: Path) -> None:
    assert run(line, where) == (0, f"qcow2c: cannot write to standard output: {WORDS[where]}\n")
    if "new." in line:
        made = next(tmp_path.glob("new.*"))
        assert qcow2c.compare(made, tmp_path / "disk.qcow2").identical
    if "resize" in line:
        assert qcow2c.info(tmp_path / "disk.qcow2")["virtual-size"] == 2 << 20


@pytest.mark.parametrize("where", WORDS)
@pytest.mark.parametrize(
    "line", ["info disk.qcow2", "map disk.qcow2", "dump disk.qcow2", "measure disk.qcow2", "--help", "create -o help"]
)
def test_a_result_that_nobody_gets_is_a_failure(line: str, where: str, run: Run) -> None:
    assert run(line, where) == (1, f"qcow2c: cannot write to standard output: {WORDS[where]}\n")


@pytest.mark.parametrize("where", WORDS)
def test_silent_work_needs_no_output(where: str, run: Run, tmp_path: Path) -> None:
    assert run("snapshot -c now disk.qcow2", where) == (0, "")
    assert run("convert -O qcow2 disk.qcow2 copy.qcow2", where) == (0, "")
    with qcow2c.open(tmp_path / "disk.qcow2") as image:
        assert list(image.snapshots) == ["now"]


def test_status_of_the_work_stays_where_it_failed(run: Run) -> None:
    status, err = run("resize nowhere 2M", CLOSED)
    assert status == 1 and "nowhere" in err and "standard output" not in err


def test_all_standard_streams_closed_leave_the_image_alone(run: Run, tmp_path: Path) -> None:
    assert run("resize -f qcow2 disk.qcow2 2M", "<&- >&- 2>&-") == (0, "")
    assert qcow2c.check(tmp_path / "disk.qcow2").exit_code == 0
    assert run("info nowhere", "<&- >&- 2>&-") == (1, "")
    assert run("convert - copy.raw", "<&-") == (1, "qcow2c: copy.raw: standard input is closed\n")
    assert run("convert disk.qcow2 -", ">&-") == (1, "qcow2c: -: standard output is closed\n")
    assert not (tmp_path / "copy.raw").exists()


def test_a_reader_who_has_gone_ends_a_result_quietly(run: Run) -> None:
    assert run("dump disk.qcow2", "| true")[1] == ""
    assert run("map disk.qcow2", "| true")[1] == ""
