"""The jobs: what each runs, how its results are held equal, and what it should reach."""

from __future__ import annotations

import enum
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import qcow2c
from bench import changes, doors, encryption, writes
from bench.inputs import Inputs
from bench.timing import NO_AIM, Aim, Failed, Figures, Runner, Spent, in_turn, median_wall, qemu_img, run, timed, within
from bench.timing import qcow2c as ours

Work = Callable[[Inputs, int], Figures]
"""Does a job that many times."""


@dataclass(frozen=True)
class Job:
    """`what` is said of it in the table."""

    what: str
    work: Work
    aim: Aim = NO_AIM


MANY_REQUESTS = ("-m 16 -W",)
BEST_COPIES = (*MANY_REQUESTS, "-m 16 -W -t none", "-m 16 -W -C")
BEST_READS = ("-T none",)
"""Flags that are tried once each; the quickest is then timed in each run, unless it is clearly slower than none."""

CLEARLY_SLOWER = 1.5
"""One trial is no measurement: flags that took more than this many times the defaults' time are dropped."""

BIG_CACHES = "l2-cache-size=256M,refcount-cache-size=64M"
"""Room for the whole metadata of the largest image, which qemu-img does not take by itself."""

SNAPSHOT = "s3"
READS = 200_000
READ_SIZE = 4096


# --- contests -------------------------------------------------------------------------------------------------------


def contest(mine: Runner, default: Runner, best: dict[str, Runner], runs: int, equal: Callable[[], None]) -> Figures:
    """Warm up, hold the results equal with `equal`, choose the reference program's best flags, and time all in turn."""
    mine()
    usual = default()
    equal()
    flags = _quickest(best, CLEARLY_SLOWER * usual.wall)
    runners = [mine, default, *([best[flags]] if flags else [])]
    spent = in_turn(runners, runs)
    return Figures(spent[0], spent[1], spent[2] if flags else (), flags)


def _quickest(best: dict[str, Runner], limit: float) -> str:
    """Run each once; return the flags of the quickest, "" if none stays within the limit."""
    trials = {"": limit}
    for flags, runner in best.items():
        try:
            trials[flags] = runner().wall
        except Failed:  # Not each file system has each cache mode.
            continue
    return min(trials, key=lambda flags: trials[flags])


@contextmanager
def scratch(inputs: Inputs, *names: str, folder: Path | None = None) -> Iterator[list[Path]]:
    """Give files beside the inputs, or in another folder, which are removed in the end."""
    paths = [(folder or inputs.directory) / name for name in names]
    try:
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


# --- copies ---------------------------------------------------------------------------------------------------------


class Place(enum.Enum):
    """Where a copy goes: to a new file, over the one that is there, to a file system in memory."""

    FRESH = ""
    OVER = "-over"
    MEMORY = "-memory"


_MEMORY = Path("/dev/shm")


def copies(
    source: Callable[[Inputs], Path],
    output_format: str,
    *shared: str,
    only_ours: Sequence[str] = (),
    best: Sequence[str] = BEST_COPIES,
    place: Place = Place.FRESH,
) -> Work:
    """Convert an image; `shared` options are those of both programs. Sizes are compared where it is compressed."""

    def in_memory(inputs: Inputs) -> Path | None:
        if place is not Place.MEMORY:
            return None
        if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < 3 * inputs.size:
            raise Failed(f"no room in {_MEMORY}, a file system in memory, for two copies")
        return Path(tempfile.mkdtemp(prefix="qcow2c-bench-", dir=_MEMORY))

    def work(inputs: Inputs, runs: int) -> Figures:
        image = source(inputs)
        words = ["convert", "-f", "raw" if image.suffix == ".raw" else "qcow2", "-O", output_format, *shared]
        folder = in_memory(inputs)
        try:
            with scratch(inputs, "ours.copy", "theirs.copy", folder=folder) as (mine, reference):
                copy = partial(timed, overwrite=place is Place.OVER)
                figures = contest(
                    partial(copy, ours(*words, *only_ours, image, mine), target=mine),
                    partial(copy, qemu_img(*words, image, reference), target=reference),
                    {
                        flags: partial(copy, qemu_img(*words, *flags.split(), image, reference), target=reference)
                        for flags in best
                    },
                    runs,
                    lambda: same_image(mine, reference, output_format),
                )
                sizes = (mine.stat().st_size, reference.stat().st_size) if "-c" in shared else None
                return replace(figures, sizes=sizes)
        finally:
            if folder is not None:
                folder.rmdir()

    return work


