#!/usr/bin/env python3
"""Make the seed images again with the real qemu-img and qemu-io.

Usage: make_seeds.py [FOLDER]      (default: seeds/ beside this file)

Each seed is stored gzip-compressed without a time stamp. All guest data is fixed; the dates of snapshots, the
LUKS keys and salts, and nothing else, differ between two runs. RECIPES.md says what each seed is for.
"""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

KIB, MIB = 1024, 1024 * 1024
SECRET = "seed passphrase"
SECRET_OBJECT = f"secret,id=s,data={SECRET}"


def img(*words: str) -> None:
    """Run qemu-img, whose own chatter is of no interest."""
    subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)


def create(path: Path, size: str, options: str, *more: str) -> None:
    img("create", "-q", "-f", "qcow2", "-o", options, *more, str(path), size)


def io(path: Path, *commands: str, fmt: str = "qcow2", image_opts: str = "") -> None:
    """Run qemu-io commands in order on one image."""
    words = ["qemu-io"]
    if image_opts:
        words += ["--object", SECRET_OBJECT, "--image-opts", image_opts]
    else:
        words += ["-f", fmt, str(path)]
    for command in commands:
        words += ["-c", command]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def text(length: int, seed: int) -> bytes:
    """Return bytes that compress to about a third: words drawn from a small vocabulary."""
    source = random.Random(seed)
    words = [source.randbytes(source.randrange(2, 9)) for _ in range(200)]
    out = bytearray()
    while len(out) < length:
        out += source.choice(words)
    return bytes(out[:length])


def write_raw(path: Path, pieces: dict[int, bytes], size: int) -> Path:
    with path.open("wb") as file:
        for offset, piece in pieces.items():
            file.seek(offset)
            file.write(piece)
        file.truncate(size)
    return path


def v2(folder: Path) -> None:
    path = folder / "v2.qcow2"
    create(path, "4M", "compat=0.10,cluster_size=4096")
    io(
        path,
        "write -P 0x11 0 12k",
        "write -P 0x12 2M 8k",
        "write -P 0x13 4190208 4k",
        "write -c -P 0x14 64k 4k",
    )


def v3(folder: Path) -> None:
    path = folder / "v3.qcow2"
    create(path, "8M", "compat=1.1,cluster_size=4096")
    io(
        path,
        "write -P 0x21 0 12k",
        "write -P 0x22 2M 8k",
        "write -z 3M 8k",
        "write -z -u 3080k 8k",
        "write -P 0x23 6M 4k",
        "write -P 0x24 8384512 4k",
    )


def c512(folder: Path) -> None:
    path = folder / "c512.qcow2"
    create(path, "256k", "cluster_size=512")
    io(path, "write -P 0x31 0 4k", "write -P 0x32 64k 1k", "write -P 0x33 261632 512", "write -z 128k 2k")


def c64k(folder: Path) -> None:
    path = folder / "c64k.qcow2"
    create(path, "1G", "cluster_size=65536")
    io(
        path,
        "write -P 0x41 0 64k",
        "write -P 0x42 512M 4k",
        "write -z 100M 128k",
        "write -P 0x43 1073737728 4k",
    )


def c2m(folder: Path) -> None:
    path = folder / "c2m.qcow2"
    create(path, "16M", "cluster_size=2M")
    io(path, "write -P 0x51 0 4k", "write -P 0x52 5M 4k")


