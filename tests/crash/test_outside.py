"""Calls that fail, and signals that come, from outside: real processes of the command line and of the library.

A small shared library (`shim.c`) stands between the process and the system: it counts the calls that read or change
the files of a job, and lets the n-th fail, or sends the process a signal before it is done. Nothing in the program
takes part. What is held: the exit status is true, an error is one line, the image is sound or has leaks, the disk and
all snapshots are as before or as after, and what was reported as flushed is there.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

import qcow2c
from tests.conftest import IN_CI
from tests.profile import DEEP

HERE = Path(__file__).resolve().parent
KIB = 1024
SIZE = 256 * KIB
BLOCK = 4 * KIB


@dataclass(frozen=True)
class Hit:
    """What happens at a call: it fails with an error, as all later ones do if it is lasting, or a signal comes."""

    error: int = 0
    number: int = 0
    lasting: bool = False

    def environment(self, at: int) -> dict[str, str]:
        found = {"FAULT_AT": str(at), "FAULT_ERRNO": str(self.error), "FAULT_SIGNAL": str(int(self.number))}
        return found | ({"FAULT_LASTING": "1"} if self.lasting else {})


HITS = {
    "EIO": Hit(error=errno.EIO),
    "ENOSPC, lasting": Hit(error=errno.ENOSPC, lasting=True),
    "SIGINT": Hit(number=signal.SIGINT),
    "SIGTERM": Hit(number=signal.SIGTERM),
    "SIGKILL": Hit(number=signal.SIGKILL),
}

WRITER = """
import random, sys
import qcow2c
chooser = random.Random(1)
with qcow2c.open("disk", "r+") as image:
    for number in range(1, 41):
        block = chooser.randrange(64)
        data = number.to_bytes(8, "little") * 512
        if number % 7 == 3:
            image.write_compressed(data, block * 4096)
        else:
            image.pwrite(data, block * 4096)
        if number % 8 == 0:
            image.flush()
            print(number, flush=True)
print("closed", flush=True)
"""


@dataclass(frozen=True)
class Job:
    """The words of a command, and the file that it changes."""

    words: tuple[str, ...]
    target: str = "disk"
    made: bool = False
    """The target is new: it is complete, or not there."""


JOBS = {
    "snapshot taken": Job(("snapshot", "-c", "new", "disk")),
    "snapshot applied": Job(("snapshot", "-a", "one", "disk")),
    "snapshot deleted": Job(("snapshot", "-d", "one", "disk")),
    "larger": Job(("resize", "disk", "+1M")),
    "smaller": Job(("resize", "--shrink", "disk", "100k")),
    "commit": Job(("commit", "over"), "over"),
    "rebase": Job(("rebase", "-b", "", "over"), "over"),
    "amend": Job(("amend", "-o", "refcount_bits=32", "disk")),
    "bitmap": Job(("bitmap", "--add", "disk", "marks")),
    "bitmap removed": Job(("bitmap", "--remove", "marked", "old"), "marked"),
    "copy": Job(("convert", "-O", "qcow2", "-t", "writeback", "disk", "copy"), "copy", made=True),
    "copy over another": Job(("convert", "-O", "qcow2", "-t", "writeback", "disk", "marked"), "marked"),
    "repair": Job(("check", "-r", "all", "leaky"), "leaky"),
}


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the shim, compiled once."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        message = "no C compiler: calls are not made to fail from outside"
        pytest.fail(message, pytrace=False) if IN_CI else pytest.skip(message)
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(HERE / "shim.c"), "-ldl"], check=True)
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images of all kinds that the jobs need."""
    folder = tmp_path_factory.mktemp("images")
    fill(folder / "disk", snapshot=True)
    fill(folder / "base", snapshot=False)
    qcow2c.create(folder / "over", SIZE, cluster_size=4096, backing_file="base", backing_fmt="qcow2")
    with qcow2c.open(folder / "over", "r+") as image:
        image.pwrite(b"over" * 5000, 10_000)
    fill(folder / "marked", snapshot=False)
    qcow2c.bitmap.add(folder / "marked", "old")
    fill(folder / "leaky", snapshot=True)
    leak(folder / "leaky")
    return folder


