"""The workshop of the real images: a folder with qemu-img and qemu-io bound to it, and what a recipe is."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.corpus.make_seeds import SECRET_OBJECT, text
from tests.corpus.patch import (
    Edit,
    write_sparse,
)

KIB, MIB = 1024, 1024 * 1024
IMAGE = "image.qcow2"


class Workshop:
    """One folder in which a recipe works, with the tools bound to it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self._numbers = count()

    def img(self, *words: str) -> None:
        subprocess.run(["qemu-img", *words], cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def io(self, *commands: str, name: str = IMAGE, opts: str = "") -> None:
        target = ["--object", SECRET_OBJECT, "--image-opts", opts] if opts else ["-f", "qcow2", name]
        words = ["qemu-io", *target, *(word for command in commands for word in ("-c", command))]
        subprocess.run(words, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def create(self, size: int, options: str = "", *more: str, name: str = IMAGE) -> None:
        with_options = ["-o", options] if options else []
        self.img("create", "-q", "-f", "qcow2", *with_options, *more, name, str(size))

    def raw(self, name: str, size: int, *pieces: tuple[int, bytes]) -> None:
        """Write a raw file of `size` bytes, holes between the pieces."""
        with (self.folder / name).open("wb") as file:
            for offset, content in pieces:
                file.seek(offset)
                file.write(content)
            file.truncate(size)

    def noise(self, length: int) -> bytes:
        return self.random.randbytes(length)

    def write(self, offset: int, length: int, *, flags: str = "") -> str:
        """Return a qemu-io command that writes fresh noise (compressible where `flags` hold -c)."""
        source = self.folder / f"noise{next(self._numbers)}"
        content = text(length, self.random.randrange(1 << 30)) if "-c" in flags else self.noise(length)
        source.write_bytes(content)
        return f"write {flags} -s {source} {offset} {length}"

    def scattered(self, size: int, grain: int, writes: int = 12) -> list[str]:
        """Return commands at random places: writes, zero writes, discards, on sectors around multiples of `grain`."""
        commands = []
        for number in range(writes):
            start = self.random.randrange(0, max(1, size // grain)) * grain
            start += self.random.choice((0, 0, 512, -512, grain // 2 & -512))
            length = self.random.choice((512, 1024, grain, grain + 512, 2 * grain))
            start = min(max(0, start), size - 512) & -512
            length = min(length, size - start) & -512
            kind = number % 6
            if kind < 4:
                commands.append(self.write(start, length))
            else:
                commands.append(f"write -z {start} {length}" if kind == 4 else f"discard {start} {length}")
        return commands

    def edit(self, *edits: Edit, name: str = IMAGE) -> None:
        """Patch the finished image byte by byte."""
        path = self.folder / name
        image = bytearray(path.read_bytes())
        for change in edits:
            change(image)
        write_sparse(path, image, 4096)


Build = Callable[[Workshop], None]


@dataclass(frozen=True)
class Recipe:
    """How one kind of image is made, and what qemu-img needs to know to read it.

    `snapshots` are the names to read as images. `sealed` images need the secret; qcow2c has no keys yet. `whole` is
    false for a disk too long to be read from end to end.
    """

    name: str
    build: Build
    snapshots: tuple[str, ...] = ()
    sealed: str = ""
    whole: bool = True


@dataclass
class RealImage:
    """A made image: its folder, its path, and its guest data as qemu-img converts it."""

    recipe: Recipe
    folder: Path
    _raw: dict[str, bytes] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / IMAGE

    def source(self) -> list[str]:
        """Return the words that name this image to qemu-img, run in its folder."""
        if self.recipe.sealed:
            opts = f"driver=qcow2,file.filename={IMAGE},encrypt.key-secret=s"
            opts += ",encrypt.format=aes" if self.recipe.sealed == "aes" else ""
            return ["--object", SECRET_OBJECT, "--image-opts", opts]
        return ["-f", "qcow2", IMAGE]

    def guest_data(self, snapshot: str = "") -> bytes:
        """Return the whole disk, or that of a snapshot cut or filled to the active size, by qemu-img convert."""
        if snapshot not in self._raw:
            choice = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
            self._raw[snapshot] = self._converted(*choice, *self.source())
        return self._raw[snapshot]

    def applied_snapshot(self, snapshot: str) -> bytes:
        """Return a snapshot's disk at its own size: qemu-img goes back to it in a copy and converts that."""
        copy = self.folder / "copy.qcow2"
        copy.write_bytes(self.path.read_bytes())
        subprocess.run(["qemu-img", "snapshot", "-a", snapshot, copy.name], cwd=self.folder, check=True)
        content = self._converted("-f", "qcow2", copy.name)
        copy.unlink()
        return content

    def _converted(self, *source: str) -> bytes:
        target = self.folder / "converted.raw"
        words = ["qemu-img", "convert", *source, "-O", "raw", target.name]
        subprocess.run(words, cwd=self.folder, check=True)
        content = target.read_bytes()
        target.unlink()
        return content


def _settle(file: Path) -> None:
    """Make a file durable: until then ext4 does not know its holes, and tells two programs different ones."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_image(recipe: Recipe, parent: Path) -> RealImage:
    """Make the image in a new folder below `parent`; one that could not be made leaves nothing behind."""
    folder = parent / recipe.name
    with TemporaryDirectory(dir=parent) as unfinished:
        shop = Workshop(Path(unfinished) / recipe.name, sum(recipe.name.encode()))
        shop.folder.mkdir()
        recipe.build(shop)
        for source in shop.folder.glob("noise*"):
            source.unlink()
        for file in shop.folder.iterdir():
            _settle(file)
        shop.folder.rename(folder)
    return RealImage(recipe, folder)