def same_image(mine: Path, reference: Path, image_format: str) -> None:
    """Raise Failed if the reference program finds the copies different, or ours not clean."""
    run(qemu_img("compare", "-f", image_format, "-F", image_format, mine, reference))
    if image_format == "qcow2":
        run(qemu_img("check", "-f", "qcow2", mine))


def new_metadata(inputs: Inputs, runs: int) -> Figures:
    """Create an image with full metadata. It holds no data: its map is compared, without the places."""
    words = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"]
    size = str(inputs.metadata_size)

    def equal() -> None:
        run(qemu_img("check", "-f", "qcow2", mine))
        total = {}
        for image in (mine, reference):
            run(qemu_img("map", "--output=json", image), output=output)
            total[image] = sum(extent["length"] for extent in json.loads(output.read_bytes()) if "offset" in extent)
        if len(set(total.values())) > 1:
            raise Failed(f"not as much of the disk is allocated: {total}")

    with scratch(inputs, "ours.new", "theirs.new", "output") as (mine, reference, output):
        return contest(
            partial(timed, ours(*words, mine, size), target=mine),
            partial(timed, qemu_img(*words, reference, size), target=reference),
            {},
            runs,
            equal,
        )


# --- what is written to standard output -----------------------------------------------------------------------------


def reports(
    command: str,
    images: Callable[[Inputs], Sequence[Path]],
    *options: str,
    big_caches: bool = False,
    best: Sequence[str] = (),
) -> Work:
    """Run a command that writes facts, into a file; they must be the same."""

    def work(inputs: Inputs, runs: int) -> Figures:
        paths = images(inputs)
        words = [command, *options]
        with scratch(inputs, "ours.out", "theirs.out") as (mine, reference):
            commands = {flags: qemu_img(*words, *flags.split(), *paths) for flags in best}
            if big_caches:
                commands[BIG_CACHES] = qemu_img(*words, "--image-opts", _with_caches(paths[0]))
            return contest(
                partial(timed, ours(*words, *paths), output=mine),
                partial(timed, qemu_img(*words, *paths), output=reference),
                {flags: partial(timed, line, output=reference) for flags, line in commands.items()},
                runs,
                lambda: same_facts(mine.read_bytes(), reference.read_bytes()),
            )

    return work


def _with_caches(image: Path) -> str:
    return f"driver=qcow2,{BIG_CACHES},file.filename={str(image).replace(',', ',,')}"


def same_facts(mine: bytes, reference: bytes) -> None:
    """Raise Failed if what we say is not what the reference program says; one may say more, as newer ones do."""
    if mine == reference:
        return
    try:
        agree = _agree(json.loads(mine), json.loads(reference))
    except ValueError:
        agree = False
    if not agree:
        raise Failed(f"the output differs: {mine[:200]!r}, {reference[:200]!r}")


def _agree(mine: Any, reference: Any) -> bool:
    if isinstance(mine, dict) and isinstance(reference, dict):
        both = mine.keys() & reference.keys()
        says_more = both in (mine.keys(), reference.keys())
        return says_more and all(_agree(mine[key], reference[key]) for key in both)
    if isinstance(mine, list) and isinstance(reference, list):
        return len(mine) == len(reference) and all(map(_agree, mine, reference))
    return bool(mine == reference)


def info(inputs: Inputs, runs: int) -> Figures:
    """The facts of a small image, beside a Python that does nothing."""
    figures = reports("info", lambda inputs: [inputs.small()], "--output=json")(inputs, runs)
    nothing = median_wall(in_turn([partial(timed, [sys.executable, "-c", "pass"])], runs)[0])
    return replace(figures, note=f"`python -c pass`: {nothing * 1000:.0f} ms")


