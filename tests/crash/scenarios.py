"""What is done to which images while the simulator records.

qemu-img makes the images where it is installed, so that any metadata can be there; otherwise `preparation.py` does.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import qcow2c
from qcow2c.errors import Qcow2Error
from qcow2c.format import derived, layout
from qcow2c.format.header import field_span
from qcow2c.storage.store import Store
from tests.profile import DEEP

from .model import SECTOR, DiskModel
from .preparation import HAVE_QEMU, qcow2c_img, qcow2c_io

KIB = 1024
BACKING_SEED = 5
IMAGE, DATA_FILE, BACKING_FILE = "image.qcow2", "data.raw", "backing.raw"

UNKNOWN_AUTOCLEAR = derived.AUTOCLEAR_FEATURES.reserved

FILLED = ("io", "write -P 17 0 40k", "write -P 18 60k 20k")
COMPRESSED = ("io", "write -c -P 4 0 64k")


@dataclass(frozen=True)
class Scenario:
    """An image, what qemu did to it, and how the recorded history is drawn.

    `weights` are letters: write, zero, discard, compress, flush. `reach` is the longest write in clusters, `cache`
    bounds the L2 tables in memory, `used_blocks` are refcount blocks that the allocator takes for full, and with
    `unknown_feature` an autoclear bit is set that nobody knows.
    """

    name: str
    options: str
    size: int
    before: tuple[tuple[str, ...], ...] = ()
    backing_size: int | None = None
    data_file: str = ""
    weights: str = "wwwwzzdcf"
    steps: int = 14
    reach: int = 4
    cache: int | None = None
    used_blocks: int = 0
    unknown_feature: bool = False

    @property
    def qemu_share(self) -> float:
        """The share of the states that qemu-img checks, too: all of small images, and all where there is time."""
        return 1 if DEEP or self.size <= 32 * KIB else 0.05

    def limit(self, image: qcow2c.Image) -> None:
        """Let an image that is written run into the limits of the scenario."""
        if self.cache:
            image.layer.l2_tables_limit = self.cache
        image.engine.allocator._scanned = self.used_blocks

    @property
    def hides_backing(self) -> bool:
        """Whether discarded clusters read as zeros, rather than stay as they are."""
        return self.backing_size is None or "compat=0.10" not in self.options


@dataclass(frozen=True)
class Prepared:
    """The files of a scenario before its history."""

    image: bytes
    data: bytes | None
    backing: bytes | None

    @property
    def stores(self) -> list[bytes]:
        return [self.image] if self.data is None else [self.image, self.data]

    def open(self, stores: list[Store], mode: str = "r") -> qcow2c.Image:
        """Open the image in other stores with the same backing file."""
        data_file = stores[1] if len(stores) > 1 else None
        backing = raw_image(self.backing) if self.backing is not None else None
        return qcow2c.open(stores[0], mode, data_file=data_file, backing=backing)


def raw_image(data: bytes) -> qcow2c.Image:
    """Return an image of one raw layer: an empty qcow2 image would not do, the sizes differ."""
    return _RawImage(data)


class _RawImage(qcow2c.Image):
    def __init__(self, data: bytes) -> None:
        from qcow2c.layers.layer import RawLayer
        from qcow2c.storage.sources import Memory

        self.layer = RawLayer(Memory(data))  # type: ignore[assignment]

    def __del__(self) -> None:
        """Nothing was opened."""


SCENARIOS = (
    Scenario("4k clusters", "cluster_size=4k", 128 * KIB, (FILLED,)),
    Scenario("version 2", "compat=0.10,cluster_size=512", 32 * KIB, (("io", "write -P 3 0 5k"),)),
    Scenario("1-bit refcounts", "cluster_size=512,refcount_bits=1", 64 * KIB, weights="wwwwcdff", steps=12),
    Scenario(
        "new refcount blocks of 1 bit",
        "cluster_size=512,refcount_bits=1",
        100 * KIB,
        weights="wwwwcdf",
        steps=10,
        used_blocks=1,
    ),
    Scenario("unknown autoclear bit", "cluster_size=512", 32 * KIB, weights="wzdf", steps=8, unknown_feature=True),
    Scenario(
        "growing refcount table",
        "cluster_size=512,refcount_bits=64",
        100 * KIB,
        weights="wwwwdf",
        steps=12,
        reach=40,
        used_blocks=64,
    ),
    Scenario("64k clusters", "cluster_size=64k", 1024 * KIB, (("io", "write -P 1 0 300k"),), steps=10),
    Scenario(
        "subclusters", "cluster_size=16k,extended_l2=on", 256 * KIB, (("io", "write -P 9 0 50k", "write -z 20k 4k"),)
    ),
    Scenario(
        "shared subclusters",
        "cluster_size=16k,extended_l2=on",
        256 * KIB,
        (("io", "write -P 9 0 50k", "write -z 20k 4k"), ("snapshot", "one"), ("io", "write -P 10 4k 1k")),
    ),
    Scenario("lazy refcounts", "cluster_size=4k,lazy_refcounts=on", 128 * KIB, (FILLED,)),
    Scenario("short backing file", "cluster_size=4k", 128 * KIB, backing_size=50 * KIB + 512),
    Scenario("version 2 over a backing file", "cluster_size=4k,compat=0.10", 128 * KIB, backing_size=50 * KIB + 512),
    Scenario("compressed clusters rewritten", "cluster_size=4k", 128 * KIB, (COMPRESSED,), weights="wwccccdf"),
    Scenario(
        "internal snapshots",
        "cluster_size=4k",
        128 * KIB,
        (FILLED, ("snapshot", "one"), ("io", "write -P 20 8k 8k"), ("snapshot", "two")),
    ),
    Scenario(
        "shared compressed clusters",
        "cluster_size=4k",
        128 * KIB,
        (COMPRESSED, ("snapshot", "one"), ("io", "write -P 20 8k 8k"), ("snapshot", "two")),
        weights="wwccdzf",
    ),
    Scenario(
        "freed clusters used again",
        "cluster_size=4k",
        64 * KIB,
        (("io", "write -P 4 0 64k"),),
        weights="wwddddzf",
        steps=20,
    ),
    Scenario("tiny cache", "cluster_size=512", 256 * KIB, (("io", "write -P 4 0 40k"),), cache=2, steps=25),
    Scenario(
        "lazy refcounts, snapshots and a tiny cache",
        "cluster_size=4k,lazy_refcounts=on",
        64 * KIB,
        (FILLED[:2], ("snapshot", "one")),
        cache=2,
        steps=10,
    ),
    Scenario("data file", "cluster_size=4k", 128 * KIB, (FILLED,), data_file="on", weights="wwwzzdf"),
    Scenario("raw data file", "cluster_size=4k", 128 * KIB, (FILLED,), data_file="raw", weights="wwwzzdf"),
    Scenario("bitmaps", "cluster_size=4k", 128 * KIB, (FILLED, ("bitmap", "4k", "one"), ("bitmap", "512", "two"))),
    Scenario("zstd", "cluster_size=4k,compression_type=zstd", 128 * KIB, (COMPRESSED,), weights="wcccdf"),
)


def prepare(scenario: Scenario, folder: Path) -> Prepared:
    """Make the files of a scenario with the real qemu-img and qemu-io, or with qcow2c where they are missing."""
    programs = {} if HAVE_QEMU else {"qemu-img": qcow2c_img, "qemu-io": qcow2c_io}

    def run(program: str, *words: str) -> None:
        if program in programs:
            programs[program](folder, *words)
        else:
            subprocess.run((program, *words), cwd=folder, check=True, stdout=subprocess.DEVNULL)

    options, backing, more = scenario.options, None, []
    if scenario.backing_size is not None:
        backing = random.Random(BACKING_SEED).randbytes(scenario.backing_size)
        (folder / BACKING_FILE).write_bytes(backing)
        more = ["-b", BACKING_FILE, "-F", "raw"]
    if scenario.data_file:
        options += f",data_file={DATA_FILE}" + (",data_file_raw=on" if scenario.data_file == "raw" else "")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *more, IMAGE, str(scenario.size))
    for kind, *words in scenario.before:
        if kind == "snapshot":
            run("qemu-img", "snapshot", "-c", *words, IMAGE)
        elif kind == "bitmap":
            run("qemu-img", "bitmap", "--add", "-g", words[0], IMAGE, words[1])
        else:
            run("qemu-io", "-f", "qcow2", *[part for word in words for part in ("-c", word)], IMAGE)
    image = bytearray((folder / IMAGE).read_bytes())
    if scenario.unknown_feature:
        where = field_span("autoclear_features")
        features = layout.integer(image[where.offset : where.end]) | UNKNOWN_AUTOCLEAR
        image[where.offset : where.end] = layout.stored_integer(features, where.length)
    data = (folder / DATA_FILE).read_bytes() if scenario.data_file else None
    return Prepared(bytes(image), data, backing)


class Player:
    """Does a drawn history to an image, and notes it in the model at the times of a clock.

    `failures` collects errors of the tree, after which the history goes on; without it they go through.
    """

    def __init__(
        self, image: qcow2c.Image, model: DiskModel, now: Callable[[], int], failures: list[Qcow2Error] | None = None
    ) -> None:
        self._image = image
        self._model = model
        self._now = now
        self._failures = failures

    def play(self, scenario: Scenario, seed: int) -> None:
        chooser = random.Random(seed)
        image, size, cluster = self._image, self._image.size(), self._image.geometry.cluster_size
        for _ in range(scenario.steps):
            action = chooser.choice(scenario.weights)
            unit = chooser.choice((1, 512, 512, cluster, cluster))
            longest = scenario.reach * cluster
            length = chooser.choice((512, 700, cluster // 2, longest // 2, longest // 4, chooser.randrange(1, longest)))
            if action in "dc":
                unit, length = cluster, chooser.choice((1, 1, 2, 3)) * cluster
            start = chooser.randrange(size) // unit * unit
            length = min(size - start, length)
            if action == "w":
                self._change(start, chooser.randbytes(length), image.pwrite)
            elif action == "z":
                unmap = chooser.random() < 0.5
                self._change(start, bytes(length), lambda data, at, u=unmap: image.write_zeroes(at, len(data), unmap=u))
            elif action == "c":
                data = bytes(chooser.choices(b"abcd", k=length))
                self._change(start, data, image.write_compressed)
            elif action == "f":
                self._flush()
            elif scenario.hides_backing:
                self._change(start, bytes(length), lambda data, at: image.discard(at, len(data)))
            else:
                image.discard(start, length)

    def _flush(self) -> None:
        try:
            self._image.flush()
        except Qcow2Error as error:
            self._failed(error)
        else:
            self._model.flushed(self._now())

    def _change(self, start: int, data: bytes, act: Callable[[bytes, int], object]) -> None:
        first, end = start // SECTOR * SECTOR, -(-(start + len(data)) // SECTOR) * SECTOR
        old = bytes(self._model.now[first:end])
        self._model.write(self._now(), start, data)
        try:
            act(data, start)
        except Qcow2Error as error:
            self._failed(error)
            new, found = self._model.now[first:end], self._image.pread(end - first, first)
            for at in range(0, len(found), SECTOR):
                sector = slice(at, at + SECTOR)
                assert found[sector] in (old[sector], new[sector]), f"neither old nor new at {first + at:#x}: {error}"
            self._model.write(self._now(), first, found)

    def _failed(self, error: Qcow2Error) -> None:
        if self._failures is None:
            raise error
        self._failures.append(error)
