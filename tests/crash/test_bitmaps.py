"""Whenever a crash comes while bitmaps are changed, the old ones are there or the new ones; leaks at most."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import qcow2c
from qcow2c.bitmaps.edit import BitmapEdit, resized
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Buffer
from qcow2c.writer.session import Session

from .recording import CrashState, Recorder, crash_states

KIB = 1024
SIZE = 256 * KIB
Facts = list[tuple[str, int, bool, list[tuple[int, int]] | None]]


def change(image: qcow2c.Image, *acts: Callable[[BitmapEdit], object]) -> None:
    with image.engine.changing_bitmaps() as edit:
        for act in acts:
            act(edit)


def new_image(**options: object) -> bytes:
    """Return an image with three bitmaps that differ."""
    data = bytearray()
    qcow2c.create(data, SIZE, **{"cluster_size": 512, **options})
    with qcow2c.open(data, "r+") as image:
        change(image, *[lambda edit, n=name: edit.add(n, 512) for name in "abc"])
        image.pwrite(b"1" * 100_000, 0)
    with qcow2c.open(data, "r+") as image:
        change(image, lambda edit: edit.clear("b"), lambda edit: edit.enable("c", enabled=False))
        image.pwrite(b"2" * 5000, 200_000)
    return bytes(data)


def qemu_image(folder: Path) -> bytes:
    """Return an image of qemu-img's, whose bitmaps extension lies behind the names of features."""
    for words in (
        ["qemu-img", "create", "-q", "-f", "qcow2", "image.qcow2", str(SIZE)],
        ["qemu-img", "bitmap", "--add", "-g", "512", "image.qcow2", "a"],
        ["qemu-img", "bitmap", "--add", "-g", "4k", "image.qcow2", "b"],
        ["qemu-io", "-f", "qcow2", "-c", "write 3k 50k", "image.qcow2"],
    ):
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return (folder / "image.qcow2").read_bytes()


def facts(data: bytes) -> Facts:
    """Return what the bitmaps of an image say; an inconsistent one says nothing."""
    with qcow2c.open(data) as image:
        return [
            (found.name, found.granularity, found.enabled, None if found.inconsistent else list(found.ranges()))
            for found in image.bitmaps
        ]


@dataclass(frozen=True)
class Story:
    before: Callable[[], bytes]
    act: Callable[[qcow2c.Image], None]


def several(image: qcow2c.Image) -> None:
    change(
        image,
        lambda edit: edit.merge("b", edit.find("a")),
        lambda edit: edit.clear("a"),
        lambda edit: edit.remove("c"),
        lambda edit: edit.add("d", 4096),
        lambda edit: edit.merge("d", edit.find("b")),
        lambda edit: edit.enable("b", enabled=False),
    )


def last_one(image: qcow2c.Image) -> None:
    change(image, *[lambda edit, n=name: edit.remove(n) for name in "abc"])


def first_one(image: qcow2c.Image) -> None:
    change(image, lambda edit: edit.add("new"))