def refcount_bits(bits: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / f"rc{bits}.qcow2"
        create(path, "2M", f"cluster_size=4096,refcount_bits={bits}")
        io(path, "write -P 0x61 0 20k", "write -P 0x62 1M 4k")

    return make


def compressed(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        raw = write_raw(folder / "raw", {0: text(40 * KIB, 7), 512 * KIB: text(12 * KIB, 8)}, MIB)
        path = folder / f"{kind}.qcow2"
        img(
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            f"cluster_size=4096,compression_type={kind}",
            str(raw),
            str(path),
        )
        raw.unlink()

    return make


def extended_l2(folder: Path) -> None:
    path = folder / "extl2.qcow2"
    create(path, "1M", "cluster_size=16384,extended_l2=on")
    io(
        path,
        "write -P 0x71 512 512",
        "write -P 0x72 4k 2k",
        "write -z 8k 1k",
        "write -P 0x73 32k 16k",
        "write -z 48k 16k",
        "write -c -P 0x74 64k 16k",
        "write -P 0x75 81k 512",
        "discard 35k 1k",
    )


def snapshots(folder: Path) -> None:
    path = folder / "snapshots.qcow2"
    create(path, "2M", "cluster_size=4096")
    io(path, "write -P 0x81 0 12k", "write -P 0x82 1M 4k")
    img("snapshot", "-c", "first", str(path))
    io(path, "write -P 0x83 4k 4k")
    img("resize", "-q", str(path), "4M")
    io(path, "write -P 0x84 3M 4k")
    img("snapshot", "-c", "second after the resize", str(path))
    io(path, "write -P 0x85 0 4k", "write -z 3M 4k")


def snapshots_v2(folder: Path) -> None:
    path = folder / "snapshots-v2.qcow2"
    create(path, "1M", "compat=0.10,cluster_size=4096")
    io(path, "write -P 0x86 0 8k")
    img("snapshot", "-c", "old", str(path))
    io(path, "write -P 0x87 0 4k")


def bitmaps(folder: Path) -> None:
    path = folder / "bitmaps.qcow2"
    create(path, "4M", "cluster_size=4096")
    img("bitmap", "--add", "-g", "4096", str(path), "dirty")
    img("bitmap", "--add", "--disable", "-g", "64k", str(path), "frozen")
    io(path, "write -P 0x91 0 8k", "write -P 0x92 2M 4k")


def luks(folder: Path) -> None:
    path = folder / "luks.qcow2"
    create(
        path,
        "256k",
        "cluster_size=4096,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,"
        "encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain64",
        "--object",
        SECRET_OBJECT,
    )
    io(path, "write -P 0xa1 0 8k", image_opts=f"driver=qcow2,file.filename={path},encrypt.key-secret=s")


def luks_serpent(folder: Path) -> None:
    path = folder / "luks-serpent.qcow2"
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=4096"
    create(path, "1M", f"{options},encrypt.cipher-alg=serpent-128,encrypt.hash-alg=sha512", "--object", SECRET_OBJECT)
    opts = f"driver=qcow2,file.filename={path},encrypt.key-secret=s"
    io(path, "write -P 0xa2 700k 512", image_opts=opts)


def legacy_aes(folder: Path) -> None:
    path = folder / "aes.qcow2"
    create(path, "256k", "cluster_size=4096,encrypt.format=aes,encrypt.key-secret=s", "--object", SECRET_OBJECT)
    io(
        path,
        "write -P 0xb1 0 8k",
        image_opts=f"driver=qcow2,file.filename={path},encrypt.format=aes,encrypt.key-secret=s",
    )


def backing(folder: Path) -> None:
    base = folder / "base.qcow2"
    create(base, "1M", "cluster_size=4096")
    io(base, "write -P 0xc1 0 64k")
    here = Path.cwd()
    os.chdir(folder)
    create(Path("overlay.qcow2"), "2M", "cluster_size=4096", "-b", "base.qcow2", "-F", "qcow2")
    create(Path("overlay-v2.qcow2"), "2M", "compat=0.10,cluster_size=4096", "-b", "base.qcow2", "-F", "qcow2")
    os.chdir(here)
    io(folder / "overlay.qcow2", "write -P 0xc2 4k 4k", "write -z 8k 4k", "write -P 0xc3 1M 4k")
    io(folder / "overlay-v2.qcow2", "write -P 0xc4 4k 4k")


def data_files(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)
    create(Path("datafile.qcow2"), "512k", "cluster_size=4096,data_file=datafile.data")
    create(Path("dataraw.qcow2"), "512k", "cluster_size=4096,data_file=dataraw.data,data_file_raw=on")
    for name in ("datafile", "dataraw"):
        io(Path(f"{name}.qcow2"), "write -P 0xd1 0 8k", "write -P 0xd2 256k 4k", "write -z 64k 4k")
    os.chdir(here)


MAKERS: tuple[Callable[[Path], None], ...] = (
    v2,
    v3,
    c512,
    c64k,
    c2m,
    refcount_bits(1),
    refcount_bits(64),
    compressed("zlib"),
    compressed("zstd"),
    extended_l2,
    snapshots,
    snapshots_v2,
    bitmaps,
    luks,
    luks_serpent,
    legacy_aes,
    backing,
    data_files,
)


def main() -> int:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "seeds").resolve()
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for make in MAKERS:
            make(folder)
        for path in sorted(folder.iterdir()):
            packed = target / (path.name + ".gz")
            packed.write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
            print(f"{path.name}: {path.stat().st_size} bytes, {packed.stat().st_size} packed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
