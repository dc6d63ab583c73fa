"""docs/inside.md is true: its examples run, in their order, on a disk with partitions, and print what they say."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import qcow2c
from tests.conftest import IN_CI
from tests.test_readme import blocks_of, missing_line

MIB = 1 << 20
FAT_AT, FAT_SIZE = MIB, 16 * MIB
EXT_AT, EXT_SIZE = FAT_AT + FAT_SIZE, 32 * MIB
SIZE = EXT_AT + EXT_SIZE


def partition(kind: int, start: int, size: int) -> bytes:
    """Return an entry of a partition table of the first sector."""
    return struct.pack("<B3sB3sII", 0, bytes(3), kind, bytes(3), start // 512, size // 512)


def ext(folder: Path, hostname: str) -> bytes:
    """Return a Linux file system with one file."""
    (folder / "root" / "etc").mkdir(parents=True, exist_ok=True)
    (folder / "root" / "etc" / "hostname").write_text(hostname)
    made = folder / "ext"
    made.unlink(missing_ok=True)
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    command = ["mke2fs", "-q", "-t", "ext4", "-d", folder / "root", made, f"{EXT_SIZE >> 10}k"]
    subprocess.run(command, env=environment, check=True)
    return made.read_bytes()


def make_disk(folder: Path) -> None:
    from pyfatfs.PyFat import PyFat
    from pyfatfs.PyFatFS import PyFatFS

    fat = folder / "fat"
    fat.write_bytes(b"")
    maker = PyFat()
    maker.mkfs(str(fat), PyFat.FAT_TYPE_FAT16, FAT_SIZE)
    maker.close()
    with PyFatFS(str(fat)) as boot:
        boot.writebytes("/README.TXT", b"boot here\n")
    table = partition(6, FAT_AT, FAT_SIZE) + partition(0x83, EXT_AT, EXT_SIZE) + bytes(32)
    qcow2c.create(folder / "vm.qcow2", SIZE)
    with qcow2c.open(folder / "vm.qcow2", "r+") as image:
        image.pwrite(bytes(446) + table + b"\x55\xaa", 0)
        image.pwrite(fat.read_bytes(), FAT_AT)
        image.pwrite(ext(folder, "installer\n"), EXT_AT)
        image.snapshots.create("installed")
        image.pwrite(ext(folder, "guest\n"), EXT_AT)


def make_disc(folder: Path) -> None:
    import pycdlib

    disc = pycdlib.PyCdlib()
    disc.new()
    disc.add_fp(io.BytesIO(b"hello\n"), 6, "/HELLO.TXT;1")
    with open(folder / "cd.iso", "wb") as file:
        disc.write_fp(file)
    disc.close()
    qcow2c.convert(folder / "cd.iso", folder / "cd.qcow2", output_format="qcow2")


def test_each_example_prints_what_it_says(project_root: Path, tmp_path: Path) -> None:
    if shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None and not IN_CI:
        pytest.skip("mke2fs is not installed: no guest's file system is looked into")
    make_disk(tmp_path)
    make_disc(tmp_path)
    examples = [block for block in blocks_of((project_root / "docs" / "inside.md").read_text()) if block.promised]
    assert len(examples) == 6
    for example in examples:
        done = subprocess.run(
            [sys.executable, "-W", "always::ResourceWarning", "-c", example.source],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(project_root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and "unclosed" not in done.stderr, (example.line, done.stderr)
        assert example.promised is not None
        assert missing_line(done.stdout, example.promised) is None, (example.line, done.stdout)
