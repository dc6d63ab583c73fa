"""The parts of the benchmark program that need no other program: command line, figures, table, choice of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import jobs, staging, table, timing
from bench.__main__ import main
from bench.timing import NO_AIM, Aim, Failed, Figures, Spent


def took(*seconds: float) -> list[Spent]:
    """Runs that took so long, and half of it on a processor, with 5 MiB of memory."""
    return [Spent(wall, wall / 2, 5 << 20) for wall in seconds]


@pytest.mark.parametrize(
    "words", [["--runs", "0"], ["--size", "1M"], ["--size", "much"], ["no-such-job"], ["--size", "16777217"]]
)
def test_a_wrong_command_line_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_facts_that_differ_are_noticed() -> None:
    jobs.same_facts(b'[{"a": 1}]', b'[ {"a": 1, "newer": 2} ]')
    for mine, reference in ((b'{"a": 1}', b'{"a": 2}'), (b"[1]", b"[1, 2]"), (b"one\n", b"two\n"), (b"{}", b"")):
        with pytest.raises(Failed, match="differs"):
            jobs.same_facts(mine, reference)


def test_flags_are_timed_unless_they_fail_or_are_clearly_slower() -> None:
    def failing() -> Spent:
        raise Failed("no such cache mode")

    def contest(best: dict[str, Callable[[], Spent]]) -> Figures:
        return jobs.contest(lambda: Spent(1.0, 1.0), lambda: Spent(2.0, 1.0), best, 3, lambda: None)

    assert contest({}).best == ()
    assert contest({"-a": failing, "-b": lambda: Spent(9.0, 1.0)}).flags == ""
    chosen = contest({"-a": failing, "-b": lambda: Spent(1.9, 1.0), "-c": lambda: Spent(1.6, 1.0)})
    assert (chosen.flags, chosen.best, chosen.ours) == ("-c", [Spent(1.6, 1.0)] * 3, [Spent(1.0, 1.0)] * 3)


# --- figures and table ----------------------------------------------------------------------------------------------


def test_the_ratio_to_the_best_is_to_the_quicker_of_the_two() -> None:
    assert Figures(took(1), took(4), took(2)).best_ratios() == [0.5]
    assert Figures(took(1), took(4), took(8)).best_ratios() == [0.25]
    assert Figures(took(1), took(4), took(2)).ratios() == Figures(took(1), took(4)).best_ratios() == [0.25]


def test_processor_time_is_compared_over_all_runs() -> None:
    few_ticks = [Spent(1.0, 0.0), Spent(1.0, 0.02)]
    assert Figures(took(0.02, 0.02), few_ticks).cpu_ratio() == 1.0
    assert Figures(took(1, 1), took(4, 4), took(2, 2)).cpu_ratio() == 0.5
    assert Figures(took(1), [Spent(1.0, 0.0)]).cpu_ratio() == 0.0


def test_an_aim_is_met_or_not() -> None:
    figures = Figures(took(1, 9, 2), took(4, 4, 4))
    assert [Aim(ratio).met_by(figures) for ratio in (0.4, 0.5, 0.6)] == [False, True, True]
    assert [Aim(seconds=limit).met_by(figures) for limit in (1.9, 2.0)] == [False, True]
    assert NO_AIM.met_by(figures)


def test_times_have_three_digits() -> None:
    values = (123.4, 9.996, 9.99, 0.9996, 0.0456, 0.00999, 0.00123, 0.00000123)
    shown = ["123.4 s", "10.0 s", "9.99 s", "1.00 s", "46 ms", "10 ms", "1.2 ms", "1.23 us"]
    assert [table.seconds(value) for value in values] == shown


def test_rows_show_ratios_sizes_and_aims() -> None:
    job = jobs.Job("raw to zlib", lambda *_: Figures([], []), Aim(0.4))
    figures = Figures(took(1), took(4), took(2), "-m 16 -W", (105, 100), "a note")
    row = table.Row("to-zlib", job, figures)
    assert " ".join(table.line(row).split()) == (
        "to-zlib 1.00 s 4.00 s 2.00 s 0.25 0.50 (0.50..0.50) 0.50 size 1.050, 5 MiB, aim 0.4 MISSED, -m 16 -W, a note"
    )
    headings = "job | what | qcow2c | qemu-img | at its best | with | ratio | to its best | least..most | cpu | memory"
    failed = table.Row("other", job, Failed("why"))
    assert table.markdown([row, failed], "make bench", {"date": "today"}).splitlines()[2:] == [
        "- date: today",
        "",
        f"| {headings} | size | aim | met |",
        "|" + " --- |" * 14,
        "| to-zlib | raw to zlib (a note) | 1.00 s | 4.00 s | 2.00 s | `-m 16 -W` | 0.25 | 0.50 | 0.50..0.50 | 0.50 "
        "| 5 MiB | 1.050 | 0.4 | **no** |",
        "| other | raw to zlib | failed |" + "  |" * 11,
    ]


def test_each_begins_in_turn() -> None:
    order = []

    def runner(name: str) -> Callable[[], Spent]:
        def run() -> Spent:
            order.append(name)
            return Spent(len(order), 0.0)

        return run

    found = timing.in_turn([runner("a"), runner("b")], 2)
    assert [[spent.wall for spent in runs] for runs in found] == [[1, 4], [2, 3]]
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
