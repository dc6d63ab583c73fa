"""Files that are no image, images that end too soon, and things that are no regular file."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Literal

from .case import HostileCase
from .patch import cut, literal, patched, seed_bytes


def not_qcow2(name: str, content: bytes) -> HostileCase:
    """Not a qcow2 image: `info` and `check` without -f see a raw file there, so only -f qcow2 is a rule."""
    return HostileCase(name, literal(content))


def fifo(folder: Path) -> Path:
    path = folder / "image.qcow2"
    os.mkfifo(path)
    return path


def directory(folder: Path) -> Path:
    path = folder / "image.qcow2"
    path.mkdir()
    return path


def dangling(folder: Path) -> Path:
    path = folder / "image.qcow2"
    path.symlink_to("nowhere")
    return path


def symlink_to_itself(folder: Path) -> Path:
    path = folder / "image.qcow2"
    path.symlink_to("image.qcow2")
    return path


def unreadable_name(folder: Path) -> Path:
    """A good image whose name holds escapes and bytes that are no UTF-8."""
    path = folder / os.fsdecode(b"\x1b[31m\xff\n.qcow2")
    path.write_bytes(seed_bytes("v3.qcow2"))
    return path


FILES = [
    not_qcow2("empty-file", b""),
    not_qcow2("text-file", b"This is a text file, not an image.\n" * 20),
    not_qcow2("all-zeros", bytes(65536)),
    not_qcow2("all-ones", b"\xff" * 65536),
    not_qcow2("random-bytes", random.Random(4).randbytes(65536)),
    not_qcow2("qcow1", struct.pack(">4sI", b"QFI\xfb", 1) + bytes(4096)),
    not_qcow2("magic-alone", b"QFI\xfb"),
    not_qcow2("magic-and-ones", b"QFI\xfb" + b"\xff" * 4096),
    not_qcow2("magic-version-3-and-zeros", struct.pack(">4sI", b"QFI\xfb", 3) + bytes(4096)),
    not_qcow2("vmdk", b"KDMV" + bytes(4096)),
    not_qcow2("vhdx", b"vhdxfile" + bytes(4096)),
    not_qcow2(
        "vdi",
        b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe" + bytes(4096),
    ),
    not_qcow2("gzip-of-an-image", b"\x1f\x8b\x08" + bytes(100)),
    HostileCase("image-is-a-fifo", fifo, expect="error", check="error", askable=False),
    HostileCase("image-is-a-directory", directory, expect="error", check="error"),
    HostileCase("image-is-a-dangling-link", dangling, expect="error", check="error"),
    HostileCase("image-is-a-link-to-itself", symlink_to_itself, expect="error", check="error"),
    HostileCase("image-name-with-escapes", unreadable_name, expect="opens", check="clean"),
]

# At odd bytes, and at each structure boundary of the seeds (4 KiB: header, table, block, L1, L2, data).
LENGTHS = {
    "v3": (1, 3, 4, 71, 72, 103, 104, 111, 112, 511, 513, 4096, 8192, 8200, 12288, 16384, 20481),
    "v2": (71, 72, 4097),
    "snapshots": (20480, 40000),
    "bitmaps": (28672, 40961),
    "luks": (5000, 300_000),
    "zlib": (20480, 24577),
}


def truncated(seed: str, length: int) -> HostileCase:
    """A header that is not all there is an error, whatever lies behind it."""
    verdict: Literal["error", "any"] = "error" if length < (72 if seed == "v2" else 104) else "any"
    return HostileCase(f"cut-{seed}-at-{length}", patched(seed, cut(length)), expect=verdict, check=verdict)


TRUNCATED = [truncated(seed, length) for seed, lengths in LENGTHS.items() for length in lengths]

CASES: list[HostileCase] = [*FILES, *TRUNCATED]