# --- reads and writes within an image -------------------------------------------------------------------------------


def random_reads(inputs: Inputs, runs: int) -> Figures:
    """Read 4 KiB at random within a process; qemu-img bench strides over the image, one request at a time."""
    image = inputs.image("plain")
    blocks = inputs.size // READ_SIZE
    chooser = random.Random(1)
    offsets = [chooser.randrange(blocks) * READ_SIZE for _ in range(READS)]
    count = READS // 10
    stride = 7919 * READ_SIZE
    bench = ("bench", "-f", "qcow2", "-c", str(count), "-d", "1", "-s", str(READ_SIZE), "-S", str(stride))

    def mine() -> Spent:
        with qcow2c.open(image) as disk:
            pread = disk.pread
            with within() as spent:
                for offset in offsets:
                    pread(READ_SIZE, offset)
                return _each(spent(), READS)

    def reference() -> Spent:
        return _each(timed(qemu_img(*bench, image)), count)

    return replace(contest(mine, reference, {}, runs, lambda: None), note="each read")


def _each(spent: Spent, count: int) -> Spent:
    return Spent(spent.wall / count, spent.cpu / count)


def writing(job: writes.WriteJob) -> Job:
    """Return the job that times writes."""
    place = "allocated" if job.allocated else "over a backing file" if job.backing else "new"
    flushed = f"flushed every {job.flush_every}" if job.flush_every else "flushed in the end"
    what = "writes of 1 MiB in order" if job.sequential else f"random writes of 4 KiB, {place}"

    def work(inputs: Inputs, runs: int) -> Figures:
        with TemporaryDirectory(prefix="writes-", dir=inputs.directory) as folder:
            return contest(*writes.runners(job, Path(folder)), {}, runs, lambda: None)

    return Job(f"{what}, {flushed}", work)


def changing(change: changes.Change) -> Job:
    """Return the job that times an operation on an image of full metadata."""

    def work(inputs: Inputs, runs: int) -> Figures:
        with TemporaryDirectory(prefix="changes-", dir=inputs.directory) as folder:
            mine, reference, equal = changes.runners(change, inputs, Path(folder))
            return contest(mine, reference, {}, runs, equal)

    return Job(f"{change.what}, full metadata", work, Aim(1.0))


Prepare = Callable[[Inputs, Path], tuple[Runner, Runner, Callable[[], None]]]
"""Returns, for a folder, what runs ours and the reference program, and what holds the results equal."""


def in_folder(what: str, aim: float | None, prepare: Prepare) -> Job:
    """Return the job of what is prepared in a folder of its own."""

    def work(inputs: Inputs, runs: int) -> Figures:
        with TemporaryDirectory(prefix="job-", dir=inputs.directory) as folder:
            mine, reference, equal = prepare(inputs, Path(folder))
            return contest(mine, reference, {}, runs, equal)

    return Job(what, work, Aim(aim))


# --- the table ------------------------------------------------------------------------------------------------------


def kind(name: str) -> Callable[[Inputs], Path]:
    return lambda inputs: inputs.image(name)


def _to_raw(what: str, aim: float | None, source: str, *options: str, place: Place = Place.FRESH) -> Job:
    return Job(f"{what} to raw{_WHERE[place]}", copies(kind(source), "raw", *options, place=place), Aim(aim))


_WHERE = {Place.FRESH: "", Place.OVER: ", over a file that is there", Place.MEMORY: ", in memory"}


def _to_qcow2(what: str, aim: float, *options: str, level: int | None = None, place: Place = Place.FRESH) -> Job:
    best = MANY_REQUESTS if "-c" in options else BEST_COPIES
    only_ours = () if level is None else ("-o", f"compression_level={level}")
    work = copies(Inputs.raw, "qcow2", *options, only_ours=only_ours, best=best, place=place)
    return Job(f"raw to {what}{_WHERE[place]}", work, Aim(aim))


_ZSTD = ("-c", "-o", "compression_type=zstd")

