"""A medium: flushes only what was written, and writes nothing more once a flush has failed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qcow2c.errors import StoreError
from qcow2c.storage.medium import Medium
from tests.crash.recording import Kind, Recorder, RecordingStore

CONTENT = b"abcdefgh"
CHANGES: dict[str, Callable[[Medium], None]] = {
    "write": lambda medium: medium.write([b"x"], 0),
    "write_zeroes": lambda medium: medium.write_zeroes(0, 4),
    "punch": lambda medium: medium.punch(0, 4),
}


def recorded() -> tuple[Medium, Recorder]:
    recorder = Recorder()
    return Medium(recorder.store(CONTENT)), recorder


def kinds(recorder: Recorder) -> list[Kind]:
    return [event.kind for event in recorder.log]


def test_parts_lie_one_after_the_other() -> None:
    medium, _ = recorded()
    medium.write([b"12", b"", bytearray(b"3")], 2)
    medium.write([memoryview(b"!")], 7)
    assert medium.store.pread(9, 0) == b"ab123fg!"


def test_what_was_not_written_to_is_not_flushed() -> None:
    medium, recorder = recorded()
    medium.flush()
    assert recorder.log == []


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_flushed_once(change: Callable[[Medium], None]) -> None:
    medium, recorder = recorded()
    change(medium)
    medium.flush()
    medium.flush()
    assert kinds(recorder).count(Kind.FLUSH) == 1 and recorder.log[-1].kind is Kind.FLUSH


class Undurable(RecordingStore):
    """A store whose first flush fails, and whose later ones would succeed."""

    failed = False

    def flush(self) -> None:
        if not self.failed:
            self.failed = True
            raise StoreError("the device is gone")


@pytest.mark.parametrize(
    "then", [*CHANGES.values(), Medium.flush, Medium.require_sound], ids=[*CHANGES, "flush", "ask"]
)
def test_a_failed_flush_is_final(then: Callable[[Medium], None]) -> None:
    recorder = Recorder()
    recorder.initial.append(CONTENT)
    medium = Medium(Undurable(recorder, 0, bytearray(CONTENT)))
    medium.write([b"x"], 0)
    with pytest.raises(StoreError, match="the device is gone"):
        medium.flush()
    written = len(recorder.log)
    with pytest.raises(StoreError, match=r"earlier flush .* failed.*the device is gone"):
        then(medium)
    assert len(recorder.log) == written