def fill(path: Path, *, snapshot: bool) -> None:
    qcow2c.create(path, SIZE, cluster_size=4096)
    with qcow2c.open(path, "r+") as image:
        image.pwrite(random.Random(path.name).randbytes(60_000), 0)
        image.write_compressed(b"compress" * 1024, 80 * KIB)
        if snapshot:
            image.snapshots.create("one")
            image.pwrite(b"later" * 4000, 30_000)


def leak(path: Path) -> None:
    """Place clusters to which nothing refers."""
    with qcow2c.open(path, "r+") as image:
        image.engine.place(b"leaked" * 2000)
    assert qcow2c.check(path).exit_code == 3


State = tuple[object, ...]


def state(path: Path) -> State | None:
    """Return everything that a user sees of an image; None where there is none."""
    if not path.exists():
        return None
    with qcow2c.open(path) as image:
        kept = [(found.name, found.open().readall()) for found in image.snapshots.list()]
        names = [] if image.bitmaps.stale else [found.name for found in image.bitmaps]
        return image.readall(), kept, names, image.header.refcount_order


Done = subprocess.CompletedProcess[str]


def run(shim: Path, folder: Path, program: tuple[str, ...], environment: dict[str, str]) -> Done:
    surroundings = {**os.environ, "LD_PRELOAD": str(shim), "FAULT_UNDER": f"{folder}/", **environment}
    surroundings["PYTHONPATH"] = str(HERE.parents[1])
    return subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fresh(images: Path, folder: Path) -> Path:
    place = folder / "now"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(images, place)
    return place


@dataclass(frozen=True)
class Ordinary:
    """What a program does when nothing is in its way: how many calls there are, and the state before and after."""

    calls: int
    before: State | None
    after: State | None


@pytest.fixture(scope="module")
def ordinary(shim: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ordinary]:
    """Return a function that runs a program undisturbed, once."""
    folder = tmp_path_factory.mktemp("ordinary")
    known: dict[tuple[str, ...], Ordinary] = {}

    def get(program: tuple[str, ...], target: str) -> Ordinary:
        if program not in known:
            place, count = fresh(images, folder), folder / "count"
            before = state(place / target)
            done = run(shim, place, program, {"FAULT_COUNT": str(count)})
            assert done.returncode in (0, 3), done.stderr
            known[program] = Ordinary(int(count.read_text()), before, state(place / target))
        assert known[program].calls > 5
        return known[program]

    return get


def points(calls: int, hit: Hit) -> range:
    """Return the calls that are hit: all with the deep profile, otherwise one, another one for each way."""
    if DEEP:
        return range(1, calls + 1)
    number = list(HITS.values()).index(hit)
    at = 1 + calls * (2 * number + 1) // (2 * len(HITS))
    return range(at, at + 1)


def assert_ended_as_it_says(hit: Hit, done: Done, story: str) -> None:
    assert "Traceback" not in done.stderr, f"{story}: {done.stderr}"
    if hit.number == signal.SIGKILL:
        assert done.returncode in (0, -signal.SIGKILL), story
    elif hit.number:
        assert done.returncode in (0, 3, 128 + hit.number, -hit.number), (story, done.returncode, done.stderr)
    else:
        assert done.returncode in (0, 1, 3), (story, done.returncode)
        assert done.returncode != 1 or done.stderr.startswith("qcow2c: "), f"{story}: {done.stderr}"


@pytest.mark.parametrize("hit", HITS.values(), ids=HITS)
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_command_leaves_the_image_before_or_after(
    job: Job, hit: Hit, shim: Path, images: Path, ordinary: Callable[..., Ordinary], tmp_path: Path
) -> None:
    program = ("-m", "qcow2c", *job.words)
    calls, before, after = astuple(ordinary(program, job.target))
    bystanders = {path.name: state(path) for path in sorted(images.iterdir()) if path.name not in (job.target, "base")}

    def judge(place: Path, done: Done, story: str) -> None:
        assert_ended_as_it_says(hit, done, story)
        target = place / job.target
        if job.made and hit.number == signal.SIGKILL and target.exists() and qcow2c.info(target).format != "qcow2":
            return  # Said in README: an image without a magic value, which nothing takes for one.
        found = state(target)
        assert found in (before, after), f"{story}: neither before nor after, status {done.returncode}"
        assert done.returncode or found == after, f"{story}: status 0, and not done"
        for name in (job.target, "base"):
            if (place / name).exists():
                assert qcow2c.check(place / name).exit_code in (0, 3), f"{story}: {name}"
        if not job.made:
            with qcow2c.open(target, "r+") as image:
                image.pwrite(b"x" * 512, 0)
        for name, seen in bystanders.items():
            assert state(place / name) == seen, f"{story}: {name} changed"

    for at in points(calls, hit):
        place = fresh(images, tmp_path)
        judge(place, run(shim, place, program, hit.environment(at)), f"call {at} of {calls}")


