"""`qcow2c diff`, `patch` and `export`: what is shown, what is written, and complaints."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from qcow2c.ops import snapshots

Run = Callable[..., tuple[int, str, str]]
MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command beside an image with two snapshots: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    qcow2c.create("disk.qcow2", MIB, cluster_size=4096)
    for number, name in enumerate(("monday", "tuesday", "")):
        with qcow2c.open("disk.qcow2", "r+") as image:
            image.pwrite(b"%d" % number * 1000, number * 8192)
            image.pwrite(b"same" * 1024, 65536)
            image.write_zeroes(0, 512 * number)
        if name:
            snapshots.create("disk.qcow2", name)

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(list(words))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def content(name: str, snapshot: str = "") -> bytes:
    with qcow2c.open(name) as image:
        return image.snapshots[snapshot].open().readall() if snapshot else image.readall()


def test_ranges_for_people(run: Run) -> None:
    assert run("diff", "--from-snapshot", "monday", "disk.qcow2") == (
        0,
        "Offset          Length          Kind\n"
        "0               0x400           zero\n"
        "0x2000          0x400           data\n"
        "0x4000          0x400           data\n",
        "",
    )
    fast = run("diff", "--fast", "--from-snapshot", "monday", "disk.qcow2")[1]
    assert fast.splitlines()[1:] == [
        "0               0x1000          data",
        "0x2000          0x1000          data",
        "0x4000          0x1000          data",
        "0x10000         0x1000          data",
    ]


def test_ranges_for_programs(run: Run) -> None:
    words = ["--output=json", "--from-snapshot=tuesday", "--to-snapshot=snapshot.id=1"]
    status, out, _ = run("diff", *words, "disk.qcow2")
    assert status == 0
    assert out == (
        '[{ "start": 0, "length": 512, "zero": false},\n'
        '{ "start": 8192, "length": 1024, "zero": true}]\n'
    )  # fmt: skip
    assert json.loads(out)[1] == {"start": 8192, "length": 1024, "zero": True}
    assert run("diff", "--output=json", "disk.qcow2", "disk.qcow2") == (0, "[]\n", "")


def test_a_stream_and_what_it_makes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qcow2c", "diff", "--stream", "--from-snapshot", "monday", "disk.qcow2"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        capture_output=True,
    )
    assert done.stdout.startswith(b"qcow2c-diff 1 from 1048576 to 1048576\nzero 0 1024\ndata 8192 1024\n1111")
    Path("stream").write_bytes(done.stdout)
    for image_format in ("raw", "qcow2"):
        assert run("export", "-O", image_format, "disk.qcow2", "monday", f"monday.{image_format}")[0] == 0
    status, out, err = run("patch", "-p", "monday.qcow2", "stream")
    assert (status, err) == (0, "") and out.endswith("\nmonday.qcow2: 3 ranges written\n") and "(100.00/100%)" in out
    assert content("monday.qcow2") == content("disk.qcow2")

    class Standard:
        buffer = io.BytesIO(done.stdout)

    monkeypatch.setattr(sys, "stdin", Standard)
    assert run("patch", "-q", "-f", "raw", "monday.raw") == (0, "", "")
    assert Path("monday.raw").read_bytes() == content("disk.qcow2")
    status, _, err = run("patch", "monday.raw", "gone")
    assert status == 1 and err == "qcow2c: gone: No such file or directory\n"
    status, _, err = run("patch", "monday.raw", "disk.qcow2")
    assert status == 1 and err.startswith("qcow2c: monday.raw: no qcow2c-diff stream: it starts with b'QFI")


def test_a_stream_goes_to_standard_output(run: Run) -> None:
    status, out, _ = run("diff", "--stream", "--fast", "--from-snapshot", "monday", "--to-snapshot", "1", "disk.qcow2")
    assert status == 0 and out.startswith("qcow2c-diff 1 from 1048576 to 1048576\nend 0 ")


def test_an_overlay_lies_on_the_earlier_image(run: Run, tmp_path: Path) -> None:
    assert run("export", "disk.qcow2", "monday", "monday.qcow2") == (0, "", "")
    (tmp_path / "there").mkdir()
    words = ["-c", "-o", "cluster_size=4k,compression_type=zstd", "--gate", "any"]
    assert run("diff", "--overlay", "there/over.qcow2", *words, "monday.qcow2", "disk.qcow2") == (0, "", "")
    with qcow2c.open("there/over.qcow2", gate="any") as image:
        assert image.header.backing_file == b"../monday.qcow2" and image.header.backing_format == b"qcow2"
        assert image.readall() == content("disk.qcow2")
    path = str(tmp_path / "monday.qcow2")
    status, out, _ = run("diff", "-p", "--fast", "--overlay", "over.qcow2", path, "disk.qcow2")
    assert status == 0 and "(100.00/100%)" in out
    with qcow2c.open("over.qcow2", gate="any") as image:
        assert image.header.backing_file == path.encode() and image.readall() == content("disk.qcow2")


def test_an_overlay_names_a_file_and_no_options(run: Run) -> None:
    run("export", "disk.qcow2", "monday", "monday.qcow2")
    given = '{"driver": "qcow2", "file": {"filename": "monday.qcow2"}%s}'
    assert run("diff", "--overlay", "over.qcow2", "json:" + given % "", "disk.qcow2") == (0, "", "")
    with qcow2c.open("over.qcow2") as image:
        assert image.header.backing_file == b"monday.qcow2" and image.readall() == content("disk.qcow2")
    _, _, err = run("diff", "--overlay", "x", "json:" + given % ', "backing": null', "disk.qcow2")
    assert "only the image itself" in err and not Path("x").exists()


def test_snapshots_become_a_chain(run: Run) -> None:
    assert run("export", "-p", "disk.qcow2", "monday", "monday.qcow2")[1].endswith("(100.00/100%)\r\n")
    words = ["-B", "monday.qcow2", "-F", "qcow2", "-o", "cluster_size=4096"]
    assert run("export", *words, "--relative-to", "monday", "disk.qcow2", "tuesday", "tuesday.qcow2") == (0, "", "")
    assert run("export", *words, "-c", "disk.qcow2", "snapshot.name=tuesday", "again.qcow2") == (0, "", "")
    for name in ("tuesday.qcow2", "again.qcow2"):
        assert content(name) == content("disk.qcow2", "tuesday")
    status, out, _ = run("export", "-o", "help", "disk.qcow2", "monday", "x")
    assert status == 0 and out.startswith("Supported qcow2 options:\n")


WRONG = {
    "one state": (["diff", "disk.qcow2"], "disk.qcow2: one state does not differ from itself"),
    "two forms": (["diff", "--stream", "--output=json", "disk.qcow2", "disk.qcow2"], "--stream goes with neither"),
    "an overlay over a snapshot": (
        ["diff", "--overlay", "x", "--from-snapshot", "monday", "disk.qcow2"], "export the snapshot first"
    ),
    "options for nothing": (["diff", "-c", "disk.qcow2", "disk.qcow2"], "-o and -c go with --overlay"),
    "unknown option": (["diff", "--overlay", "x", "-o", "a=b", "disk.qcow2", "disk.qcow2"], "Invalid parameter 'a'"),
    "no snapshot": (["diff", "--from-snapshot", "friday", "disk.qcow2"], "disk.qcow2: Failed to load snapshot"),
    "no file": (["diff", "disk.qcow2", "gone"], "gone: Could not open 'gone': No such file or directory"),
    "a size": (["export", "-o", "size=5", "disk.qcow2", "monday", "x"], "the result has the size of the image"),
    "no format": (["export", "-O", "vmdk", "disk.qcow2", "monday", "x"], "Unknown file format 'vmdk'"),
    "no base": (["export", "--relative-to", "monday", "disk.qcow2", "tuesday", "x"], "needs a backing file"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "complaint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_and_nothing_is_made(run: Run, words: list[str], complaint: str, tmp_path: Path) -> None:
    status, _, err = run(*words)
    assert status == 1 and err.startswith("qcow2c: ") and complaint in err
    assert [path.name for path in tmp_path.iterdir()] == ["disk.qcow2"]
