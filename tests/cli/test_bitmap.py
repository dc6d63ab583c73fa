"""`qcow2c bitmap`: its options in their order, its messages, and what --show prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from qcow2c.errors import UnsupportedFeature
from qcow2c.ops import bitmaps

Run = Callable[..., tuple[int, str, str]]
MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command in a folder of images: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    qcow2c.create("disk.qcow2", 10 * MIB)
    qcow2c.create("other.qcow2", 20 * MIB)
    qcow2c.create("old.qcow2", MIB, compat="v2")
    Path("disk.raw").write_bytes(bytes(MIB))
    bitmaps.add("disk.qcow2", "b0")
    bitmaps.add("other.qcow2", "b0")

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["bitmap", *words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def listed(path: str = "disk.qcow2") -> list[tuple[str, int, bool]]:
    assert qcow2c.check(path).exit_code == 0
    with qcow2c.open(path) as image:
        return [(found.name, found.granularity, found.enabled) for found in image.bitmaps]


def write(path: str, *ranges: tuple[int, int]) -> None:
    with qcow2c.open(path, "r+") as image:
        for offset, length in ranges:
            image.pwrite(b"x" * length, offset)


def test_actions_are_done_in_their_order(run: Run) -> None:
    assert run("--add", "--disable", "-g", "1k", "disk.qcow2", "b1") == (0, "", "")
    assert listed() == [("b0", 65536, True), ("b1", 1024, False)]
    assert run("--disable", "disk.qcow2", "b0", "--enable") == (0, "", "")
    assert run("--remove", "--add", "disk.qcow2", "b1") == (0, "", "")
    assert listed() == [("b0", 65536, True), ("b1", 65536, True)]
    assert run("--remove", "disk.qcow2", "b0")[0] == run("--remove", "disk.qcow2", "b1")[0] == 0
    assert listed() == []


def test_bitmaps_are_merged_and_cleared(run: Run) -> None:
    write("disk.qcow2", (0, 512), (3 * MIB, 100_000))
    assert run("--add", "-g", "4k", "--merge", "b0", "disk.qcow2", "b1") == (0, "", "")
    with qcow2c.open("disk.qcow2") as image:
        assert list(image.bitmaps.find("b1").ranges()) == [(0, 65536), (3 * MIB, 131072)]
    qcow2c.create("copy.qcow2", 10 * MIB)
    assert run("--add", "--merge", "b1", "-b", "disk.qcow2", "-F", "qcow2", "copy.qcow2", "b2") == (0, "", "")
    assert list(bitmaps.dirty_ranges("copy.qcow2", "b2")) == [(0, 65536), (3 * MIB, 131072)]
    assert run("--clear", "copy.qcow2", "b2") == (0, "", "")
    assert list(bitmaps.dirty_ranges("copy.qcow2", "b2")) == []


def test_images_are_given_by_options(run: Run) -> None:
    assert run("--add", "--image-opts", "driver=qcow2,file.filename=disk.qcow2", "b1")[0] == 0
    assert run("--add", 'json:{"driver":"qcow2","file.filename":"disk.qcow2","backing":null}', "b2")[0] == 0
    assert run("--show", 'json:{"driver":"qcow2","file.filename":"disk.qcow2","backing":null}', "b2")[0] == 0
    assert [name for name, _, _ in listed()] == ["b0", "b1", "b2"]


def test_dirty_ranges_are_shown(run: Run) -> None:
    assert run("--show", "disk.qcow2", "b0") == (0, "Offset          Length\n", "")
    assert run("--show", "--output=json", "disk.qcow2", "b0") == (0, "[]\n", "")
    write("disk.qcow2", (0, 512), (3 * MIB, 100_000), (10 * MIB - 1, 1))
    expected = [(0, 65536), (3 * MIB, 131072), (10 * MIB - 65536, 65536)]
    human = "Offset          Length\n0x0             0x10000\n0x300000        0x20000\n0x9f0000        0x10000\n"
    assert run("--show", "-U", "disk.qcow2", "b0") == (0, human, "")
    found = json.loads(run("--show", "--output=json", "disk.qcow2", "b0")[1])
    assert [(one["start"], one["length"]) for one in found] == expected


def test_many_ranges_are_shown_as_they_come(run: Run) -> None:
    qcow2c.create("wide.qcow2", 16 * MIB)
    bitmaps.add("wide.qcow2", "b", granularity=512)
    write("wide.qcow2", *[(at, 512) for at in range(0, 5000 * 1024, 1024)])
    found = json.loads(run("--show", "--output=json", "wide.qcow2", "b")[1])
    assert [one["start"] for one in found] == list(range(0, 5000 * 1024, 1024))
    assert len(run("--show", "wide.qcow2", "b")[1].splitlines()) == 5001


def test_the_actions_before_one_that_fails_are_done(run: Run) -> None:
    status, out, err = run("--add", "--disable", "--merge", "gone", "--enable", "disk.qcow2", "b1")
    assert (status, out) == (1, "")
    assert err == "qcow2c: disk.qcow2: Operation merge on bitmap b1 failed: Dirty bitmap 'gone' not found\n"
    assert listed()[1:] == [("b1", 65536, False)]


WRONG = {
    "nothing to do": (["disk.qcow2", "b0"], "Need at least one of --add, --remove, --clear, --enable, --disable, or"),
    "no bitmap": (["--add", "disk.qcow2"], "qcow2c: Expecting filename and bitmap name\n"),
    "too many words": (["--add", "disk.qcow2", "b", "c"], "Expecting filename and bitmap name"),
    "granularity of none": (["--clear", "-g", "64k", "disk.qcow2", "b0"], "granularity only supported with --add"),
    "no size": (["--add", "-g", "many", "disk.qcow2", "b"], "Invalid granularity specified. You may use k, M, G"),
    "a format of none": (["--merge", "x", "-F", "qcow2", "disk.qcow2", "b0"], "-F only supported with -b"),
    "a source of none": (
        ["--clear", "-b", "other.qcow2", "disk.qcow2", "b0"],
        "Merge bitmap source file only supported with --merge",
    ),
    "an object": (["--object", "secret", "--add", "disk.qcow2", "b"], "Parameter 'id' is missing"),
    "two formats": (["--add", "--image-opts", "-f", "qcow2", "disk.qcow2", "b"], "mutually exclusive"),
    "shown and changed": (["--show", "--add", "disk.qcow2", "b"], "--show, --overlay and --stream go alone, and wi"),
    "shared and changed": (["-U", "--add", "disk.qcow2", "b"], "--force-share/-U is for reading, with --show,"),
    "it is there": (["--add", "disk.qcow2", "b0"], "Operation add on bitmap b0 failed: Bitmap already exists: b0"),
    "it is not there": (["--enable", "disk.qcow2", "b"], "Operation enable on bitmap b failed: Dirty bitmap 'b' not"),
    "it cannot be shown": (["--show", "disk.qcow2", "b"], "qcow2c: disk.qcow2: Dirty bitmap 'b' not found"),
    "another size": (
        ["--merge", "b0", "-b", "other.qcow2", "disk.qcow2", "b0"],
        "are of different sizes (destination size is 10485760, source size is 20971520) and can't be merged",
    ),
    "no such target": (["--merge", "b0", "-b", "other.qcow2", "disk.qcow2", "b"], "Dirty bitmap 'b' not found"),
    "no such source": (["--merge", "b", "-b", "other.qcow2", "disk.qcow2", "b0"], "Dirty bitmap 'b' not found"),
    "a raw source": (["--merge", "b", "-b", "disk.raw", "disk.qcow2", "b0"], "Dirty bitmap 'b' not found"),
    "itself": (["--merge", "b0", "-b", "disk.qcow2", "disk.qcow2", "b0"], "lock"),
    "version 2": (["--add", "old.qcow2", "b"], "Cannot store dirty bitmaps in qcow2 v2 files"),
    "raw": (["--add", "disk.raw", "b"], "Can't store persistent bitmaps to disk.raw: Operation not supported"),
    "raw, not there": (["--clear", "-f", "raw", "disk.qcow2", "b"], "Dirty bitmap 'b' not found"),
    "raw, shown": (["--show", "disk.raw", "b"], "Dirty bitmap 'b' not found"),
    "a format": (["--add", "-f", "vmdk", "disk.qcow2", "b"], "Unknown driver 'vmdk'"),
    "a source's format": (["--merge", "b", "-b", "other.qcow2", "-F", "x", "disk.qcow2", "b0"], "'other.qcow2': Unkno"),
    "no image": (["--add", "gone.qcow2", "b"], "Could not open 'gone.qcow2': No such file or directory"),
}


@pytest.mark.parametrize(("words", "complaint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_and_nothing_changes(run: Run, words: list[str], complaint: str, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert complaint in err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def mark_in_use(path: str, name: str) -> None:
    with qcow2c.open(path) as image:
        at = image.bitmaps.find(name).record.span.offset + 15
    data = bytearray(Path(path).read_bytes())
    data[at] |= 1
    Path(path).write_bytes(data)


def test_an_inconsistent_bitmap_can_only_be_removed(run: Run) -> None:
    mark_in_use("disk.qcow2", "b0")
    status, out, err = run("--clear", "disk.qcow2", "b0")
    assert (status, out) == (1, "")
    assert err == (
        "qcow2c: disk.qcow2: Operation clear on bitmap b0 failed: Bitmap 'b0' is inconsistent and cannot be used\n"
        "Try --remove to delete this bitmap from disk\n"
    )
    assert run("--show", "disk.qcow2", "b0")[0] == 1
    assert run("--remove", "disk.qcow2", "b0") == (0, "", "")
    assert listed() == []


def test_stale_bitmaps_are_told(run: Run) -> None:
    data = bytearray(Path("disk.qcow2").read_bytes())
    data[95] &= 0xFE
    Path("disk.qcow2").write_bytes(data)
    status, _, err = run("--add", "disk.qcow2", "b1")
    assert status == 0
    assert err == (
        "qcow2c: warning: a program lacking bitmap support modified this file, "
        "so all bitmaps are now considered inconsistent\n"
    )
    with qcow2c.open("disk.qcow2") as image:
        assert [found.name for found in image.bitmaps] == ["b1"]


@pytest.mark.usefixtures("run")
def test_the_library_does_the_same() -> None:
    write("disk.qcow2", (MIB, 10))
    bitmaps.add("disk.qcow2", "b1", granularity=512, enabled=False)
    bitmaps.merge("disk.qcow2", "b1", "b0")
    bitmaps.enable("disk.qcow2", "b1")
    bitmaps.disable("disk.qcow2", "b0")
    assert listed() == [("b0", 65536, False), ("b1", 512, True)]
    assert list(bitmaps.dirty_ranges("disk.qcow2", "b1")) == [(MIB, 65536)]
    qcow2c.create("copy.qcow2", 10 * MIB)
    bitmaps.add("copy.qcow2", "b")
    bitmaps.merge("copy.qcow2", "b", "b1", source="disk.qcow2", gate="deny")
    assert list(bitmaps.dirty_ranges("copy.qcow2", "b")) == [(MIB, 65536)]
    bitmaps.clear("disk.qcow2", "b1")
    bitmaps.remove("disk.qcow2", "b0")
    assert listed() == [("b1", 512, True)]
    with pytest.raises(UnsupportedFeature, match="has format 'luks', not qcow2 or raw"):
        bitmaps.clear(bytearray(b"LUKS\xba\xbe" + bytes(1000)), "b")


def test_a_backing_file_is_not_opened(run: Run) -> None:
    qcow2c.create("over.qcow2", MIB, backing_file="gone.raw", backing_fmt="raw", check_backing=False)
    assert run("--add", "--gate", "deny", "over.qcow2", "b")[0] == 0
    assert run("--show", "--gate", "deny", "over.qcow2", "b")[0] == 0
