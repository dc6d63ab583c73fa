"""Operations that change an image in place, each on copies made for the run: snapshots, resize, commit, rebase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.inputs import SNAPSHOT, Inputs
from bench.timing import Runner, Spent, qemu_img, run, timed
from bench.timing import qcow2c as ours

IMAGE = "IMAGE"
"""In the words of a command: the image that it changes."""


@dataclass(frozen=True)
class Change:
    """The images that a command needs, lowest first; it is given the last one, and may change each."""

    what: str
    words: Callable[[Inputs], Sequence[str]]
    images: Callable[[Inputs], Sequence[Path]]


def runners(change: Change, inputs: Inputs, folder: Path) -> tuple[Runner, Runner, Callable[[], None]]:
    """Return how it is done by us and by the reference program, and what holds the results equal."""
    sources = change.images(inputs)

    def once(place: Path, program: Callable[..., list[str]]) -> Spent:
        place.mkdir(exist_ok=True)
        for source in sources:
            run(["cp", "--sparse=always", source, place])
        changed = place / sources[-1].name
        return timed(program(*(changed if word == IMAGE else word for word in change.words(inputs))))

    mine, reference = folder / "ours", folder / "theirs"

    def equal() -> None:
        for source in sources:
            for place in (mine, reference):
                run(qemu_img("check", "-q", "-f", "qcow2", place / source.name))
            run(qemu_img("compare", "-f", "qcow2", "-F", "qcow2", mine / source.name, reference / source.name))

    return partial(once, mine, ours), partial(once, reference, qemu_img), equal


def _metadata(inputs: Inputs) -> list[Path]:
    return [inputs.metadata()]


def _snapshot(inputs: Inputs) -> list[Path]:
    return [inputs.with_snapshot()]


def _overlay(inputs: Inputs) -> list[Path]:
    return [inputs.metadata(), inputs.overlay()]


def _two_bases(inputs: Inputs) -> list[Path]:
    return [inputs.with_snapshot(), *_overlay(inputs)]


CHANGES = {
    "snapshot-create": Change("snapshot -c", lambda _inputs: ["snapshot", "-c", "new", IMAGE], _metadata),
    "snapshot-apply": Change("snapshot -a", lambda _inputs: ["snapshot", "-a", SNAPSHOT, IMAGE], _snapshot),
    "snapshot-delete": Change("snapshot -d", lambda _inputs: ["snapshot", "-d", SNAPSHOT, IMAGE], _snapshot),
    "resize-grow": Change(
        "resize to an eighth more", lambda inputs: ["resize", "-q", IMAGE, f"+{inputs.metadata_size // 8}"], _metadata
    ),
    "resize-shrink": Change(
        "resize to an eighth less",
        lambda inputs: ["resize", "-q", "--shrink", IMAGE, f"-{inputs.metadata_size // 8}"],
        _metadata,
    ),
    "commit": Change("commit of an overlay", lambda _inputs: ["commit", "-q", IMAGE], _overlay),
    "rebase": Change(
        "rebase to another image",
        lambda inputs: ["rebase", "-q", "-b", inputs.with_snapshot().name, "-F", "qcow2", IMAGE],
        _two_bases,
    ),
}
