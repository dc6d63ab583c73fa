"""An interrupt at every line of every change: nothing that was flushed is lost, and no later call succeeds falsely."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

import qcow2c
from qcow2c.disk.size import resize
from qcow2c.errors import Qcow2Error
from qcow2c.storage.medium import Medium
from qcow2c.writer.mapping import Mapping
from tests.profile import DEEP

KIB = 1024
SIZE = 32 * KIB
CLUSTER = 4 * KIB
PACKAGE = os.path.dirname(qcow2c.__file__)
STATES = 1 << 62 if DEEP else 50
"""Lines of one change that are interrupted, evenly chosen; the deep profile takes all of them."""


class Interrupter:
    """Raises KeyboardInterrupt at the n-th line or call of the package, and counts them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event in ("call", "line") and not _enters_or_leaves(frame):
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self

    def run(self, act: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            act()
        finally:
            sys.settrace(before)


def _enters_or_leaves(frame: FrameType) -> bool:
    """Return whether a line is a `with`: no signal comes between the end of its block and its `__exit__`."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def old_disk() -> bytes:
    return b"".join(bytes([65 + index]) * CLUSTER for index in range(5)) + bytes(SIZE - 5 * CLUSTER)


def made(*, bitmap: bool = True) -> bytearray:
    """Return an image with a snapshot, shared, compressed and own clusters, perhaps with an enabled bitmap."""
    data = bytearray()
    qcow2c.create(data, SIZE, cluster_size=CLUSTER)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(old_disk()[: 3 * CLUSTER], 0)
        image.write_compressed(old_disk()[3 * CLUSTER : 4 * CLUSTER], 3 * CLUSTER)
        image.snapshots.create("before")
        image.pwrite(old_disk()[4 * CLUSTER : 5 * CLUSTER], 4 * CLUSTER)
        if bitmap:
            with image.engine.changing_bitmaps() as edit:
                edit.add("marks", 512)
    return data


def add_bitmap(image: qcow2c.Image) -> None:
    with image.engine.changing_bitmaps() as edit:
        edit.add("more", 512)


def remove_bitmap(image: qcow2c.Image) -> None:
    with image.engine.changing_bitmaps() as edit:
        edit.remove("marks")


NEW = b"new!" * (2 * KIB)
NOTHING = (0, b"")

# What is done, and what of the disk it changes: where, and to what.
CHANGES: dict[str, tuple[Callable[[qcow2c.Image], object], tuple[int, bytes]]] = {
    "new clusters": (lambda image: image.pwrite(NEW, 5 * CLUSTER), (5 * CLUSTER, NEW)),
    "shared clusters": (lambda image: image.pwrite(NEW[:5000], 1000), (1000, NEW[:5000])),
    "own cluster": (lambda image: image.pwrite(NEW[:600], 4 * CLUSTER + 100), (4 * CLUSTER + 100, NEW[:600])),
    "over compressed data": (lambda image: image.pwrite(NEW[:100], 3 * CLUSTER), (3 * CLUSTER, NEW[:100])),
    "zeros": (lambda image: image.write_zeroes(500, 7000), (500, bytes(7000))),
    "zeros, unmapped": (lambda image: image.write_zeroes(CLUSTER, 16 * KIB, unmap=True), (CLUSTER, bytes(16 * KIB))),
    "discard": (lambda image: image.discard(0, SIZE), (0, bytes(SIZE))),
    "compressed": (lambda image: image.write_compressed(bytes(8 * KIB), 8 * KIB), (8 * KIB, bytes(8 * KIB))),
    "flush": (lambda image: image.flush(), NOTHING),
    "bitmap added": (add_bitmap, NOTHING),
    "bitmap removed": (remove_bitmap, NOTHING),
    "snapshot taken": (lambda image: image.snapshots.create("second"), NOTHING),
    "snapshot renamed": (lambda image: image.snapshots.rename("before", "earlier"), NOTHING),
    "snapshot applied": (
        lambda image: image.snapshots.apply("before"),
        (4 * CLUSTER, bytes(SIZE - 4 * CLUSTER)),
    ),
    "larger disk": (lambda image: resize(image, 2 * SIZE), NOTHING),
    "close": (lambda image: image.close(), NOTHING),
}

PENDING = 7 * CLUSTER, b"pending!" * 200
AFTER = 7 * CLUSTER + 2100, b"after" * 100
"""Written before the change, and not flushed; and after it."""


def judge(data: bytearray, line: int, where: tuple[int, bytes], *, flushed: bool) -> None:
    """Hold the file against what may be there: `flushed` says that what was written after the change is durable."""
    story = f"interrupted at line {line}"
    result = qcow2c.check(bytes(data))
    assert result.exit_code in (0, 3), story
    with qcow2c.open(bytes(data)) as image:
        found = image.pread(SIZE, 0)
        [*snapshots] = image.snapshots.list()
        assert snapshots[0].open().pread(4 * CLUSTER, 0) == old_disk()[: 4 * CLUSTER], story
    allowed = [bytearray(old_disk())]
    for offset, text in (PENDING, where, AFTER):
        for disk in list(allowed):
            allowed.append(bytearray(disk))
            allowed[-1][offset : offset + len(text)] = text
    for at in range(0, SIZE, 512):
        assert found[at : at + 512] in [disk[at : at + 512] for disk in allowed], f"{story}: sector at {at}"
    if flushed:
        start, text = AFTER
        assert found[start : start + len(text)] == text, story


def lines_of(change: Callable[[qcow2c.Image], object], data: bytearray) -> int:
    counter = Interrupter(0)
    image = qcow2c.open(data, "r+")
    image.pwrite(PENDING[1], PENDING[0])
    counter.run(lambda: change(image))
    image.close()
    return counter.lines


def interrupted_everywhere(what: str, *, goes_on: bool) -> int:
    """Interrupt a change at each line, judge what is left, and return how often that ended all writing."""
    change, where = CHANGES[what]
    before = bytes(made(bitmap=what != "snapshot applied"))  # That is refused beside a bitmap in use.
    lines = lines_of(change, bytearray(before))
    ended = 0
    for at in range(1, lines + 1, max(1, lines // STATES)):
        data = bytearray(before)
        image = qcow2c.open(data, "r+")
        image.pwrite(PENDING[1], PENDING[0])
        with suppress(KeyboardInterrupt):  # It comes to nothing where Python was closing a generator.
            Interrupter(at).run(lambda: change(image))  # noqa: B023
        flushed = False
        if goes_on:
            try:
                image.pwrite(AFTER[1], AFTER[0])
                image.flush()
                flushed = True
            except (Qcow2Error, ValueError):
                ended += 1
        try:
            image.close()
        except Qcow2Error:
            ended += not goes_on
        judge(data, at, where, flushed=flushed)
    return ended


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("goes_on", [False, True], ids=["closes", "goes on"])
@pytest.mark.parametrize("what", CHANGES)
def test_an_interrupt_loses_nothing_that_was_flushed(what: str, *, goes_on: bool) -> None:
    ended = interrupted_everywhere(what, goes_on=goes_on)
    assert ended or what == "close", "no line lies between two steps of a change"


@pytest.mark.parametrize("sound", [True, False])
def test_the_judge_finds_a_change_that_goes_on_after_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, *, sound: bool
) -> None:
    """A table that is released before another takes its place, and an interrupt between; then all goes on, or not."""

    def released_first(mapping: Mapping, guest_offset: int) -> None:
        table = mapping._reader.table(guest_offset)
        assert table is not None
        mapping._cache.release(table.host_offset // CLUSTER)
        raise KeyboardInterrupt

    data = made()
    image = qcow2c.open(data, "r+")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if not sound:
            patch.setattr(Medium, "give_up", lambda _medium, _cause, _reason: None)
        patch.setattr(Mapping, "writable_table", released_first)
        image.pwrite(NEW, 0)
    with suppress(Qcow2Error):
        image.close()
    if sound:
        judge(data, 1, (0, NEW), flushed=False)
    else:
        with pytest.raises(AssertionError, match="interrupted at line"):
            judge(data, 1, (0, NEW), flushed=False)
