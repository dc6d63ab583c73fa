"""Run each job alternately with qemu-img and qcow2c, and print medians and ratios.

    python -m bench [--runs N] [--directory DIR] [JOB ...]

Inputs are made by qemu-img and qemu-io in DIR (default: a temporary directory) and are warm in the page cache. Whole
processes are timed, start-up included, except `pread`, which counts reads a second within one process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import qcow2c
from bench import writes

READS = 200_000
READ_SIZE = 4096
READ_DISK = 4 << 30


@dataclass(frozen=True)
class Figures:
    """What one job took, in the job's unit, run by run: ours, and the reference program's in the same minute."""

    ours: list[float]
    theirs: list[float]
    unit: str
    note: str = ""


def timed(command: list[str]) -> float:
    """Return the seconds of a whole process; its output is read and thrown away."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def alternate(ours: Callable[[], float], theirs: Callable[[], float], runs: int) -> tuple[list[float], list[float]]:
    """Return the figures of both, taken in turn after one warm-up each."""
    ours()
    theirs()
    pairs = [(ours(), theirs()) for _ in range(runs)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def ours(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "qcow2c", *arguments]


def commands(command: str, image: Path, runs: int, *options: str) -> Figures:
    """Time one command of both programs, and hold their JSON output equal."""
    mine = ours(command, *options, str(image))
    reference = ["qemu-img", command, *options, str(image)]
    outputs = [subprocess.run(each, check=True, capture_output=True).stdout for each in (mine, reference)]
    if json.loads(outputs[0]) != json.loads(outputs[1]):
        raise SystemExit(f"bench: {command}: the two programs disagree on {image}")
    return Figures(*alternate(lambda: timed(mine), lambda: timed(reference), runs), "s")


def small_image(directory: Path) -> Path:
    image = directory / "small.qcow2"
    if not image.exists():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
        subprocess.run(["qemu-io", "-c", "write -P 1 0 4M", image], check=True, capture_output=True)
    return image


def full_metadata(directory: Path) -> Path:
    """1 TiB with 16.8 million L2 entries; sparse, about 160 MiB on disk."""
    image = directory / "metadata.qcow2"
    if not image.exists():
        options = ["-q", "-f", "qcow2", "-o", "preallocation=metadata"]
        subprocess.run(["qemu-img", "create", *options, image, "1T"], check=True)
    return image


def full_data(directory: Path) -> Path:
    image = directory / "data.qcow2"
    if not image.exists():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(READ_DISK)], check=True)
        writes = [f"-cwrite -P {part + 1} {part}G 1G" for part in range(READ_DISK >> 30)]
        subprocess.run(["qemu-io", *writes, image], check=True, capture_output=True)
    return image


def info_job(directory: Path, runs: int) -> Figures:
    image = small_image(directory)
    nothing = [sys.executable, "-c", "pass"]
    figures = commands("info", image, runs, "--output=json")
    empty, mine = alternate(lambda: timed(nothing), lambda: timed(ours("info", str(image))), runs)
    note = f"`python -c pass` {statistics.median(empty) * 1000:.0f} ms, info {statistics.median(mine) * 1000:.0f} ms"
    return Figures(figures.ours, figures.theirs, "s", note)


def check_job(directory: Path, runs: int) -> Figures:
    return commands("check", full_metadata(directory), runs, "--output=json")


def small_check_job(directory: Path, runs: int) -> Figures:
    return commands("check", small_image(directory), runs, "--output=json")


def map_job(directory: Path, runs: int) -> Figures:
    return commands("map", full_metadata(directory), runs, "--output=json")


def pread_job(directory: Path, runs: int) -> Figures:
    """Random 4 KiB reads within a process; qemu-img bench strides over the image instead, one request at a time."""
    image = full_data(directory)
    offsets = [random.Random(seed).randrange(READ_DISK // READ_SIZE) * READ_SIZE for seed in range(READS)]

    def mine() -> float:
        with qcow2c.open(image) as disk:
            pread = disk.pread
            start = time.perf_counter()
            for offset in offsets:
                pread(READ_SIZE, offset)
            return READS / (time.perf_counter() - start)

    def theirs() -> float:
        stride = str(READ_DISK // READS // READ_SIZE * READ_SIZE * 7919)
        count = READS // 10
        command = ["qemu-img", "bench", "-f", "qcow2", "-c", str(count), "-d", "1", "-s", str(READ_SIZE), "-S", stride]
        seconds = timed([*command, str(image)])
        return count / seconds

    return Figures(*alternate(mine, theirs, runs), "reads/s")


def write_job(name: str) -> Callable[[Path, int], Figures]:
    """Return the job that times writes."""

    def job(directory: Path, runs: int) -> Figures:
        return Figures(*alternate(*writes.runners(writes.JOBS[name], directory), runs), "s")

    return job


JOBS = {
    "info": info_job,
    "check": check_job,
    "small-check": small_check_job,
    "map": map_job,
    "pread": pread_job,
    **{name: write_job(name) for name in writes.JOBS},
}


def report(name: str, figures: Figures) -> None:
    mine, reference = statistics.median(figures.ours), statistics.median(figures.theirs)
    digits = 0 if figures.unit == "reads/s" else 3
    ratios = [one / other for one, other in zip(figures.ours, figures.theirs, strict=True)]
    print(
        f"{name:19} {mine:12.{digits}f} {reference:12.{digits}f} {figures.unit:8} "
        f"{statistics.median(ratios):7.2f} ({min(ratios):.2f}..{max(ratios):.2f})  {figures.note}".rstrip(),
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description="Ratios against qemu-img, in one run.")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"which of {', '.join(JOBS)}; default: all")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each program (default: 5)")
    parser.add_argument("--directory", type=Path, help="where the inputs are made, and kept for the next time")
    arguments = parser.parse_args()
    unknown = set(arguments.jobs) - set(JOBS)
    if unknown:
        parser.error(f"no such job: {', '.join(sorted(unknown))}")
    if shutil.which("qemu-img") is None or shutil.which("qemu-io") is None:
        parser.error("qemu-img and qemu-io are needed (Debian: qemu-utils)")
    version = subprocess.run(["qemu-img", "--version"], check=True, capture_output=True, text=True).stdout.split()[2]
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, qemu-img {version}, medians of {arguments.runs}"
    )
    print(f"{'job':19} {'qcow2c':>12} {'qemu-img':>12} {'unit':8} {'ratio':>7} (least..most)")
    with tempfile.TemporaryDirectory(prefix="qcow2c-bench-") as temporary:
        directory = arguments.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        for name in arguments.jobs or JOBS:
            report(name, JOBS[name](directory, arguments.runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
