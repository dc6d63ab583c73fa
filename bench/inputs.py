"""The images that the jobs read, made by mkfs.ext4, qemu-img and qemu-io: each once, when first asked for.

All are views of one ext4 file system of real files, except those of full metadata, which hold no data. An image has
its name only when it is complete.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import qcow2c
from bench import staging
from bench.timing import Failed, qemu_img, run

MIB = 1 << 20
DEFAULT_SIZE = 4 << 30
SMALLEST_SIZE = 16 * MIB

METADATA_FACTOR = 256
"""How much larger the disk of full metadata is than the file system: 1 TiB by default."""

EXTENT_CLUSTERS = 10
"""Clusters in a row of the fragmented image: 1.7 million extents by default."""

SNAPSHOTS = 5
SNAPSHOT = "s1"
_SCATTERED = 256 * 1024
_SYSTEM_PROGRAMS = ("/usr/sbin", "/sbin")

_OPTIONS = {
    "plain": [],
    "zlib": ["-c"],
    "zstd": ["-c", "-o", "compression_type=zstd"],
    "4k": ["-o", "cluster_size=4k"],
    "extended": ["-o", "extended_l2=on"],
}
"""Images that are one conversion of the file system."""


def missing_programs() -> list[str]:
    """Return what is needed and not installed, with the Debian package."""
    wanted = {"qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "mkfs.ext4": "e2fsprogs"}
    return [f"{name} (Debian: {package})" for name, package in wanted.items() if _program(name) is None]


def _program(name: str) -> str | None:
    """Return a program, where users do not have the system's directories on their path, too."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(_SYSTEM_PROGRAMS))


