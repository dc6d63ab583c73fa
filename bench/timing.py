"""Whole processes timed in turn, and the figures of a job. Knows no job and no image."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Runner = Callable[[], float]
"""Does a job once; returns seconds."""


class Failed(Exception):
    """A job cannot be judged: a program failed, or the two results are not equal."""


@dataclass(frozen=True)
class Figures:
    """What a job took in seconds, run by run: ours, and the reference program's in the same minute.

    `best` are the figures with the reference program's best flags, empty where there are none. `sizes` are the bytes
    of the two results, where they are compressed.
    """

    ours: Sequence[float]
    default: Sequence[float]
    best: Sequence[float] = ()
    flags: str = ""
    sizes: tuple[int, int] | None = None
    note: str = ""

    def ratios(self) -> list[float]:
        """Return ours over the reference program's defaults, run by run."""
        return [mine / reference for mine, reference in zip(self.ours, self.default, strict=True)]

    def best_ratios(self) -> list[float]:
        """Return ours over the reference program at its best, run by run: with its flags, or its defaults."""
        if not self.best or statistics.median(self.default) <= statistics.median(self.best):
            return self.ratios()
        return [mine / reference for mine, reference in zip(self.ours, self.best, strict=True)]


@dataclass(frozen=True)
class Aim:
    """What a job should reach: a ratio to the reference program at its best, or seconds."""

    ratio: float | None = None
    seconds: float | None = None

    def met_by(self, figures: Figures) -> bool:
        if self.ratio is not None and statistics.median(figures.best_ratios()) > self.ratio:
            return False
        return self.seconds is None or statistics.median(figures.ours) <= self.seconds


NO_AIM = Aim()


def qcow2c(*words: str | Path) -> list[str]:
    """Return our command line, with the interpreter that runs this program."""
    return [sys.executable, "-m", "qcow2c", *map(str, words)]


def qemu_img(*words: str | Path) -> list[str]:
    return ["qemu-img", *map(str, words)]


def run(command: Sequence[str | Path], *, output: Path | None = None, script: str | None = None) -> None:
    """Run a program to its end, with its output in a file (default: thrown away). Raises Failed with its last line."""
    words = [str(word) for word in command]
    # As installed: compiled once, whatever the environment says, and not in each run anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with open(output or os.devnull, "wb") as sink:
        done = subprocess.run(
            words,
            env=environment,
            input=None if script is None else script.encode(),
            stdin=subprocess.DEVNULL if script is None else None,
            stdout=sink,
            stderr=subprocess.PIPE,
            check=False,
        )
    if done.returncode:
        lines = os.fsdecode(done.stderr).strip().splitlines() or ["no message"]
        program = "qcow2c" if words[0] == sys.executable else Path(words[0]).name
        raise Failed(f"{program} left with status {done.returncode}: {lines[-1]}")


def timed(command: Sequence[str | Path], *, target: Path | None = None, output: Path | None = None) -> float:
    """Return the seconds of a whole process.

    Its target is removed and everything dirty is written out before: no program pays for what another one left.
    """
    if target is not None:
        target.unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    run(command, output=output)
    return time.perf_counter() - start


def in_turn(runners: Sequence[Runner], runs: int) -> list[list[float]]:
    """Return the seconds of each runner, `runs` times; each time another one begins."""
    seconds: list[list[float]] = [[] for _ in runners]
    for turn in range(runs):
        for step in range(len(runners)):
            which = (turn + step) % len(runners)
            seconds[which].append(runners[which]())
    return seconds
