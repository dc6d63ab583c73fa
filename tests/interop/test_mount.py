"""The kernel's own programs over FUSE: loop devices, ext4, cp, fallocate, and what a kill leaves."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import qcow2c
from tests.conftest import IN_CI

MIB = 1 << 20
SIZE = 64 * MIB


def _missing() -> str:
    """Return what keeps FUSE from being tried here, "" if nothing does."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as exc:
        return f"/dev/fuse cannot be opened ({exc.strerror}): nothing is mounted"
    if os.geteuid() != 0:
        return "only root may mount here: nothing is mounted"
    if shutil.which("fusermount3") is None and not IN_CI:
        return "fuse3 is not installed: nothing is mounted"
    return ""


pytestmark = [
    pytest.mark.skipif(bool(_missing()), reason=_missing()),
    pytest.mark.usefixtures("requires_qemu"),
]
COMMAND = [sys.executable, "-m", "qcow2c", "mount"]


def run(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=check, timeout=120)


@contextmanager
def mounted(image: Path, *words: str) -> Iterator[Path]:
    """Mount an image in the background, and unmount it in the end."""
    place = image.parent / f"{image.name}.mnt"
    place.mkdir(exist_ok=True)
    done = run(*COMMAND, *words, image, place)
    mode = "read-write" if "--rw" in words else "read-only"
    assert (done.returncode, done.stderr) == (0, f"qcow2c: {image}, {mode}, is at {place}\n")
    try:
        yield place
    finally:
        done = run(*COMMAND, "--unmount", place, check=False)
        if done.returncode:
            run("umount", "-l", place, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not os.listdir(place)


@contextmanager
def looped(file: Path, *options: str) -> Iterator[Path]:
    """Mount the file system in a file."""
    place = file.parent.parent / "guest"
    place.mkdir(exist_ok=True)
    done = run("mount", "-o", ",".join(("loop", *options)), file, place, check=False)
    if done.returncode and "loop device" in done.stderr and not IN_CI:
        pytest.skip("there is no loop device: no guest is mounted")
    assert done.returncode == 0, done.stderr
    try:
        yield place
    finally:
        run("umount", place)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE))
    return path


def sound(image: Path) -> None:
    """Both programs find nothing wrong."""
    run("qemu-img", "check", image)
    assert qcow2c.check(image).exit_code == 0


def test_a_file_system_lives_on_the_disk(image: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(Path(json.__file__).parent, source, ignore=shutil.ignore_patterns("__pycache__"))
    with mounted(image, "--rw") as place:
        run("mkfs.ext4", "-q", place / "disk")
        with looped(place / "disk") as guest:
            run("cp", "-a", f"{source}/.", guest)
        run("e2fsck", "-fn", place / "disk")
        with looped(place / "disk", "ro") as guest:
            run("diff", "-r", "-x", "lost+found", source, guest)
    sound(image)
    with mounted(image) as place:
        run("e2fsck", "-fn", place / "disk")
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", place / "disk", image)


@pytest.mark.parametrize("library", ["libfuse3.so.3", "libfuse.so.2"])
def test_what_is_copied_onto_the_disk_is_what_qemu_reads(
    library: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_LIBRARY_PATH", library)
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(1).randbytes(5 * MIB) + bytes(SIZE - 5 * MIB))
    with mounted(image, "--rw") as place:
        run("cp", "--sparse=never", raw, place / "disk")
        assert run("truncate", "-s", "1M", place / "disk", check=False).returncode
        run("cmp", raw, place / "disk")
        assert (place / "disk").stat().st_size == SIZE
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image)
    sound(image)


