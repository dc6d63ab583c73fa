"""The 9P server with clients that people have: those of diod, and the kernel's where it has one."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qcow2c

MIB = 1 << 20
DIOD = pytest.mark.skipif(shutil.which("diodcat") is None, reason="diodcat, diodls (Debian: diod) are missing")


def _kernel_has_9p() -> bool:
    try:
        return "\t9p\n" in Path("/proc/filesystems").read_text(encoding="ascii")
    except OSError:
        return False


KERNEL = pytest.mark.skipif(not _kernel_has_9p(), reason="this kernel has no 9p file system")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    chooser = random.Random(9)
    qcow2c.create(tmp_path / "disk", 8 * MIB)
    with qcow2c.open(tmp_path / "disk", "r+") as image:
        for _ in range(10):
            image.pwrite(chooser.randbytes(70_000), chooser.randrange(7 * MIB))
        image.snapshots.create("one/two")
        image.pwrite(chooser.randbytes(100_000), MIB)
    return tmp_path / "disk"


def serve(script: str, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script while an image is served over TCP; `$port` is where."""
    script = f"set -e; port=${{uri##*!}}; {script}"
    command = [sys.executable, "-m", "qcow2c", "serve", "9p", "-p", "0", "--run", script, *map(str, words)]
    return subprocess.run(command, capture_output=True, check=False, timeout=120)


@DIOD
@pytest.mark.parametrize("message", ["1024", "65536"])
def test_diodcat_reads_the_disk_and_a_snapshot(message: str, disk: Path) -> None:
    with qcow2c.open(disk) as image, image.snapshots["one/two"].open() as before:
        expected = image.pread(8 * MIB, 0), before.pread(8 * MIB, 0)
    for name, content in zip(("data", "snapshots/one%2Ftwo"), expected, strict=True):
        done = serve(f"diodcat -m {message} -a / -s 127.0.0.1:$port {name}", disk)
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout == content


@DIOD
def test_diodls_lists_the_files(disk: Path) -> None:
    done = serve("diodls -a / -s 127.0.0.1:$port; diodls -l -a / -s 127.0.0.1:$port snapshots", disk)
    assert done.returncode == 0, done.stderr
    words = done.stdout.decode().split()
    assert words[:2] == ["data", "snapshots"] and words[-1] == "one%2Ftwo" and str(8 * MIB) in words
    assert "-r--r--r--" in {word.rstrip(".") for word in words}


@DIOD
def test_diodcat_is_told_that_there_is_no_such_file(disk: Path) -> None:
    done = serve("diodcat -a / -s 127.0.0.1:$port missing", disk)
    assert b"No such file" in done.stderr


@KERNEL
@pytest.mark.parametrize("version", ["9p2000", "9p2000.u", "9p2000.L"])
def test_kernel_mounts_it(version: str, disk: Path) -> None:
    place = disk.parent / "mounted"
    place.mkdir()
    script = f"""
        mount -t 9p -o trans=tcp,port=$port,version={version},access=any 127.0.0.1 {place}
        trap 'umount {place}' EXIT
        cmp {place}/data {disk.parent}/expected
        echo hello | dd of={place}/data conv=notrunc,fsync seek=3 bs=4096 status=none
    """
    with qcow2c.open(disk) as image:
        (disk.parent / "expected").write_bytes(image.pread(8 * MIB, 0))
    done = serve(script, "--rw", disk)
    assert done.returncode == 0, done.stderr
    with qcow2c.open(disk) as image:
        assert image.pread(6, 3 * 4096) == b"hello\n"
