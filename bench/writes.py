"""Writes, side by side with the reference programs on one file system: each run on a new image, flushed at the end.

Ours are timed within the process, from opening the image to having closed it; qemu-io and qemu-img bench as whole
processes, which need about 20 ms to start and do the same: open, write, flush, close.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import qcow2c
from bench.timing import Runner, Spent, run, within

SMALL, LARGE = 4096, 1 << 20
RANDOM_DISK = 4 << 30
RANDOM_WRITES = 8192
SEQUENTIAL_DISK = 1 << 30
FLUSH_EVERY = 64


@dataclass(frozen=True)
class WriteJob:
    """What is written to which image; `flush_every` is 0 where only the end is flushed."""

    sequential: bool
    flush_every: int
    allocated: bool = False
    backing: bool = False

    @property
    def disk(self) -> int:
        return SEQUENTIAL_DISK if self.sequential else RANDOM_DISK

    @property
    def size(self) -> int:
        return LARGE if self.sequential else SMALL

    def offsets(self) -> Iterator[int]:
        if self.sequential:
            yield from range(0, self.disk, LARGE)
        else:
            chooser = random.Random(1)
            for _ in range(RANDOM_WRITES):
                yield chooser.randrange(self.disk // SMALL) * SMALL


JOBS = {
    f"{name}{suffix}": WriteJob(sequential, flush_every, **more)
    for name, sequential, more in (
        ("write-1m", True, {}),
        ("write-4k-new", False, {}),
        ("write-4k-old", False, {"allocated": True}),
        ("write-4k-over", False, {"backing": True}),
    )
    for suffix, flush_every in (("", 0), ("-flush", FLUSH_EVERY))
}


def runners(job: WriteJob, directory: Path) -> tuple[Runner, Runner]:
    """Return functions that do the job once with qcow2c, and with the reference program."""
    image = directory / "written.qcow2"
    template = _template(job, directory)

    def prepare() -> None:
        subprocess.run(["cp", "--sparse=always", template, image], check=True)
        os.sync()

    def ours() -> Spent:
        prepare()
        data = b"\1" * job.size
        with within() as spent:
            with qcow2c.open(image, "r+", gate="any") as disk:
                for number, offset in enumerate(job.offsets(), 1):
                    disk.pwrite(data, offset)
                    if job.flush_every and not number % job.flush_every:
                        disk.flush()
            return spent()

    def theirs() -> Spent:
        prepare()
        if job.sequential:
            count = str(job.disk // job.size)
            flush = [f"--flush-interval={job.flush_every}"] if job.flush_every else []
            words = ["qemu-img", "bench", "-q", "-w", "-f", "qcow2", "-c", count, "-d", "64", "-s", str(job.size)]
            with within() as more:
                written = run([*words, *flush, image])
                descriptor = os.open(image, os.O_RDWR)
                os.fdatasync(descriptor)
                os.close(descriptor)
                return Spent(more().wall, written.cpu + more().cpu)
        lines = []
        for number, offset in enumerate(job.offsets(), 1):
            lines.append(f"write -q -P 1 {offset} {job.size}")
            if job.flush_every and not number % job.flush_every:
                lines.append("flush")
        script = "\n".join([*lines, "flush", "quit"]) + "\n"
        return run(["qemu-io", "-t", "writeback", "-f", "qcow2", image], script=script)

    return ours, theirs


def _template(job: WriteJob, directory: Path) -> Path:
    """Return the image on which a job begins."""
    kind = "allocated" if job.allocated else "over" if job.backing else "new"
    template = directory / f"{kind}-{job.disk}.qcow2"
    if template.exists():
        return template
    options = ["-o", "preallocation=falloc"] if job.allocated else []
    if job.backing:
        base = directory / "base.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, str(job.disk)], check=True)
        filled = [f"-cwrite -q -P {part + 1} {part}G 256M" for part in range(job.disk >> 30)]
        subprocess.run(["qemu-io", *filled, base], check=True, stdout=subprocess.DEVNULL)
        options = ["-b", str(base.resolve()), "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, template, str(job.disk)], check=True)
    return template
