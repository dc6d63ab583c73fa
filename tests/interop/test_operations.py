"""Long histories of operations on one image, each step done by both programs on copies, and continued with either's.

After each step both must have ended alike, hold the same disk, the same snapshots and the same bitmaps, and be clean.
Where qemu-img 7.2 is known to fail this, what we made of the image is all that goes on: it compresses nothing over
clusters in use; its repair removes all snapshots of an image that has bitmaps; its downgrade drops bitmaps, and zeros
what snapshots share; its rebase changes snapshots, and in version 2 lets a first backing file show.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from tests.profile import DEEP

from .conftest import Outcome, run_qemu_img

KIB = 1024
IMAGE, BASE, OTHER = "image.qcow2", "base.qcow2", "other.raw"
FILES = (IMAGE, BASE, OTHER)
STEPS = 100 if DEEP else 22
SEEDS = range(1, 21) if DEEP else range(1, 2)

KINDS = {
    "4k": ("cluster_size=4k", ""),
    "64k over a base": ("", BASE),
    "512": ("cluster_size=512", ""),
    "version 2": ("compat=0.10,cluster_size=4k", ""),
    "version 2 over a base": ("compat=0.10,cluster_size=8k", BASE),
    "subclusters over a base": ("extended_l2=on,cluster_size=16k", BASE),
    "lazy, zstd": ("lazy_refcounts=on,compression_type=zstd,cluster_size=4k", ""),
    "wide refcounts": ("refcount_bits=64,cluster_size=4k", ""),
}

Words = list[str]


class History:
    """Draws the steps: words for either program, most of which make sense."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._chooser = random.Random(seed)
        self._folder = folder
        self._number = 0

    def step(self) -> Words:
        steps = [self._write, self._write, self._write, self._compress, self._zero, self._discard, self._snapshot]
        steps += [self._snapshot, self._apply, self._delete, self._grow, self._shrink, self._add, self._remove]
        steps += [self._clear, self._switch, self._merge, self._amend, self._refcounts, self._rebase, self._repair]
        return self._chooser.choice([*steps, self._commit])()

    def _write(self, how: str = "") -> Words:
        size = self._size()
        start = self._chooser.randrange(0, size) & -512
        length = min(size - start, self._chooser.choice((512, 4096, 20 * KIB, 100 * KIB)))
        return ["io", f"write {how or self._pattern()} {start} {length}"]

    def _pattern(self) -> str:
        return f"-P {self._chooser.randrange(1, 256)}"

    def _zero(self) -> Words:
        return self._write(self._chooser.choice(("-z", "-z -u")))

    def _discard(self) -> Words:
        size = self._size()
        start = self._chooser.randrange(0, size) & -(64 * KIB)
        return ["io", f"discard {start} {min(size - start, 128 * KIB)}"]

    def _compress(self) -> Words:
        size = self._size()
        start = self._chooser.randrange(0, size) & -(64 * KIB)
        return ["io", f"write -c {self._pattern()} {start} {min(size - start, 64 * KIB)}"]

    def _snapshot(self) -> Words:
        self._number += 1
        return ["snapshot", "-c", f"s{self._number}", IMAGE]

    def _named(self) -> str:
        names = [found.name for found in self._image().snapshots.list()]
        return self._chooser.choice([*names, *names, "nobody"])

    def _apply(self) -> Words:
        return ["snapshot", "-a", self._named(), IMAGE]

    def _delete(self) -> Words:
        return ["snapshot", "-d", self._named(), IMAGE]

    def _grow(self) -> Words:
        return ["resize", IMAGE, f"+{self._chooser.randrange(1, 900) * 512}"]

    def _shrink(self) -> Words:
        by = min(self._size() - 64 * KIB, self._chooser.randrange(1, 900) * 512)
        return ["resize", "--shrink", IMAGE, f"-{by}"] if by > 0 else self._grow()

    def _bitmap(self) -> str:
        return self._chooser.choice("abc")

    def _add(self) -> Words:
        granularity = self._chooser.choice(("512", "4k", "64k", "1M"))
        return ["bitmap", "--add", "-g", granularity, IMAGE, self._bitmap()]

    def _remove(self) -> Words:
        return ["bitmap", "--remove", IMAGE, self._bitmap()]

    def _clear(self) -> Words:
        return ["bitmap", "--clear", IMAGE, self._bitmap()]

    def _switch(self) -> Words:
        return ["bitmap", self._chooser.choice(("--enable", "--disable")), IMAGE, self._bitmap()]

    def _merge(self) -> Words:
        return ["bitmap", "--merge", self._bitmap(), IMAGE, self._bitmap()]

    def _amend(self) -> Words:
        option = self._chooser.choice(("compat=1.1", "compat=0.10", "lazy_refcounts=on", "lazy_refcounts=off"))
        return ["amend", "-o", option, IMAGE]

    def _refcounts(self) -> Words:
        return ["amend", "-o", f"refcount_bits={self._chooser.choice((8, 16, 16, 32, 64))}", IMAGE]

    def _rebase(self) -> Words:
        target = self._chooser.choice(([BASE, "qcow2"], [OTHER, "raw"], [""]))
        return ["rebase", *(["-F", target[1]] if len(target) > 1 else []), "-b", target[0], IMAGE]

    def _repair(self) -> Words:
        return ["check", "-r", self._chooser.choice(("leaks", "all")), IMAGE]

    def _commit(self) -> Words:
        return ["commit", "-q", IMAGE]

    def _size(self) -> int:
        return self._image().size()

    def _image(self) -> qcow2c.Image:
        with qcow2c.open(self._folder / IMAGE) as image:
            return image