def other_size(image: qcow2c.Image) -> None:
    engine, layer = image.engine, image.layer
    edit = resized(layer.store, Header.load(layer.store), engine.place, SIZE // 2 + 512)
    made = edit.header_change()
    engine.change_header(HeaderChange({**made.fields, "size": SIZE // 2 + 512}, made.extensions))
    engine.session.release(edit.released)


def without_bitmaps() -> bytes:
    data = bytearray()
    qcow2c.create(data, SIZE)
    return bytes(data)


STORIES = {
    "several at once": Story(new_image, several),
    "the last one goes": Story(new_image, last_one),
    "the first one comes": Story(without_bitmaps, first_one),
    "lazy refcounts": Story(lambda: new_image(lazy_refcounts=True), several),
    "1-bit refcounts": Story(lambda: new_image(refcount_bits=1), several),
    "another size": Story(new_image, other_size),
}


def play(before: bytes, act: Callable[[qcow2c.Image], None]) -> tuple[Recorder, bytes]:
    """Record a change; return the record, and the image after it."""
    recorder = Recorder()
    store = recorder.store(before)
    with qcow2c.open(store, "r+") as image:
        act(image)
    return recorder, bytes(store.contents)


def judge(state: CrashState, allowed: list[Facts], guest: bytes) -> None:
    data = state.files[0]
    assert qcow2c.check(data).exit_code in (0, 3), state.story
    assert facts(data) in allowed, state.story
    with qcow2c.open(data) as image:
        assert image.pread(SIZE, 0) == guest[: image.size()], state.story
    later = bytearray(data)
    with qcow2c.open(later, "r+") as image:  # It can be changed on.
        change(image, lambda edit: edit.add("one more"))
    assert facts(bytes(later))[:-1] == facts(data), state.story
    assert qcow2c.check(bytes(later)).exit_code in (0, 3), state.story


def run_story(before: bytes, act: Callable[[qcow2c.Image], None]) -> int:
    recorder, after = play(before, act)
    allowed = [facts(before), facts(after)]
    assert allowed[0] != allowed[1] and qcow2c.check(after).exit_code == 0
    with qcow2c.open(before) as image:
        guest = image.pread(SIZE, 0)
    judged = 0
    for state in crash_states(recorder, 1):
        judge(state, allowed, guest)
        judged += 1
    return judged


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_crash_leaves_the_old_bitmaps_or_the_new_ones(story: Story) -> None:
    assert run_story(story.before(), story.act) >= 5


@pytest.mark.usefixtures("requires_qemu")
def test_it_does_where_the_extension_is_not_in_the_first_sector(tmp_path: Path) -> None:
    before = qemu_image(tmp_path)
    assert Header.load(Memory(before)).extensions[-2].span.end > 512
    assert run_story(before, lambda image: change(image, lambda edit: edit.clear("a"))) >= 5
    assert run_story(before, lambda image: change(image, *[lambda edit, n=n: edit.remove(n) for n in "ab"])) >= 5


def test_a_bitmap_that_is_not_in_use_has_every_change_of_the_guest() -> None:
    before = new_image()

    def act(image: qcow2c.Image) -> None:
        image.pwrite(b"3" * 3000, 120_000)
        change(image, lambda edit: edit.add("d", 512), lambda edit: edit.remove("c"))
        image.pwrite(b"4" * 3000, 30_000)

    recorder, after = play(before, act)
    assert qcow2c.check(after).exit_code == 0
    with qcow2c.open(before) as image:
        guest = image.pread(SIZE, 0)
    seen = set()
    for state in crash_states(recorder, 1):
        data = state.files[0]
        assert qcow2c.check(data).exit_code in (0, 3), state.story
        names = [found[0] for found in facts(data)]
        assert names in (["a", "b", "c"], ["a", "b", "d"]), state.story
        with qcow2c.open(data) as image:
            now = image.pread(SIZE, 0)
        changed = [at for at in range(0, SIZE, 512) if now[at : at + 512] != guest[at : at + 512]]
        for name, _, enabled, ranges in facts(data):
            seen.add((name, ranges is None))
            if name in "ab" and ranges is not None:
                assert enabled
                assert all(any(at < start + length and at >= start for start, length in ranges) for at in changed)
    assert {("a", True), ("a", False), ("d", True), ("d", False)} <= seen


# --- the judge finds a broken order ---------------------------------------------------------------------------------


def let_go_before_the_header(patch: pytest.MonkeyPatch) -> None:
    original, release = Session.change_header, Session.release

    def change_header(session: Session, wanted: HeaderChange) -> None:
        old = Header.load(session._cache.medium.store).bitmaps
        assert old is not None
        release(session, [(old.bitmap_directory_offset, old.bitmap_directory_size)])
        original(session, wanted)

    patch.setattr(Session, "change_header", change_header)
    patch.setattr(Session, "release", lambda _session, _runs: None)


def no_flush(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Medium, "flush", lambda _medium: None)


def tables_in_place(patch: pytest.MonkeyPatch) -> None:
    original = BitmapEdit._place

    def place(edit: BitmapEdit, data: bytes) -> int:
        old = Header.load(edit._store).bitmaps
        if old is not None and len(data) == old.bitmap_directory_size:
            edit._store.pwrite(data, old.bitmap_directory_offset)
        return original(edit, data)

    patch.setattr(BitmapEdit, "_place", place)


BROKEN = {
    "let go before the header": (let_go_before_the_header, several),
    "no flush": (no_flush, several),
    "the directory in place": (
        tables_in_place,
        lambda image: change(image, lambda edit: edit.enable("a", enabled=False), lambda edit: edit.clear("c")),
    ),
}


@pytest.mark.parametrize(("breaking", "act"), BROKEN.values(), ids=BROKEN)
def test_a_broken_order_is_found(
    breaking: Callable[[pytest.MonkeyPatch], None],
    act: Callable[[qcow2c.Image], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = new_image()
    breaking(monkeypatch)
    recorder, after = play(before, act)
    monkeypatch.undo()
    with qcow2c.open(before) as image:
        guest = image.pread(SIZE, 0)
    with pytest.raises(AssertionError):
        for state in crash_states(recorder, 1):
            judge(state, [facts(before), facts(after)], guest)


class _Full(WritableMemory):
    """A file that takes so many writes, and no more."""

    left = 0

    def pwrite(self, data: Buffer, offset: int) -> None:
        if not self.left:
            raise qcow2c.Qcow2Error("no space left")
        self.left -= 1
        super().pwrite(data, offset)


def test_a_write_that_fails_leaves_a_sound_image() -> None:
    before = new_image()
    _, after = play(before, several)
    for left in range(40):
        store = _Full(bytearray(before))
        store.left = left
        try:
            with qcow2c.open(store, "r+") as image:
                several(image)
        except qcow2c.Qcow2Error:
            pass
        data = store.pread(store.size(), 0)
        assert qcow2c.check(data).exit_code in (0, 3), left
        assert facts(data) in (facts(before), facts(after)), left
    assert facts(data) == facts(after)