def test_holes_are_punched_found_and_zeros_kept(image: Path) -> None:
    run("qemu-io", "-c", f"write -P 7 0 {4 * MIB}", "-c", f"write -P 8 {32 * MIB} {MIB}", image)
    with mounted(image, "--rw") as place:
        disk = place / "disk"
        run("fallocate", "--punch-hole", "-o", str(MIB), "-l", str(MIB), disk)
        run("fallocate", "--zero-range", "--keep-size", "-o", str(3 * MIB), "-l", str(MIB), disk)
        assert run("fallocate", "-l", str(MIB), disk, check=False).returncode
        descriptor = os.open(disk, os.O_RDWR)
        try:
            found = [os.lseek(descriptor, 0, os.SEEK_HOLE), os.lseek(descriptor, MIB, os.SEEK_DATA)]
            found += [os.lseek(descriptor, 4 * MIB, os.SEEK_DATA), os.lseek(descriptor, 32 * MIB, os.SEEK_HOLE)]
            with pytest.raises(OSError) as caught:
                os.lseek(descriptor, 33 * MIB, os.SEEK_DATA)
            os.pwrite(descriptor, b"durable", 5 * MIB)
            os.fsync(descriptor)
            with qcow2c.open(image, share=True) as reader:
                assert reader.pread(7, 5 * MIB) == b"durable"
        finally:
            os.close(descriptor)
        assert (found, caught.value.errno) == ([MIB, 2 * MIB, 32 * MIB, 33 * MIB], errno.ENXIO)
    lines = json.loads(run("qemu-img", "map", "--output=json", image).stdout)
    kinds = {line["start"]: (line["zero"], "offset" in line) for line in lines}
    assert kinds[MIB] == (True, False) and kinds[3 * MIB] == (True, True)
    sound(image)


def test_snapshots_bitmaps_and_texts_lie_beside_the_disk(image: Path) -> None:
    run("qemu-io", "-c", "write -P 1 0 64k", image)
    run("qemu-img", "snapshot", "-c", "a/b", image)
    run("qemu-img", "bitmap", "--add", image, "since")
    run("qemu-io", "-c", "write -P 2 0 64k", "-c", "write -P 2 9M 1M", image)
    with qcow2c.open(image, "r+") as disk:
        disk.snapshots.create(os.fsdecode(b"\xff\n"))
    command = (sys.executable, "-m", "qcow2c")
    theirs = run(*command, "bitmap", "--show", image, "since").stdout
    for words in ((), ("--rw",)):
        with mounted(image, *words) as place:
            assert sorted(os.listdir(place)) == ["bitmaps", "disk", "info.json", "map.json", "snapshots"]
            assert sorted(os.listdir(place / "snapshots")) == ["%FF%0A", "a%2Fb"]
            with open(place / "snapshots" / "a%2Fb", "rb") as file:
                assert file.read(9) == b"\x01" * 9
            with pytest.raises(OSError):
                os.open(place / "snapshots" / "a%2Fb", os.O_RDWR)
            assert (place / "bitmaps" / "since").read_text() == theirs
            facts = json.loads((place / "info.json").read_text())
            assert next(one["name"] for one in facts["snapshots"]) == "a/b"
            shown = run(*command, "map", "-U", "--output=json", image).stdout
            assert (place / "map.json").read_text() == shown
            run("qemu-img", "compare", "-U", "-f", "raw", "-F", "qcow2", place / "disk", image)
    sound(image)


