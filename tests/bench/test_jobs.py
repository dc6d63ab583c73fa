"""The benchmark program works: inputs, jobs, table. No test says how quick anything is.

It needs mkfs.ext4 and the real qemu programs; without them this file is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import qcow2c
from bench import doors, inputs, jobs, machine, staging, table, writes
from bench.__main__ import main
from bench.timing import Failed, Figures

if MISSING := inputs.missing_programs():
    pytest.skip(f"nothing to compare with: {', '.join(MISSING)} not installed", allow_module_level=True)

SIZE = inputs.SMALLEST_SIZE
QUICK = [name for name in jobs.JOBS if not name.startswith(("write-", "fuse-", "nbd-"))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose inputs all tests of this module share."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(autouse=True)
def as_little_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the machine: nothing here is measured."""
    monkeypatch.setattr("os.sync", lambda: None)
    monkeypatch.setattr(jobs, "READS", 200)
    monkeypatch.setattr(inputs, "METADATA_FACTOR", 16)


# --- the whole program ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_each_job_runs_and_its_results_are_equal(
    name: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--size", str(SIZE), "--runs", "1", "--directory", str(directory), name])
    line = capsys.readouterr().out.splitlines()[-1]
    assert (status, "failed" in line) == (0, False), line
    assert line.split()[0] == name
    left = [path.name for path in (directory / "16M").iterdir() if path.suffix not in {".qcow2", ".raw"}]
    assert left == []


@pytest.mark.parametrize("name", [name for name in jobs.JOBS if name.startswith(("fuse-", "nbd-"))])
def test_doors_are_timed(
    name: str, directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = ["qemu-storage-daemon", "fusermount3"] if name.startswith("fuse-") else ["nbdcopy", "qemu-nbd"]
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"nothing to compare doors with: {', '.join(missing)} not installed")
    if name.startswith("fuse-") and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened: nothing is mounted")
    monkeypatch.setattr(doors, "READS", 200)
    assert main(["--size", str(SIZE), "--runs", "1", "--directory", str(directory), name]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == name


@pytest.mark.parametrize("name", ["write-1m", "write-4k-new-flush"])
def test_writes_are_timed(
    name: str, directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "SEQUENTIAL_DISK", 4 << 20)
    monkeypatch.setattr(writes, "RANDOM_WRITES", 2 * writes.FLUSH_EVERY)
    assert main(["--size", str(SIZE), "--runs", "1", "--directory", str(directory), name]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == name
    assert not list((directory / "16M").glob("writes-*"))


def test_the_table_is_put_between_the_marks_of_a_file(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "performance.md"
    file.write_text(f"# Speed\n\n{table.BEGIN}\nold\n{table.END}\nend\n")
    words = ["--size", "16M", "--runs", "1", "--directory", str(directory), "--write", str(file), "check-s*", "info"]
    assert main(words) == 0
    lines = file.read_text().splitlines()
    assert lines[:3] == ["# Speed", "", table.BEGIN]
    assert lines[3] == "Made by `python -m bench --runs 1 --size 16M --directory DIR 'check-s*' info`."
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][2:] == ["| check-small", "| info"]
    assert lines[-2:] == [table.END, "end"]
    assert str(tmp_path) not in file.read_text()
    assert len(capsys.readouterr().out.splitlines()) == len(machine.facts(directory)) + 4


def test_inputs_are_made_once_and_are_what_they_should_be(directory: Path) -> None:
    images = inputs.Inputs(directory, SIZE)
    made = {kind: images.image(kind) for kind in ("zlib", "4k", "chain", "snapshots")} | {"small": images.small()}
    before = {path: path.stat().st_mtime_ns for path in images.directory.iterdir()}
    assert {kind: images.image(kind) for kind in made if kind != "small"} | {"small": images.small()} == made
    assert {path: path.stat().st_mtime_ns for path in images.directory.iterdir()} == before
    assert images.raw().stat().st_size == SIZE
    with qcow2c.open(made["snapshots"]) as image:
        assert list(image.snapshots) == ["s1", "s2", "s3", "s4", "s5"]
    facts = qcow2c.check(images.image("zlib"))
    assert facts.compressed_clusters > 0
    assert subprocess.run(["qemu-img", "check", "-q", made["chain"]], check=False).returncode == 0


def test_the_fragmented_image_is_a_valid_image_in_pieces(directory: Path) -> None:
    images = inputs.Inputs(directory, SIZE)
    whole, shuffled = qcow2c.check(images.metadata()), qcow2c.check(images.fragmented())
    assert shuffled.allocated_clusters == whole.allocated_clusters == images.metadata_size >> 16
    assert (shuffled.corruptions, shuffled.leaks) == (0, 0)
    assert whole.fragmented_clusters < shuffled.allocated_clusters // 100
    assert shuffled.fragmented_clusters >= shuffled.allocated_clusters // inputs.EXTENT_CLUSTERS * 9 // 10


def test_an_input_that_cannot_be_made_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = inputs.Inputs(directory, SIZE + inputs.MIB)
    monkeypatch.setattr(staging, "sources", list)
    with pytest.raises(Failed, match="no files"):
        images.image("plain")
    assert list(images.directory.iterdir()) == []


def test_a_full_disk_is_seen_before(directory: Path) -> None:
    images = inputs.Inputs(directory, 1 << 60)
    with pytest.raises(Failed, match="MiB free"):
        images.small()
    images.directory.rmdir()


# --- what is wrong --------------------------------------------------------------------------------------------------


def test_a_job_that_fails_has_no_figures_and_the_others_go_on(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(_: inputs.Inputs, __: int) -> Figures:
        raise Failed("the output differs")

    monkeypatch.setitem(jobs.JOBS, "check-small", jobs.Job("check", differs))
    assert main(["--size", "16M", "--runs", "1", "--directory", str(directory), "check-small", "info"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split(maxsplit=1) == ["check-small", "failed: the output differs"]
    assert lines[-1].startswith("info ")


def test_copies_that_differ_are_noticed(tmp_path: Path) -> None:
    mine, reference = tmp_path / "ours", tmp_path / "theirs"
    mine.write_bytes(bytes(4096))
    reference.write_bytes(b"\1" * 4096)
    with pytest.raises(Failed, match="qemu-img left with status 1"):
        jobs.same_image(mine, reference, "raw")
