"""The benchmark program works: inputs, jobs, table. No test says how quick anything is.

It needs mkfs.ext4 and the real qemu programs; without them the tests of it as a whole are skipped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from bench import inputs, jobs, machine, staging, table, timing, writes
from bench.__main__ import main
from bench.timing import NO_AIM, Aim, Failed, Figures

SIZE = inputs.SMALLEST_SIZE
QUICK = [name for name in jobs.JOBS if not name.startswith("write-")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose inputs all tests of this module share."""
    missing = inputs.missing_programs()
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(autouse=True)
def nothing_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the machine: nothing here is measured."""
    monkeypatch.setattr("os.sync", lambda: None)
    monkeypatch.setattr(jobs, "READS", 200)


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


@pytest.mark.parametrize(
    "words", [["--runs", "0"], ["--size", "1M"], ["--size", "much"], ["no-such-job"], ["--size", "16777217"]]
)
def test_a_wrong_command_line_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_copies_that_differ_are_noticed(requires_qemu: None, tmp_path: Path) -> None:
    paths = [tmp_path / "ours", tmp_path / "theirs"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 4096)
    with pytest.raises(Failed, match="qemu-img left with status 1"):
        jobs.same_image(*paths, "raw")


def test_facts_that_differ_are_noticed() -> None:
    jobs.same_facts(b'[{"a": 1}]', b'[ {"a": 1, "newer": 2} ]')
    for mine, reference in ((b'{"a": 1}', b'{"a": 2}'), (b"[1]", b"[1, 2]"), (b"one\n", b"two\n"), (b"{}", b"")):
        with pytest.raises(Failed, match="differs"):
            jobs.same_facts(mine, reference)


def test_flags_are_timed_unless_they_fail_or_are_clearly_slower() -> None:
    def failing() -> float:
        raise Failed("no such cache mode")

    def contest(best: dict[str, Callable[[], float]]) -> Figures:
        return jobs.contest(lambda: 1.0, lambda: 2.0, best, 3, lambda: None)

    assert contest({}).best == ()
    assert contest({"-a": failing, "-b": lambda: 9.0}).flags == ""
    chosen = contest({"-a": failing, "-b": lambda: 1.9, "-c": lambda: 1.6})
    assert (chosen.flags, chosen.best, chosen.ours) == ("-c", [1.6] * 3, [1.0] * 3)


# --- figures and table ----------------------------------------------------------------------------------------------


def test_the_ratio_to_the_best_is_to_the_quicker_of_the_two() -> None:
    assert Figures([1.0], [4.0], [2.0]).best_ratios() == [0.5]
    assert Figures([1.0], [4.0], [8.0]).best_ratios() == [0.25]
    assert Figures([1.0], [4.0], [2.0]).ratios() == Figures([1.0], [4.0]).best_ratios() == [0.25]


def test_an_aim_is_met_or_not() -> None:
    figures = Figures([1.0, 9.0, 2.0], [4.0, 4.0, 4.0])
    assert [Aim(ratio).met_by(figures) for ratio in (0.4, 0.5, 0.6)] == [False, True, True]
    assert [Aim(seconds=limit).met_by(figures) for limit in (1.9, 2.0)] == [False, True]
    assert NO_AIM.met_by(figures)


def test_times_have_three_digits() -> None:
    values = (123.4, 9.996, 9.99, 0.9996, 0.0456, 0.00999, 0.00123, 0.00000123)
    shown = ["123.4 s", "10.0 s", "9.99 s", "1.00 s", "46 ms", "10 ms", "1.2 ms", "1.23 us"]
    assert [table.seconds(value) for value in values] == shown


def test_rows_show_ratios_sizes_and_aims() -> None:
    job = jobs.Job("raw to zlib", lambda *_: Figures([], []), Aim(0.4))
    figures = Figures([1.0], [4.0], [2.0], "-m 16 -W", (105, 100), "a note")
    row = table.Row("to-zlib", job, figures)
    assert " ".join(table.line(row).split()) == (
        "to-zlib 1.00 s 4.00 s 2.00 s 0.25 0.50 (0.50..0.50) size 1.050, aim 0.4 MISSED, -m 16 -W, a note"
    )
    headings = "job | what | qcow2c | qemu-img | at its best | with | ratio | to its best | least..most | size | aim"
    failed = table.Row("other", job, Failed("why"))
    assert table.markdown([row, failed], "make bench", {"date": "today"}).splitlines()[2:] == [
        "- date: today",
        "",
        f"| {headings} | met |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| to-zlib | raw to zlib (a note) | 1.00 s | 4.00 s | 2.00 s | `-m 16 -W` | 0.25 | 0.50 | 0.50..0.50 | 1.050 "
        "| 0.4 | **no** |",
        "| other | raw to zlib | failed |  |  |  |  |  |  |  |  |  |",
    ]


def test_each_begins_in_turn() -> None:
    order = []

    def runner(name: str) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    assert timing.in_turn([runner("a"), runner("b")], 2) == [[1.0, 4.0], [2.0, 3.0]]
    assert order == ["a", "b", "b", "a"]


# --- real files -----------------------------------------------------------------------------------------------------


def blocks(folder: Path) -> int:
    """Return the bytes that a tree takes, in blocks."""
    return sum(
        -(-path.stat().st_size // staging.BLOCK) * staging.BLOCK if path.is_file() else staging.BLOCK
        for path in folder.rglob("*")
    )


def test_no_more_is_copied_than_fits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    for number in range(20):
        (source / "sub" / f"{number}").write_bytes(bytes([number]) * (1000 * number))
    (source / "link").symlink_to("sub/1")
    (source / "large").write_bytes(bytes(100_000))
    limit = 400_000
    used = staging.fill(tmp_path / "copy", limit, 1000, [source])
    assert limit * 9 // 10 < used <= limit
    assert blocks(tmp_path / "copy") <= used
    copies = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert {path.name for path in copies} == {str(number) for number in range(1, 20)}
    assert all(path.read_bytes() == (source / "sub" / path.name).read_bytes() for path in copies)


def test_no_more_files_are_copied_than_fit(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"data")
    staging.fill(tmp_path / "copy", 1 << 20, 7, [tmp_path / "source"])
    assert len([path for path in (tmp_path / "copy").rglob("*") if path.is_file()]) == 7


def test_no_files_are_no_endless_loop(tmp_path: Path) -> None:
    assert staging.fill(tmp_path / "copy", 1 << 20, 7, [tmp_path]) == 0