def test_an_image_in_use_and_a_broken_one_are_refused_by_the_command(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with mounted(image, "--rw"):
        done = run(*COMMAND, image, other, check=False)
        assert done.returncode == 1 and "lock" in done.stderr
    image.write_bytes(image.read_bytes()[:100])
    done = run(*COMMAND, "-f", "qcow2", image, other, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"qcow2c: {image}: ")
    assert not os.path.ismount(other)


def test_what_cannot_be_read_is_told_in_the_log(image: Path, tmp_path: Path) -> None:
    run("qemu-io", "-c", "write -P 1 0 64k", image)
    where = next(one.offset for one in qcow2c.map(image) if one.data)
    assert where is not None
    with mounted(image, "--log", str(tmp_path / "log")) as place:
        os.truncate(image, where)
        with pytest.raises(OSError) as caught:
            (place / "disk").read_bytes()
        assert caught.value.errno == errno.EIO
    assert "past the end of the file" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_and_makes_durable(number: signal.Signals, image: Path, tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    with subprocess.Popen(
        [*COMMAND, "--rw", "--foreground", "--pid-file", tmp_path / "pid", image, place], stderr=subprocess.PIPE
    ) as server:
        assert server.stderr is not None and b"is at" in server.stderr.readline()
        assert (tmp_path / "pid").read_text() == f"{server.pid}\n"
        with open(place / "disk", "r+b", buffering=0) as file:
            file.write(b"written")
        server.send_signal(number)
        assert server.wait(30) == 0 and server.stderr.read() == b""
    assert not os.path.ismount(place) and not (tmp_path / "pid").exists()
    with qcow2c.open(image) as disk:
        assert disk.pread(7, 0) == b"written"
    sound(image)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_one_leaves_what_was_synced_and_leaks_at_most(seed: int, image: Path, tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    chooser = random.Random(seed)
    model = bytearray(SIZE)
    server = subprocess.Popen([*COMMAND, "-q", "--rw", "--foreground", image, place])
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(place) and time.monotonic() < deadline:
            time.sleep(0.02)
        descriptor = os.open(place / "disk", os.O_RDWR)
        try:
            for _ in range(40):
                at = chooser.randrange(SIZE - 200_000)
                data = chooser.randbytes(chooser.randrange(1, 200_000))
                os.pwrite(descriptor, data, at)
                model[at : at + len(data)] = data
            os.fsync(descriptor)
            writer = os.fork()
            if not writer:
                with suppress(OSError):  # It goes on until nobody answers.
                    while True:
                        os.pwrite(descriptor, bytes(model[:MIB]), 0)
                os._exit(0)
            time.sleep(0.05 + seed / 10)
            server.kill()
            os.waitpid(writer, 0)
        finally:
            with suppress(OSError):
                os.close(descriptor)
    finally:
        server.kill()
        server.wait(30)
        run("umount", "-l", place)
    assert run("qemu-img", "check", image, check=False).returncode in (0, 3)
    assert qcow2c.check(image).exit_code in (0, 3)
    with qcow2c.open(image) as disk:
        assert disk.readall() == model


_WRITER = """
import os, random, subprocess, sys
path, number, size = sys.argv[1], int(sys.argv[2]), 4 << 20
chooser, model, file = random.Random(number), bytearray(b'\\t' * size), os.open(path, os.O_RDWR)
for step in range(60):
    at, length = chooser.randrange(size), chooser.randrange(1, 300_000)
    length = min(length, size - at)
    if step % 6 == 5:
        words = ["fallocate", "--punch-hole", "-o", str(number * size + at), "-l", str(length), path]
        subprocess.run(words, check=True)
        model[at : at + length] = bytes(length)
    else:
        model[at : at + length] = data = chooser.randbytes(length)
        assert os.pwrite(file, data, number * size + at) == length
    if step % 20 == 7:
        os.fsync(file)
    at = chooser.randrange(size)
    assert os.pread(file, 70_000, number * size + at)[: size - at] == model[at : at + 70_000]
sys.stdout.buffer.write(model)
"""


def test_several_programs_at_once_write_each_its_own_part(image: Path) -> None:
    run("qemu-io", "-c", "write -P 9 0 16M", image)
    run("qemu-img", "snapshot", "-c", "before", image)
    with mounted(image, "--rw") as place:
        writers = [
            subprocess.Popen([sys.executable, "-c", _WRITER, place / "disk", str(number)], stdout=subprocess.PIPE)
            for number in range(4)
        ]
        before = (place / "snapshots" / "before").read_bytes()
        parts = [writer.communicate(timeout=120)[0] for writer in writers]
        assert [writer.returncode for writer in writers] == [0] * 4
        with open(place / "disk", "rb") as file:
            assert file.read(16 * MIB) == b"".join(parts)
    assert before == (b"\x09" * (16 * MIB)).ljust(SIZE, b"\0")
    with qcow2c.open(image) as disk:
        assert disk.pread(16 * MIB, 0) == b"".join(parts)
    sound(image)
