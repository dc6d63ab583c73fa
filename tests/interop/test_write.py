"""QEMU and qcow2c write to one image in turn; each reads what the other wrote, and both find it clean."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

import qcow2c
from tests.profile import DEEP

pytestmark = pytest.mark.usefixtures("requires_qemu")

KIB = 1024
ROUNDS = 40 if DEEP else 6
SEEDS = range(20) if DEEP else range(1)
IMAGE = "image.qcow2"


@dataclass(frozen=True)
class Kind:
    """One sort of image: creation options, and what it lies on."""

    options: str
    size: int = 1024 * KIB
    backing: str = ""
    """Format of the backing file, "" without one."""
    backing_size: int = 600 * KIB
    snapshot: bool = False

    @property
    def old(self) -> bool:
        return "compat=0.10" in self.options

    @property
    def compresses(self) -> bool:
        return "data_file" not in self.options


KINDS = {
    "plain": Kind("cluster_size=64k"),
    "4k": Kind("cluster_size=4k", size=1000 * KIB + 512),
    "512": Kind("cluster_size=512", size=300 * KIB),
    "2M": Kind("cluster_size=2M", size=9 * 1024 * KIB),
    "version 2": Kind("compat=0.10,cluster_size=4k"),
    "version 2 over raw": Kind("compat=0.10,cluster_size=4k", backing="raw"),
    "1 bit": Kind("cluster_size=4k,refcount_bits=1"),
    "2 bits": Kind("cluster_size=512,refcount_bits=2", size=200 * KIB),
    "64 bits": Kind("cluster_size=4k,refcount_bits=64"),
    "lazy": Kind("cluster_size=4k,lazy_refcounts=on"),
    "subclusters": Kind("cluster_size=16k,extended_l2=on"),
    "subclusters over qcow2": Kind("cluster_size=64k,extended_l2=on", backing="qcow2"),
    "over raw": Kind("cluster_size=64k", backing="raw", backing_size=500 * KIB + 512),
    "over a longer one": Kind("cluster_size=4k", backing="qcow2", backing_size=1500 * KIB),
    "zstd": Kind("cluster_size=4k,compression_type=zstd"),
    "data file": Kind("cluster_size=4k,data_file=data.bin"),
    "raw data file": Kind("cluster_size=4k,data_file=data.bin,data_file_raw=on"),
    "data file with subclusters": Kind("cluster_size=16k,extended_l2=on,data_file=data.bin"),
    "snapshots": Kind("cluster_size=4k", snapshot=True),
    "subclusters and snapshots": Kind("cluster_size=16k,extended_l2=on", snapshot=True),
    "version 2 and snapshots": Kind("compat=0.10,cluster_size=4k", snapshot=True),
}


class Bench:
    """One image, and what its disk must hold."""

    def __init__(self, kind: Kind, folder: Path, seed: int) -> None:
        self.kind = kind
        self.folder = folder
        self.chooser = random.Random(seed)
        self.model = bytearray(kind.size)
        self.snapshots: dict[str, bytes] = {}
        more = []
        if kind.backing:
            content = self.chooser.randbytes(kind.backing_size)
            (folder / "base.raw").write_bytes(content)
            if kind.backing == "qcow2":
                self.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2")
            more = ["-b", f"base.{kind.backing}", "-F", kind.backing]
            self.model[: min(kind.size, kind.backing_size)] = content[: kind.size]
        self.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", kind.options, *more, IMAGE, str(kind.size))
        with qcow2c.open(folder / IMAGE) as image:
            self.cluster = image.geometry.cluster_size

    def run(self, *words: str) -> None:
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "failed" not in done.stdout, (words, done.stdout, done.stderr)

    def place(self, *, aligned: bool = False) -> tuple[int, int]:
        """Return offset and length of a change, in whole sectors; near the borders of clusters more often than not."""
        size, unit = self.kind.size, self.cluster if aligned else 512
        start = self.chooser.randrange(size) // unit * unit
        if self.chooser.random() < 0.5:
            start = start // self.cluster * self.cluster
        length = self.chooser.choice((unit, 4 * unit, self.cluster, 3 * self.cluster, 8 * self.cluster)) // unit * unit
        return start, min(size - start, max(unit, length))

    def hidden(self, start: int, length: int) -> tuple[int, int]:
        """Return the whole clusters of a range, which a discard zeroes."""
        end = start + length
        stop = end if end == self.kind.size else end // self.cluster * self.cluster
        return -(-start // self.cluster) * self.cluster, stop

    def let_qemu_write(self) -> None:
        commands = []
        for _ in range(self.chooser.randrange(1, 6)):
            action = self.chooser.choice(("write", "write", "zero", "unmap", "discard", "compress"))
            start, length = self.place(aligned=action in ("discard", "compress"))
            value = self.chooser.randrange(1, 255)
            if action == "compress" and self.kind.compresses:
                length = min(self.cluster, self.kind.size - start)
                if not commands and length == self.cluster and not self.allocated(start):
                    commands.append(f"write -c -P {value} {start} {length}")
                    self.model[start : start + length] = bytes([value]) * length
            elif action == "discard" and not (self.kind.old and self.kind.backing):
                first, end = self.hidden(start, length)
                commands.append(f"discard {start} {length}")
                if first < end:
                    self.model[first:end] = bytes(end - first)
            elif action in ("zero", "unmap"):
                commands.append(f"write -z {'-u ' if action == 'unmap' else ''}{start} {length}")
                self.model[start : start + length] = bytes(length)
            else:
                commands.append(f"write -P {value} {start} {length}")
                self.model[start : start + length] = bytes([value]) * length
        if commands:
            self.run("qemu-io", "-f", "qcow2", "-d", "unmap", *[w for c in commands for w in ("-c", c)], IMAGE)

    def allocated(self, start: int) -> bool:
        """Tell where QEMU would refuse to compress; known only before the commands that are not run yet."""
        with qcow2c.open(self.folder / IMAGE) as image:
            return image.layer.run_at(start, 1).kind.name not in ("UNALLOCATED", "ZERO")

    def write(self) -> None:
        with qcow2c.open(self.folder / IMAGE, "r+") as image:
            for _ in range(self.chooser.randrange(1, 8)):
                action = self.chooser.choice(("write", "write", "write", "zero", "discard", "compress", "flush"))
                start, length = self.place(aligned=action == "compress")
                if action == "compress" and self.kind.compresses:
                    data = bytes(self.chooser.choices(b"abc", k=length))
                    image.write_compressed(data, start)
                    self.model[start : start + length] = data
                elif action == "discard":
                    image.discard(start, length)
                    first, end = self.hidden(start, length)
                    if first < end and not (self.kind.old and self.kind.backing):
                        self.model[first:end] = bytes(end - first)
                elif action == "zero":
                    image.write_zeroes(start, length, unmap=self.chooser.random() < 0.5)
                    self.model[start : start + length] = bytes(length)
                elif action == "flush":
                    image.flush()
                else:
                    data = self.chooser.randbytes(length)
                    image.pwrite(data, start)
                    self.model[start : start + length] = data
            assert image.pread(image.size(), 0) == self.model

    def take_snapshot(self) -> None:
        name = f"s{len(self.snapshots)}"
        self.run("qemu-img", "snapshot", "-c", name, IMAGE)
        self.snapshots[name] = bytes(self.model)

    def judge(self) -> None:
        """Both programs read the same, of the disk and of each snapshot, and find nothing wrong."""
        self.run("qemu-img", "check", "-f", "qcow2", IMAGE)
        assert qcow2c.check(self.folder / IMAGE).exit_code == 0
        with qcow2c.open(self.folder / IMAGE) as image:
            assert image.pread(image.size(), 0) == self.model
            for name, content in self.snapshots.items():
                with image.snapshots[name].open() as snapshot:
                    assert snapshot.pread(snapshot.size(), 0) == content
        (self.folder / "model.raw").write_bytes(self.model)
        self.run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", "model.raw", IMAGE)
        if "data_file_raw" in self.kind.options:
            self.run("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", "model.raw", "data.bin")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_two_writers_take_turns(kind: Kind, seed: int, tmp_path: Path) -> None:
    bench = Bench(kind, tmp_path, seed)
    for number in range(ROUNDS):
        bench.let_qemu_write()
        bench.judge()
        bench.write()
        bench.judge()
        if kind.snapshot and number % 3 == 1:
            bench.take_snapshot()
