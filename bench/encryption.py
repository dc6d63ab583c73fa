"""Copies of encrypted images, side by side with the reference program: whole processes, keys and all.

Opening a key slot takes 10 ms in both, rather than the usual two seconds, which would be all that is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.inputs import Inputs
from bench.timing import Failed, Runner, Spent, qemu_img, run, timed
from bench.timing import qcow2c as ours

SECRET = ("--object", "secret,id=s,data=passphrase")
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
        partial(timed, ours(*words, mine), target=mine),
        partial(_patiently, partial(timed, qemu_img(*words, reference), target=reference)),
        equal,
    )


def _patiently(runner: Runner) -> Spent:
    for _ in range(_TRIALS):
        try:
            return runner()
        except Failed as failure:
            if _BUSY not in str(failure):
                raise
    raise Failed(f"{_BUSY}: {_TRIALS} trials")
