"""Encrypted images, side by side with the reference program: copies, and random reads and writes, keys and all.

Opening a key slot takes 10 ms in both, rather than the usual two seconds, which would be all that is measured. Copies
are whole processes; random access is timed as in `writes.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import qcow2c
from bench.inputs import Inputs
from bench.timing import Failed, Runner, Spent, qemu_img, run, timed, within
from bench.timing import qcow2c as ours_of

SECRET = ("--object", "secret,id=s,data=passphrase")
_PATTERN = 0x5A
_BUSY, _TRIALS = "accurate CPU usage", 20
"""What the reference program says, at random, when it makes a LUKS header on a busy machine; it is asked again."""


@dataclass(frozen=True)
class Copy:
    """A copy of the file system from or to an encrypted image."""

    what: str
    aim: float
    kind: str
    decrypts: bool


COPIES = {
    "luks-to-raw": Copy("LUKS (aes-256-xts) to raw", 0.4, "luks", decrypts=True),
    "aes-to-raw": Copy("legacy AES (aes-128-cbc) to raw", 0.4, "aes", decrypts=True),
    "raw-to-luks": Copy("raw to LUKS (aes-256-xts)", 0.5, "luks", decrypts=False),
}

SMALL, SMALL_COUNT = 4096, 8192
"""Bytes of a random read or write, and how many there are."""


@dataclass(frozen=True)
class RandomAccess:
    """Random reads or writes of an encrypted image that holds a file system."""

    what: str
    kind: str
    writes: bool


RANDOM = {
    f"{kind}-4k-{verb}": RandomAccess(f"random {verb}s of 4 KiB, {name}", kind, verb == "write")
    for kind, name in (("luks", "LUKS (aes-256-xts)"), ("aes", "legacy AES (aes-128-cbc)"))
    for verb in ("read", "write")
}


def options(kind: str) -> str:
    """Return the options of a new image."""
    return f"encrypt.format={kind},encrypt.key-secret=s" + (",encrypt.iter-time=10" if kind == "luks" else "")


def named(image: Path, kind: str) -> str:
    """Return an encrypted image as --image-opts has it."""
    return f"driver=qcow2,encrypt.format={kind},encrypt.key-secret=s,file.filename={image}"


def runners(copy: Copy, inputs: Inputs, folder: Path) -> tuple[Runner, Runner, Callable[[], None]]:
    """Return what copies with each program, and what holds the copies equal, in a folder of their own."""
    mine, reference, source = folder / "ours", folder / "theirs", inputs.encrypted(copy.kind)
    if copy.decrypts:
        words = ["convert", *SECRET, "--image-opts", "-O", "raw", named(source, copy.kind)]
    else:
        words = ["convert", *SECRET, "-f", "raw", "-O", "qcow2", "-o", options(copy.kind), str(inputs.raw())]

    def equal() -> None:
        found = [
            f"driver=raw,file.filename={path}" if copy.decrypts else named(path, copy.kind)
            for path in (mine, reference)
        ]
        run(qemu_img("compare", *SECRET, "--image-opts", *found))

    return (
        partial(timed, ours_of(*words, mine), target=mine),
        partial(_patiently, partial(timed, qemu_img(*words, reference), target=reference)),
        equal,
    )


def random_runners(job: RandomAccess, inputs: Inputs, folder: Path) -> tuple[Runner, Runner, Callable[[], None]]:
    """Return what reads or writes with each program, on a copy of its own, and what holds the two images equal."""
    copies = [folder / "ours.qcow2", folder / "theirs.qcow2"]
    for path in copies:
        run(["cp", "--sparse=always", inputs.encrypted(job.kind), path])
    chooser = random.Random(1)
    offsets = [chooser.randrange(inputs.size // SMALL) * SMALL for _ in range(SMALL_COUNT)]
    verb = f"write -q -P {_PATTERN}" if job.writes else "read -q"
    script = "\n".join([*(f"{verb} {offset} {SMALL}" for offset in offsets), "flush", "quit"]) + "\n"

    def ours() -> Spent:
        data = bytes([_PATTERN]) * SMALL
        with within() as spent:
            with qcow2c.open(copies[0], "r+" if job.writes else "r", key="passphrase") as disk:
                for offset in offsets:
                    if job.writes:
                        disk.pwrite(data, offset)
                    else:
                        disk.pread(SMALL, offset)
            return spent()

    def theirs() -> Spent:
        words = ["qemu-io", "-t", "writeback", *SECRET, "--image-opts", named(copies[1], job.kind)]
        return run(words, script=script)

    def equal() -> None:
        run(qemu_img("compare", *SECRET, "--image-opts", *(named(path, job.kind) for path in copies)))

    return ours, theirs, equal


def _patiently(runner: Runner) -> Spent:
    for _ in range(_TRIALS):
        try:
            return runner()
        except Failed as failure:
            if _BUSY not in str(failure):
                raise
    raise Failed(f"{_BUSY}: {_TRIALS} trials")