@pytest.mark.parametrize("hit", HITS.values(), ids=HITS)
def test_what_a_writer_has_flushed_is_there(
    hit: Hit, shim: Path, images: Path, ordinary: Callable[..., Ordinary], tmp_path: Path
) -> None:
    chooser = random.Random(1)
    blocks = [chooser.randrange(64) for _ in range(40)]
    with qcow2c.open(images / "disk") as image:
        old = image.readall()
        kept = image.snapshots["one"].open().readall()

    def judge(place: Path, done: Done, story: str) -> None:
        said = done.stdout.split()
        is_closed = said[-1:] == ["closed"]
        flushed = 40 if is_closed else max(map(int, said), default=0)
        assert is_closed or done.returncode, story
        assert qcow2c.check(place / "disk").exit_code in ((0,) if is_closed else (0, 3)), story
        with qcow2c.open(place / "disk") as image:
            assert image.snapshots["one"].open().readall() == kept, story
            found = image.readall()
        for block in range(64):
            times = [number for number, where in enumerate(blocks, 1) if where == block]
            least = max((number for number in times if number <= flushed), default=0)
            for at in range(block * BLOCK, (block + 1) * BLOCK, 512):
                sector = found[at : at + 512]
                allowed = [number.to_bytes(8, "little") * 64 for number in times if number >= max(least, 1)]
                assert sector in allowed or (not least and sector == old[at : at + 512]), f"{story}: sector {at}"

    calls = ordinary(("-c", WRITER), "disk").calls
    for at in points(calls, hit):
        place = fresh(images, tmp_path)
        judge(place, run(shim, place, ("-c", WRITER), hit.environment(at)), f"call {at} of {calls}")


def test_the_shim_hits_what_it_is_told_to(shim: Path, images: Path, tmp_path: Path) -> None:
    """Without that the tests above would hold nothing."""
    place = fresh(images, tmp_path)
    words = ("-m", "qcow2c", "info", "disk")
    failed = run(shim, place, words, {"FAULT_AT": "1", "FAULT_ERRNO": str(errno.EIO)})
    assert failed.returncode == 1 and os.strerror(errno.EIO) in failed.stderr
    assert run(shim, place, words, HITS["SIGINT"].environment(1)).returncode == 128 + signal.SIGINT
    assert run(shim, place, words, HITS["SIGKILL"].environment(1)).returncode == -signal.SIGKILL
    assert run(shim, place, words, HITS["SIGTERM"].environment(1 << 20)).returncode == 0


def test_what_fails_after_the_change_is_told_as_what_it_is(
    shim: Path, images: Path, ordinary: Callable[..., Ordinary], tmp_path: Path
) -> None:
    """The last calls of a deletion: the header, its flush, the space that is given back, the last flush."""
    program = ("-m", "qcow2c", "snapshot", "-d", "one", "disk")
    calls, said = ordinary(program, "disk").calls, {}
    for at in range(calls - 8, calls + 1):
        place = fresh(images, tmp_path)
        done = run(shim, place, program, Hit(error=errno.EIO).environment(at))
        with qcow2c.open(place / "disk") as image:
            said[done.returncode, not image.snapshots.list(), "may or may not be there" in done.stderr] = done.stderr
    assert (0, True, False) in said and "qcow2c: warning: disk: Could not give back space" in said[0, True, False]
    assert (1, True, True) in said, "the flush of the header"
    assert all(is_gone for status, is_gone, _ in said if status == 0)