JOBS = {
    **{f"to-raw-plain{place.value}": _to_raw("qcow2", 0.7, "plain", place=place) for place in Place},
    "to-raw-zlib": _to_raw("zlib", 0.35, "zlib"),
    "to-raw-zstd": _to_raw("zstd", 0.6, "zstd"),
    "to-raw-4k": _to_raw("4 KiB clusters", 0.7, "4k"),
    "to-raw-extended": _to_raw("extended L2", 0.7, "extended"),
    "to-raw-chain": _to_raw("chain of 3 layers", 0.7, "chain"),
    "to-raw-snapshots": _to_raw("image with 5 snapshots", 0.7, "snapshots"),
    "to-raw-snapshot": _to_raw("one of 5 snapshots", 0.7, "snapshots", "-l", SNAPSHOT),
    **{f"to-qcow2{place.value}": _to_qcow2("qcow2", 0.7, place=place) for place in Place},
    "to-qcow2-zlib": _to_qcow2("zlib, default level", 0.33, "-c"),
    "to-qcow2-zlib-fast": _to_qcow2("zlib, ours at level 1", 0.12, "-c", level=1),
    "to-qcow2-zstd": _to_qcow2("zstd, default level", 0.5, *_ZSTD),
    "to-qcow2-zstd-fast": _to_qcow2("zstd, ours at level 1", 0.45, *_ZSTD, level=1),
    "check-small": Job(
        "check, 64 MiB disk", reports("check", lambda inputs: [inputs.small()], "--output=json"), Aim(3.0)
    ),
    "check-4k": Job(
        "check, 4 KiB clusters",
        reports("check", lambda inputs: [inputs.image("4k")], "--output=json", big_caches=True),
    ),
    "check-metadata": Job(
        "check, full metadata",
        reports("check", lambda inputs: [inputs.metadata()], "--output=json", big_caches=True),
        Aim(0.3),
    ),
    "check-fragmented": Job(
        "check, full metadata, fragmented",
        reports("check", lambda inputs: [inputs.fragmented()], "--output=json", big_caches=True),
        Aim(0.35),
    ),
    "map-plain": Job("map", reports("map", lambda inputs: [inputs.image("plain")], "--output=json", big_caches=True)),
    "map-metadata": Job(
        "map, full metadata",
        reports("map", lambda inputs: [inputs.metadata()], "--output=json", big_caches=True),
        Aim(0.15),
    ),
    "map-fragmented": Job(
        "map, full metadata, fragmented",
        reports("map", lambda inputs: [inputs.fragmented()], "--output=json", big_caches=True),
        Aim(0.35),
    ),
    "compare-plain": Job(
        "compare raw and qcow2",
        reports("compare", lambda inputs: [inputs.raw(), inputs.image("plain")], best=BEST_READS),
        Aim(0.6),
    ),
    "compare-zlib": Job(
        "compare raw and zlib",
        reports("compare", lambda inputs: [inputs.raw(), inputs.image("zlib")], best=BEST_READS),
        Aim(0.6),
    ),
    "measure-plain": Job(
        "measure for qcow2",
        reports("measure", lambda inputs: [inputs.image("plain")], "-O", "qcow2", "--output=json"),
    ),
    "measure-metadata": Job(
        "measure for qcow2, full metadata",
        reports("measure", lambda inputs: [inputs.metadata()], "-O", "qcow2", "--output=json"),
    ),
    "create-metadata": Job("create with full metadata", new_metadata),
    "info": Job("info, 64 MiB disk", info, Aim(seconds=0.045)),
    "pread": Job("random reads of 4 KiB", random_reads),
    **{name: changing(change) for name, change in changes.CHANGES.items()},
    **{name: in_folder(one.what, one.aim, partial(encryption.runners, one)) for name, one in encryption.COPIES.items()},
    **{
        name: in_folder(one.what, None, partial(encryption.random_runners, one))
        for name, one in encryption.RANDOM.items()
    },
    **{name: in_folder(one.what, one.aim, partial(doors.runners, one)) for name, one in doors.DOORS.items()},
    **{name: writing(job) for name, job in writes.JOBS.items()},
}
