"""The commands of qemu-img and qemu-io that prepare an image, done by qcow2c where those programs are missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import qcow2c
from qcow2c.cli.sizes import parse_size

ROOT = Path(__file__).resolve().parent.parent.parent

HAVE_QEMU = shutil.which("qemu-img") is not None and shutil.which("qemu-io") is not None


def qcow2c_img(folder: Path, *words: str) -> None:
    """Do what qemu-img does with these words."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from qcow2c.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def qcow2c_io(folder: Path, *words: str) -> None:
    """Do what qemu-io does with `-f qcow2 -c COMMAND ... IMAGE`, of which each command writes."""
    commands = [words[index + 1] for index, word in enumerate(words) if word == "-c"]
    with qcow2c.open(folder / words[-1], "r+") as image:
        for command in commands:
            _write(image, command.split())


def _write(image: qcow2c.Image, words: list[str]) -> None:
    """Do `write [-z] [-c] [-P BYTE] OFFSET LENGTH`."""
    offset, length = (parse_size(word) for word in words[-2:])
    options = words[1:-2]
    data = bytes([int(options[options.index("-P") + 1])]) * length if "-P" in options else b""
    if "-z" in options:
        image.write_zeroes(offset, length)
    elif "-c" not in options:
        image.pwrite(data, offset)
    else:
        step = image.geometry.cluster_size
        for start in range(0, length, step):
            image.write_compressed(data[start : start + step], offset + start)
