"""Whole processes timed in turn, and the figures of a job. Knows no job and no image."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Spent(NamedTuple):
    """What a job took: seconds on the clock, seconds of processors (user and system), bytes of memory at its peak.

    Memory is 0 where it is not that of a process of its own.
    """

    wall: float
    cpu: float
    memory: int = 0


Runner = Callable[[], Spent]
"""Does a job once."""


class Failed(Exception):
    """A job cannot be judged: a program failed, or the two results are not equal."""


@dataclass(frozen=True)
class Figures:
    """What a job took, run by run: ours, and the reference program's in the same minute.

    `best` are the figures with the reference program's best flags, empty where there are none. `sizes` are the bytes
    of the two results, where they are compressed.
    """

    ours: Sequence[Spent]
    default: Sequence[Spent]
    best: Sequence[Spent] = ()
    flags: str = ""
    sizes: tuple[int, int] | None = None
    note: str = ""

    def ratios(self) -> list[float]:
        """Return ours over the reference program's defaults, run by run."""
        return [mine.wall / reference.wall for mine, reference in zip(self.ours, self.default, strict=True)]

    def best_ratios(self) -> list[float]:
        """Return ours over the reference program at its best, run by run: with its flags, or its defaults."""
        return [mine.wall / reference.wall for mine, reference in zip(self.ours, self._at_its_best(), strict=True)]

    def cpu_ratio(self) -> float:
        """Return the ratio of processor time to the same runs, of all together: a short run has few ticks."""
        theirs = sum(run.cpu for run in self._at_its_best())
        return sum(run.cpu for run in self.ours) / theirs if theirs else 0.0

    def memory(self) -> int:
        """Return the most that one of our runs took, in bytes."""
        return max((run.memory for run in self.ours), default=0)

    def _at_its_best(self) -> Sequence[Spent]:
        if not self.best or median_wall(self.default) <= median_wall(self.best):
            return self.default
        return self.best


@dataclass(frozen=True)
class Aim:
    """What a job should reach: a ratio to the reference program at its best, or seconds."""

    ratio: float | None = None
    seconds: float | None = None

    def met_by(self, figures: Figures) -> bool:
        if self.ratio is not None and statistics.median(figures.best_ratios()) > self.ratio:
            return False
        return self.seconds is None or median_wall(figures.ours) <= self.seconds


NO_AIM = Aim()


def median_wall(runs: Sequence[Spent]) -> float:
    return statistics.median(run.wall for run in runs)


def qcow2c(*words: str | Path) -> list[str]:
    """Return our command line, with the interpreter that runs this program."""
    return [sys.executable, "-m", "qcow2c", *map(str, words)]


def qemu_img(*words: str | Path) -> list[str]:
    return ["qemu-img", *map(str, words)]


def run(command: Sequence[str | Path], *, output: Path | None = None, script: str | None = None) -> Spent:
    """Run a program to its end, with its output in a file (default: thrown away). Raises Failed with its last line."""
    words = [str(word) for word in command]
    # As installed: compiled once, whatever the environment says, and not in each run anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with open(output or os.devnull, "wb") as sink, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as text:
        text.write((script or "").encode())
        text.seek(0)
        start = time.perf_counter()
        process = subprocess.Popen(words, env=environment, stdin=text, stdout=sink, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = os.fsdecode(said.read()).strip().splitlines() or ["no message"]
    if process.returncode:
        program = "qcow2c" if words[0] == sys.executable else Path(words[0]).name
        raise Failed(f"{program} left with status {process.returncode}: {lines[-1]}")
    return Spent(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def timed(
    command: Sequence[str | Path], *, target: Path | None = None, output: Path | None = None, overwrite: bool = False
) -> Spent:
    """Return what a whole process takes.

    Its target is removed, unless it is there to be overwritten, and everything dirty is written out before: no
    program pays for what another one left.
    """
    if target is not None and not overwrite:
        target.unlink(missing_ok=True)
    os.sync()
    return run(command, output=output)


@contextmanager
def within() -> Iterator[Callable[[], Spent]]:
    """Give what returns the time since the beginning of the block, in this process."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)

    def spent() -> Spent:
        now = resource.getrusage(resource.RUSAGE_SELF)
        cpu = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
        return Spent(time.perf_counter() - start, cpu)

    yield spent


def in_turn(runners: Sequence[Runner], runs: int) -> list[list[Spent]]:
    """Return what each runner takes, `runs` times; each time another one begins."""
    found: list[list[Spent]] = [[] for _ in runners]
    for turn in range(runs):
        for step in range(len(runners)):
            which = (turn + step) % len(runners)
            found[which].append(runners[which]())
    return found


@contextmanager
def busy(*, wanted: bool) -> Iterator[None]:
    """Keep each processor busy with a process that only computes, if that is wanted."""
    burning = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burning) for _ in range(os.cpu_count() or 1)] if wanted else []
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
