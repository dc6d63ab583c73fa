"""The appender: bytes reach the store in large aligned writes, and buffers are free as soon as they are written."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.builder import appender
from qcow2c.builder.appender import Appender
from qcow2c.storage.sources import WritableMemory
from qcow2c.storage.store import Buffer

WRITE = 1000


class Writes(WritableMemory):
    """Memory that notes each write: offset and length."""

    def __init__(self) -> None:
        super().__init__(bytearray())
        self.writes: list[tuple[int, int]] = []

    def pwritev(self, parts: Sequence[Buffer], offset: int) -> None:
        self.writes.append((offset, sum(map(len, parts))))
        super().pwritev(parts, offset)


@pytest.fixture(autouse=True, scope="module")
def small_writes() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appender, "WRITE_BYTES", WRITE)
        yield


@given(st.integers(0, 3000), st.lists(st.integers(0, 2500), max_size=12))
def test_what_was_appended_lies_there_in_order(position: int, lengths: list[int]) -> None:
    store = Writes()
    subject = Appender(store, position)
    expected = bytearray(position)
    done: list[int] = []
    for number, length in enumerate(lengths):
        data = bytes([number + 1]) * length
        subject.append(memoryview(data), lambda number=number: done.append(number))
        expected += data
    subject.flush()
    assert store.pread(1 << 20, 0) == (expected if any(lengths) else b"")
    assert done == list(range(len(lengths)))


@given(st.integers(0, 3000), st.lists(st.integers(1, 2500), min_size=1, max_size=12))
def test_all_writes_but_the_first_and_the_last_are_whole_and_aligned(position: int, lengths: list[int]) -> None:
    store = Writes()
    subject = Appender(store, position)
    for length in lengths:
        subject.append(memoryview(bytes(length)))
    subject.flush()
    assert all(offset % WRITE == 0 for offset, _ in store.writes[1:])
    assert all((offset + length) % WRITE == 0 for offset, length in store.writes[:-1])
    assert all(length <= WRITE for _, length in store.writes)


def test_a_buffer_is_held_until_all_of_it_is_written() -> None:
    done: list[str] = []
    subject = Appender(Writes(), 0)
    subject.append(memoryview(bytes(600)), lambda: done.append("first"))
    assert done == []
    subject.append(memoryview(bytes(600)), lambda: done.append("second"))
    assert done == ["first"], "200 bytes of the second one are waiting"
    subject.flush()
    assert done == ["first", "second"]