class Inputs:
    """The images of one size, in a directory of their own within `directory`."""

    def __init__(self, directory: Path, size: int = DEFAULT_SIZE) -> None:
        if size < SMALLEST_SIZE or size % MIB:
            raise ValueError(f"a size of {size} bytes: it must be whole MiB, and at least {SMALLEST_SIZE // MIB}")
        self.size = size
        self.metadata_size = size * METADATA_FACTOR
        self.directory = directory / f"{size // MIB}M"
        self.directory.mkdir(parents=True, exist_ok=True)

    def raw(self) -> Path:
        """The file system."""
        return self._made("fs.raw", self._make_file_system)

    def image(self, kind: str) -> Path:
        """The file system as qcow2: plain, zlib, zstd, 4k or extended; chain, snapshots."""
        if kind == "chain":
            return self._chain()
        if kind == "snapshots":
            return self._made("snapshots.qcow2", self._make_snapshots)

        def make(image: Path) -> None:
            # In the order of the disk, as the program writes by default; -m lets threads compress.
            run(qemu_img("convert", "-f", "raw", "-O", "qcow2", "-m", "16", *_OPTIONS[kind], self.raw(), image))

        return self._made(f"{kind}.qcow2", make)

    def encrypted(self, kind: str) -> Path:
        """The file system as an encrypted image, by LUKS or legacy AES; made here, where no header fails at random."""

        def make(image: Path) -> None:
            qcow2c.convert(
                self.raw(),
                image,
                output_format="qcow2",
                image_format="raw",
                encryption=qcow2c.Encryption(kind, "passphrase", iter_time_ms=10),
            )

        return self._made(f"encrypted-{kind}.qcow2", make)

    def small(self) -> Path:
        """A disk of 64 MiB with 4 MiB of data."""

        def make(image: Path) -> None:
            run(qemu_img("create", "-q", "-f", "qcow2", image, "64M"))
            run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", image])

        return self._made("small.qcow2", make)

    def metadata(self) -> Path:
        """A disk with each cluster allocated, and no data: 16.8 million L2 entries by default."""

        def make(image: Path) -> None:
            options = ["-q", "-f", "qcow2", "-o", "preallocation=metadata"]
            run(qemu_img("create", *options, image, str(self.metadata_size)))

        return self._made("metadata.qcow2", make)

    def fragmented(self) -> Path:
        """The same, with its clusters shuffled, a few in a row."""

        def make(image: Path) -> None:
            run(["cp", "--sparse=always", self.metadata(), image])
            shuffle(image)

        return self._made("fragmented.qcow2", make)

    def with_snapshot(self) -> Path:
        """Full metadata that a snapshot shares, but for what was written afterwards all over the disk."""

        def make(image: Path) -> None:
            run(["cp", "--sparse=always", self.metadata(), image])
            run(qemu_img("snapshot", "-c", SNAPSHOT, image))
            self._scatter(image, self.size // 40, seed=1, over=self.metadata_size)

        return self._made("metadata-snapshot.qcow2", make)

    def overlay(self) -> Path:
        """A layer over the disk of full metadata, with writes all over it."""

        def make(image: Path) -> None:
            base = self.metadata()
            run(qemu_img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", image))
            self._scatter(image, self.size // 40, seed=2, over=self.metadata_size)

        return self._made("metadata-overlay.qcow2", make)

    def _chain(self) -> Path:
        """Two layers over the plain image; a quarter of the disk is written in each."""
        below = self.image("plain")
        for layer in (1, 2):

            def make(image: Path, below: Path = below, layer: int = layer) -> None:
                options = ["-q", "-f", "qcow2", "-b", below.name, "-F", "qcow2"]
                run(qemu_img("create", *options, image, str(self.size)))
                self._scatter(image, self.size // 4, seed=layer)

            below = self._made(f"chain-{layer}.qcow2", make)
        return below

    def _make_snapshots(self, image: Path) -> None:
        """The plain image with snapshots s1 to s5; a twentieth of the disk is overwritten after each."""
        run(["cp", "--sparse=always", self.image("plain"), image])
        for number in range(1, SNAPSHOTS + 1):
            run(qemu_img("snapshot", "-c", f"s{number}", image))
            self._scatter(image, self.size // 20, seed=100 + number)

    def _scatter(self, image: Path, amount: int, seed: int, over: int | None = None) -> None:
        """Write pieces all over the disk, each of a byte of its own."""
        chooser = random.Random(seed)
        places = range(0, over or self.size, _SCATTERED)
        chosen = chooser.sample(places, amount // _SCATTERED)
        lines = [f"write -q -P {chooser.randrange(1, 256)} {offset} {_SCATTERED}" for offset in chosen]
        run(["qemu-io", "-t", "unsafe", "-f", "qcow2", image], script="\n".join([*lines, "quit", ""]))

    def _make_file_system(self, image: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="files-", dir=self.directory) as folder:
            limit, files = staging.most_bytes(self.size), staging.most_files(self.size)
            if not staging.fill(Path(folder), limit, files):
                raise Failed("there are no files to fill a file system with")
            with open(image, "wb") as file:
                file.truncate(self.size)
            layout = ["-b", str(staging.BLOCK), "-i", str(staging.BYTES_PER_INODE), "-m", "0"]
            run([_program("mkfs.ext4") or "mkfs.ext4", "-q", "-F", *layout, "-d", folder, image])

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return an image; it is made if it is not there."""
        image = self.directory / name
        if image.exists():
            return image
        free = shutil.disk_usage(self.directory).free
        if free < 3 * self.size:
            raise Failed(f"{free // MIB} MiB free for the image and two copies of it, {3 * self.size // MIB} needed")
        unfinished = image.with_name(f"{name}.part")
        unfinished.unlink(missing_ok=True)
        try:
            make(unfinished)
            print(f"made {name}", file=sys.stderr, flush=True)
            return unfinished.rename(image)
        finally:
            unfinished.unlink(missing_ok=True)


def shuffle(image: Path) -> None:
    """Exchange the clusters of a fully allocated image, some in a row; it stays valid."""
    import numpy as np

    from qcow2c import structs
    from qcow2c.format import layout, tables
    from qcow2c.format.header import Header
    from qcow2c.storage.sources import open_store

    store = open_store(image, writable=True)
    try:
        header = Header.load(store)
        l1 = layout.words(store.pread(header.l1_size * structs.L1_ENTRY.sizeof(), header.l1_table_offset))
        offsets = [word & tables.L1_OFFSET for word in l1]
        entries = np.stack([tables.native(store.pread(header.cluster_size, offset)) for offset in offsets])
        rows = int(np.count_nonzero(entries)) // EXTENT_CLUSTERS
        shuffled = entries.reshape(-1)[: rows * EXTENT_CLUSTERS].reshape(rows, EXTENT_CLUSTERS)  # Views, both.
        shuffled[:] = np.random.default_rng(1).permutation(shuffled)
        for offset, table in zip(offsets, entries, strict=True):
            store.pwrite(table.astype(">u8").tobytes(), offset)
        store.flush()
    finally:
        store.close()
