"""The appender: bytes reach the store in their order, and what is small in few writes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from qcow2c.builder.appender import WRITE_BYTES, Appender
from qcow2c.storage.sources import WritableMemory
from qcow2c.storage.store import Buffer


class Writes(WritableMemory):
    """Memory that notes each write: offset and length."""

    def __init__(self) -> None:
        super().__init__(bytearray())
        self.writes: list[tuple[int, int]] = []

    def pwritev(self, parts: Sequence[Buffer], offset: int) -> None:
        self.writes.append((offset, sum(map(len, parts))))
        super().pwritev(parts, offset)


@given(st.integers(0, 3000), st.lists(st.integers(0, 2500), max_size=12))
def test_what_was_appended_lies_there_in_order(position: int, lengths: list[int]) -> None:
    store = Writes()
    subject = Appender(store, position)
    expected = bytearray(position)
    for number, length in enumerate(lengths):
        data = bytes([number + 1]) * length
        subject.append(memoryview(data))
        expected += data
    subject.flush()
    assert store.pread(1 << 20, 0) == (expected if any(lengths) else b"")
    assert len(store.writes) == any(lengths)


def test_bytes_are_written_as_soon_as_enough_have_come_together() -> None:
    store = Writes()
    subject = Appender(store, 7)
    half = memoryview(bytes(WRITE_BYTES // 2))
    subject.append(half)
    assert store.writes == []
    subject.append(half)
    assert store.writes == [(7, WRITE_BYTES)]
    subject.append(memoryview(bytes(3 * WRITE_BYTES)))
    assert store.writes[1:] == [(7 + WRITE_BYTES, 3 * WRITE_BYTES)]
    subject.flush()
    assert len(store.writes) == 2


def test_a_buffer_can_be_used_again_after_a_flush() -> None:
    store = Writes()
    subject = Appender(store, 0)
    buffer = bytearray(b"first")
    for text in (b"first", b"other"):
        buffer[:] = text
        subject.append(memoryview(buffer))
        subject.flush()
    assert store.pread(100, 0) == b"firstother"
