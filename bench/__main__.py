"""Run each job alternately with qcow2c and qemu-img, and print medians and ratios.

Inputs are made once, in a directory that keeps them, and are in the page cache. Whole processes are timed, start-up
included, except reads and writes within an image: by the clock, and by what processors have worked (`cpu`).
qemu-img runs at its defaults and at its best flags: of those that
a job may choose from, the quickest in the warm-up. Results are held equal once for each job.

examples:
  python -m bench --size 256M --runs 3 'to-raw-*'
  python -m bench --directory build/bench --write docs/performance.md
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path

from bench import inputs, jobs, machine, table, timing
from bench.timing import Failed
from qcow2c.cli.sizes import parse_size

DEFAULT_RUNS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 if a job failed; one that misses its aim is no failure."""
    chosen, names = _arguments(sys.argv[1:] if argv is None else argv)
    with ExitStack() as stack:
        directory = chosen.directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qcow2c-bench-")))
        images = inputs.Inputs(directory, chosen.size)
        facts = machine.facts(images.directory)
        for name, value in facts.items():
            print(f"{name}: {value}")
        print(f"medians of {chosen.runs}, file system of {chosen.size >> 20} MiB\n{table.heading()}", flush=True)
        rows = []
        for name in names:
            rows.append(_row(name, images, chosen.runs, busy=chosen.busy))
            print(table.line(rows[-1]), flush=True)
        if chosen.write is not None:
            table.write(chosen.write, table.markdown(rows, _command(chosen), facts))
    return 1 if any(isinstance(row.result, Failed) for row in rows) else 0


def _row(name: str, images: inputs.Inputs, runs: int, *, busy: bool) -> table.Row:
    job = jobs.JOBS[name]
    try:
        with timing.busy(wanted=busy):
            return table.Row(name, job, job.work(images, runs))
    except Failed as failure:
        return table.Row(name, job, failure)


def _arguments(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the names of the jobs in the order of the table. Ends the program with a complaint."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"jobs: {', '.join(jobs.JOBS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="names or patterns; default: all")
    parser.add_argument(
        "--runs", type=int, default=DEFAULT_RUNS, help=f"counted runs of each program (default: {DEFAULT_RUNS})"
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where inputs are made and kept (default: a temporary one)"
    )
    parser.add_argument(
        "--size", type=parse_size, default=inputs.DEFAULT_SIZE, help="size of the file system (default: 4G)"
    )
    parser.add_argument("--busy", action="store_true", help="keep each processor busy with another process")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into a Markdown file")
    chosen = parser.parse_args(words)
    if chosen.runs < 1:
        parser.error(f"--runs {chosen.runs}: at least one")
    if chosen.size < inputs.SMALLEST_SIZE or chosen.size % inputs.MIB:
        parser.error(f"--size {chosen.size}: it must be whole MiB, and at least {inputs.SMALLEST_SIZE // inputs.MIB}")
    for pattern in chosen.jobs:
        if not any(fnmatchcase(name, pattern) for name in jobs.JOBS):
            parser.error(f"no such job: {pattern} (there are {', '.join(jobs.JOBS)})")
    missing = inputs.missing_programs()
    if missing:
        parser.error(f"not installed: {', '.join(missing)}")
    patterns = chosen.jobs or ["*"]
    return chosen, [name for name in jobs.JOBS if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _command(chosen: argparse.Namespace) -> str:
    """Return the command line that makes the table again; the directory is anybody's own."""
    options = ["--runs", str(chosen.runs), "--size", f"{chosen.size >> 20}M", "--directory", "DIR"]
    options += ["--busy"] if chosen.busy else []
    return shlex.join(["python", "-m", "bench", *options, *chosen.jobs])


if __name__ == "__main__":
    raise SystemExit(main())
