"""`qcow2c snapshot` without qemu: what it prints, refuses, and adds to qemu-img's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from tests.building import Builder

Run = Callable[..., tuple[int, str, str]]
HINT = "Try 'qcow2c snapshot --help' for more information\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Return a function that runs the command beside an image with two snapshots; it returns status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    qcow2c.create("disk.qcow2", 65536, cluster_size=4096)
    with qcow2c.open("disk.qcow2", "r+") as image:
        image.pwrite(b"first", 0)
        image.snapshots.create("one", date=1_700_000_000)
        image.pwrite(b"later", 0)
        image.snapshots.create("ä\x07", date=1_700_000_001.5)
    qcow2c.create("narrow.qcow2", 65536, refcount_bits=1)
    with qcow2c.open("narrow.qcow2", "r+") as image:
        image.pwrite(b"x", 0)
    Path("data.qcow2").write_bytes(Builder(4096, incompatible=4).build())
    Path("disk.raw").write_bytes(bytes(65536))
    Path("disk.vmdk").write_bytes(b"KDMV" + bytes(1020))

    def command(*words: str) -> tuple[int, str, str]:
        capfdbinary.readouterr()
        status = main(["snapshot", *words])
        out, err = capfdbinary.readouterr()
        return status, out.decode(), err.decode()

    return command


def start_and_names() -> tuple[bytes, list[str]]:
    with qcow2c.open("disk.qcow2") as image:
        return bytes(image.pread(5, 0)), list(image.snapshots)


def test_the_list_is_qemus(run: Run) -> None:
    status, out, err = run("-l", "disk.qcow2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "Snapshot list:"
    assert lines[1] == "ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT"
    assert lines[2].startswith("1         one                   0 B 2023-11-14 ")
    assert lines[3].startswith("2         ä\\x07 ") and len(lines) == 4
    assert run("--list", "-q", "-U", "-f", "qcow2", "disk.qcow2")[1] == out
    assert run("-l", "--image-opts", "driver=qcow2,file.filename=disk.qcow2")[1] == out
    assert run("-l", "narrow.qcow2") == run("-l", "disk.raw") == run("disk.qcow2") == (0, "", "")


def test_the_list_as_json(run: Run) -> None:
    status, out, err = run("-l", "--output=json", "disk.qcow2")
    found = json.loads(out)
    assert (status, err) == (0, "") and [one["name"] for one in found] == ["one", "ä\x07"]
    assert found[1] == {
        "icount": 0, "vm-clock-nsec": 0, "name": "ä\x07", "date-sec": 1_700_000_001, "date-nsec": 500_000_000,
        "vm-clock-sec": 0, "id": "2", "vm-state-size": 0,
    }  # fmt: skip
    assert json.loads(run("-l", "--output=json", "narrow.qcow2")[1]) == []


def test_a_snapshot_comes_is_gone_back_to_is_renamed_and_goes(run: Run) -> None:
    assert run("-c", "three", "disk.qcow2") == (0, "", "")
    assert run("-a", "1", "disk.qcow2") == (0, "", "")
    assert start_and_names() == (b"first", ["one", "ä\x07", "three"])
    assert run("--rename", "2", "two", "disk.qcow2") == (0, "", "")
    assert run("disk.qcow2", "--apply", "two") == (0, "", "")
    assert run("--delete", "one", "disk.qcow2") == (0, "", "")
    assert start_and_names() == (b"later", ["two", "three"])


REFUSED = {
    "no image": (["-l"], f"Expecting one image file name\n{HINT}"),
    "two images": (["-l", "a", "b"], f"Expecting one image file name\n{HINT}"),
    "two actions": (["-l", "-c", "x", "disk.qcow2"], f"Cannot mix '-l', '-a', '-c', '-d', '--rename'\n{HINT}"),
    "two names": (["-c", "x", "-c", "y"], f"Cannot mix '-l', '-a', '-c', '-d', '--rename'\n{HINT}"),
    "renamed and listed": (["--rename", "x", "y", "-l"], f"Cannot mix '-l', '-a', '-c', '-d', '--rename'\n{HINT}"),
    "an object": (["--object", "secret,id=s", "-l", "x"], "Either 'file' or 'data' must be provided\n"),
    "shared": (
        ["-U", "-c", "x", "disk.qcow2"],
        "Could not open 'disk.qcow2': force-share=on can only be used with read-only images\n",
    ),
    "deleted by ID": (["-d", "1", "disk.qcow2"], "Could not delete snapshot '1': snapshot not found\n"),
    "unknown": (
        ["-a", "x", "disk.qcow2"],
        "Could not apply snapshot 'x': Failed to load snapshot: No such file or directory\n",
    ),
    "unknown, renamed": (["--rename", "x", "y", "disk.qcow2"], "Could not rename snapshot 'x': snapshot not found\n"),
    "raw, create": (["-c", "x", "disk.raw"], "Could not create snapshot 'x': -95 (Operation not supported)\n"),
    "raw, apply": (["-a", "x", "disk.raw"], "Could not apply snapshot 'x': Block driver does not support snapshots\n"),
    "raw, delete": (["-d", "x", "-f", "raw", "disk.qcow2"], "Could not delete snapshot 'x': snapshot not found\n"),
    "narrow refcounts": (
        ["-c", "x", "narrow.qcow2"],
        "Could not create snapshot 'x': -22 (Invalid argument)\n"
        "qcow2c: cluster 4 would have more references than a refcount can say, 1\n",
    ),
    "a data file": (
        ["-c", "x", "data.qcow2"],
        "Could not create snapshot 'x': -95 (Operation not supported)\n"
        "qcow2c: an image with an external data file cannot have internal snapshots\n",
    ),
    "a data file, apply": (
        ["-a", "x", "data.qcow2"],
        "Could not apply snapshot 'x': Failed to load snapshot: Operation not supported\n"
        "qcow2c: an image with an external data file cannot have internal snapshots\n",
    ),
    "another format": (
        ["-c", "x", "disk.vmdk"],
        "disk.vmdk: image 'disk.vmdk' has format 'vmdk', not qcow2 or raw\n",
    ),
    "missing": (["-c", "x", "gone.qcow2"], "gone.qcow2: Could not open 'gone.qcow2': No such file or directory\n"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_and_changes_nothing(case: str, run: Run) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    words, message = REFUSED[case]
    assert run(*words) == (1, "", f"qcow2c: {message}")
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_there_is_no_room_for_a_snapshot_too_many(run: Run) -> None:
    from tests.ops.test_snapshots import records

    Path("full.qcow2").write_bytes(records(1024, name=b"n" * 64871, extra=b"e" * 600))
    assert run("-c", "n" * 255, "full.qcow2") == (
        1,
        "",
        f"qcow2c: Could not create snapshot '{'n' * 255}': -27 (File too large)\n"
        "qcow2c: the snapshot table would exceed 67108864 bytes\n",
    )


def test_bitmaps_do_not_let_the_disk_go_back(run: Run) -> None:
    with qcow2c.open("disk.qcow2", "r+") as image, image.engine.changing_bitmaps() as edit:
        edit.add("bits", 4096, enabled=False)
    message = "qcow2c: Could not apply snapshot 'one': Device has active dirty bitmaps\n"
    assert run("-a", "one", "disk.qcow2") == (1, "", message)


def test_an_image_in_use_is_left_alone(run: Run) -> None:
    with qcow2c.open("disk.qcow2", "r+"):
        status, _, err = run("-c", "x", "disk.qcow2")
        assert status == 1 and "lock" in err
        assert run("-l", "disk.qcow2")[0] == 1
        assert run("-l", "-U", "disk.qcow2")[0] == 0


def test_the_help_has_examples(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0 and "qcow2c snapshot --rename before-upgrade fallback disk.qcow2" in out
