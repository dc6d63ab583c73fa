"""Reads and writes through a server, beside the reference program's: by NBD (nbdcopy), and as a file (FUSE).

A server is started for each run and ended behind it. The clock runs while the client does, with what it waits for;
the time of processors is that of client and server, whose start-up is in it.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.inputs import Inputs
from bench.timing import Failed, Runner, Spent, qemu_img, run
from bench.timing import qcow2c as ours

READY_SECONDS = 30
CLIENTS = 8
READS, READ_BYTES = 20_000, 4096

_RANDOM_READS = """
import os, random, sys
reads, size = map(int, sys.argv[2:])
file = os.open(sys.argv[1], os.O_RDONLY)
chooser = random.Random(7)
blocks = os.lseek(file, 0, os.SEEK_END) // size
for _ in range(reads):
    os.pread(file, size, chooser.randrange(blocks) * size)
"""


@dataclass(frozen=True)
class Door:
    """A way in, and what goes through it."""

    what: str
    aim: float | None
    serve: tuple[Callable[[Path, Path], list[str]], Callable[[Path, Path], list[str]]]
    """Our server's command and the reference program's, of an image and the place where clients find it."""
    client: Callable[[str, Inputs], list[str]]
    """The client's command, of what is named by the place."""
    writes: bool = False
    is_fuse: bool = False


def _nbd(*words: str) -> tuple[Callable[[Path, Path], list[str]], Callable[[Path, Path], list[str]]]:
    rw = "--rw" in words

    def mine(image: Path, place: Path) -> list[str]:
        return ours("serve", "nbd", "-q", "-t", *words, "-k", place, image)

    def theirs(image: Path, place: Path) -> list[str]:
        mode = [] if rw else ["-r"]
        return ["qemu-nbd", "-t", "-e", str(CLIENTS), *mode, "-f", "qcow2", "-k", str(place), str(image)]

    return mine, theirs


def _mount(image: Path, place: Path) -> list[str]:
    place.parent.mkdir(exist_ok=True)
    return ours("mount", "-q", "--foreground", image, place.parent)


def _storage_daemon(image: Path, place: Path) -> list[str]:
    place.parent.mkdir(exist_ok=True)
    place.touch()
    disk = f"driver=qcow2,node-name=disk,read-only=on,file.driver=file,file.filename={image}"
    export = f"type=fuse,id=export,node-name=disk,mountpoint={place},writable=off"
    return ["qemu-storage-daemon", "--blockdev", disk, "--export", export]


DOORS = {
    "nbd-out": Door("nbdcopy from the server to null", 0.9, _nbd(), lambda uri, _: ["nbdcopy", uri, "null:"]),
    "nbd-in": Door(
        "nbdcopy of a raw file into the server, with a flush",
        1.1,
        _nbd("--rw"),
        lambda uri, inputs: ["nbdcopy", "--flush", str(inputs.raw()), uri],
        writes=True,
    ),
    "fuse-read": Door(
        "the disk as a file, read from beginning to end",
        None,
        (_mount, _storage_daemon),
        lambda file, _: ["dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none"],
        is_fuse=True,
    ),
    "fuse-random": Door(
        f"the disk as a file, {READS} random reads of 4 KiB",
        None,
        (_mount, _storage_daemon),
        lambda file, _: [sys.executable, "-c", _RANDOM_READS, file, str(READS), str(READ_BYTES)],
        is_fuse=True,
    ),
}


def runners(door: Door, inputs: Inputs, folder: Path) -> tuple[Runner, Runner, Callable[[], None]]:
    """Return what goes through each server, and what holds the results equal, in a folder of their own."""
    targets = [folder / name if door.writes else inputs.image("plain") for name in ("ours", "theirs")]
    places = [folder / name / "disk" if door.is_fuse else folder / f"{name}.sock" for name in ("our", "their")]

    def once(which: int, command: Callable[[str], list[str]]) -> Spent:
        if door.writes:
            targets[which].unlink(missing_ok=True)
            run(qemu_img("create", "-q", "-f", "qcow2", targets[which], str(inputs.raw().stat().st_size)))
        os.sync()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with _served(door.serve[which](targets[which], places[which]), places[which], is_fuse=door.is_fuse):
            spent = run(command(_named(door, places[which])))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return spent._replace(cpu=cpu, memory=0)

    def equal() -> None:
        for which, target in enumerate(targets):
            if not door.writes:  # What comes out is what the disk holds.
                once(which, lambda name: qemu_img("compare", "-f", "raw", "-F", "raw", name, inputs.raw()))
            else:
                run(qemu_img("check", target))
                run(qemu_img("compare", "-f", "raw", "-F", "qcow2", inputs.raw(), target))

    def runner(which: int) -> Runner:
        return lambda: once(which, lambda name: door.client(name, inputs))

    return runner(0), runner(1), equal


def _named(door: Door, place: Path) -> str:
    return str(place) if door.is_fuse else f"nbd+unix:///?socket={place}"


@contextmanager
def _served(command: Sequence[str], place: Path, *, is_fuse: bool) -> Iterator[None]:
    """Run a server. Raises Failed where it is not there, or does not begin."""
    for program in (command[0], "nbdcopy") if not is_fuse else (command[0],):
        if shutil.which(program) is None:
            raise Failed(f"{program} is not installed")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            _wait(server, place, is_fuse=is_fuse)
            yield
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(READY_SECONDS)
            server.kill()


def _wait(server: subprocess.Popen[str], place: Path, *, is_fuse: bool) -> None:
    end = time.monotonic() + READY_SECONDS
    while not (_is_mounted(place) if is_fuse else _listens(place)):
        if server.poll() is not None:
            said = server.stderr.read().strip().splitlines() if server.stderr is not None else []
            raise Failed(f"the server left with status {server.returncode}: {(said or ['no message'])[-1]}")
        if time.monotonic() > end:
            raise Failed("the server does not begin")
        time.sleep(0.01)


def _is_mounted(place: Path) -> bool:
    return place.exists() and place.stat().st_size > 0


def _listens(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(place))
        except OSError:
            return False
    return True