def state(folder: Path) -> dict[str, Any]:
    """Return all that a guest and its operator see."""
    found: dict[str, Any] = {}
    with qcow2c.open(folder / IMAGE) as image:
        found["size"] = image.size()
        found["disk"] = hashlib.sha1(image.pread(image.size(), 0)).hexdigest()
        for snapshot in image.snapshots.list():
            disk = snapshot.open()
            content = hashlib.sha1(disk.pread(disk.size(), 0)).hexdigest()
            found[f"snapshot {snapshot.id}"] = (snapshot.name, disk.size(), content)
        for bitmap in image.bitmaps:
            ranges = [] if bitmap.inconsistent else list(bitmap.ranges())
            found[f"bitmap {bitmap.name}"] = (bitmap.granularity, bitmap.enabled, bitmap.inconsistent, ranges)
        header = image.header
        found["header"] = (header.version, header.backing_file, header.backing_format, header.refcount_order)
    with qcow2c.open(folder / BASE) as image:
        found["base"] = hashlib.sha1(image.pread(image.size(), 0)).hexdigest()
    found["other"] = hashlib.sha1((folder / OTHER).read_bytes()).hexdigest()
    return found


def without_names(found: dict[str, Any]) -> dict[str, Any]:
    """Return a state without what rebase and amend are to change."""
    return found | {"header": None}


def snapshots_of(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name.startswith("snapshot")}


def without(found: dict[str, Any], *kinds: str) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not name.startswith(kinds)}


def by_qemu(folder: Path, words: Words) -> int:
    if words[0] == "io":
        command = ["qemu-io", "-f", "qcow2", "-c", words[1], IMAGE]
        return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
    return run_qemu_img(folder, *words).status


def by_us(folder: Path, words: Words, run_ours: Callable[..., Outcome]) -> int:
    if words[0] != "io":
        return run_ours(folder, *words).status
    verb, *rest = words[1].split()
    offset, length = int(rest[-2]), int(rest[-1])
    with qcow2c.open(folder / IMAGE, "r+") as image:
        if verb == "discard":
            image.discard(offset, length)
        elif "-z" in rest:
            image.write_zeroes(offset, length, unmap="-u" in rest)
        elif "-c" in rest:
            data = bytes([int(rest[rest.index("-P") + 1])]) * length
            image.write_compressed(data, offset)
        else:
            image.pwrite(bytes([int(rest[rest.index("-P") + 1])]) * length, offset)
    return 0


@pytest.mark.usefixtures("requires_qemu")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_both_programs_take_turns_on_one_image(
    kind: str, seed: int, tmp_path: Path, run_ours: Callable[..., Outcome]
) -> None:
    options, backing = KINDS[kind]
    now, ours, theirs = (tmp_path / name for name in ("now", "ours", "theirs"))
    now.mkdir()
    chooser = random.Random(seed)
    (now / OTHER).write_bytes(chooser.randbytes(300 * KIB) + bytes(100 * KIB))
    run_qemu_img(now, "create", "-q", "-f", "qcow2", BASE, "700k")
    fill = ["qemu-io", "-f", "qcow2", "-c", "write -P 77 100k 300k", BASE]
    subprocess.run(fill, cwd=now, check=True, stdout=subprocess.DEVNULL)
    more = ["-b", backing, "-F", "qcow2"] if backing else []
    words = ["create", "-q", "-f", "qcow2", *(["-o", options] if options else []), *more, IMAGE, "800k"]
    assert run_qemu_img(now, *words).status == 0
    history = History(seed, now)
    story: list[Words] = []
    for _ in range(STEPS):
        words = history.step()
        story.insert(0, words)  # The last one comes first.
        for folder in (ours, theirs):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(now, folder)
        statuses = by_us(ours, words, run_ours), by_qemu(theirs, words)
        excused = (words[0] == "amend" and statuses == (1, 0)) or ("write -c" in words[1] and statuses == (0, 1))
        assert statuses[0] == statuses[1] or excused, story
        states = state(ours), state(theirs)
        if words[0] in ("amend", "check", "rebase"):  # What was there is the measure.
            assert without_names(states[0]) == without_names(state(now)), story
            excused = excused or without_names(states[1]) != without_names(state(now))
        if words[0] == "commit" and snapshots_of(states[1]) != snapshots_of(states[0]):
            # The reference program changes what snapshots show; to keep it is to write, which bitmaps record.
            assert snapshots_of(states[0]) == snapshots_of(state(now)), story
            assert without(states[0], "snapshot", "bitmap") == without(states[1], "snapshot", "bitmap"), story
            excused = True
        if excused:
            shutil.rmtree(theirs)
            shutil.copytree(ours, theirs)
        else:
            assert states[0] == states[1], story
        for folder in (ours, theirs):
            # Of the base, too, where the step has changed it.
            names = [IMAGE] if (folder / BASE).read_bytes() == (now / BASE).read_bytes() else [IMAGE, BASE]
            for name in names:
                checked = run_qemu_img(folder, "check", name)
                assert checked.status == 0, (folder, name, story, checked.out, checked.err)
        chosen = chooser.choice((ours, theirs))
        shutil.rmtree(now)
        chosen.rename(now)
