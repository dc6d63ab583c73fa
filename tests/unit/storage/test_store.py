"""What the base class of stores does for those that say no more than how to read and write."""

from __future__ import annotations

import errno

import pytest

from qcow2c.errors import Span, StoreError
from qcow2c.storage.store import Buffer, Store, no_space, reason

MIB = 1 << 20


class Plain(Store):
    """A store with only what it must have; it notes how long its writes are."""

    name = "plain"
    writable = True

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.lengths: list[int] = []

    def size(self) -> int:
        return len(self.content)

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    def pwrite(self, data: Buffer, offset: int) -> None:
        self.lengths.append(len(data))
        self.content.extend(bytes(max(0, offset - len(self.content))))
        self.content[offset : offset + len(data)] = data


def test_zeros_are_written_in_parts_that_need_little_memory() -> None:
    store = Plain(b"x" * 10)
    store.write_zeroes(4, 3 * MIB)
    assert store.content == b"xxxx" + bytes(3 * MIB)
    assert sum(store.lengths) == 3 * MIB and max(store.lengths) <= MIB


def test_space_is_reserved_behind_the_end_alone() -> None:
    store = Plain(b"content")
    store.allocate(3, 2 * MIB)
    assert store.content == b"content".ljust(2 * MIB + 3, b"\0")
    assert sum(store.lengths) == 2 * MIB - 4


def test_without_knowledge_all_is_data_and_nothing_is_shared() -> None:
    store = Plain(b"content")
    assert list(store.extents(2, 5)) == [(Span(2, 3), True)]
    assert store.allocated_size() is None
    assert store.clone(Plain(b"other"), 0, 0, 5) is False
    store.punch(0, 5)
    assert store.content == b"content"


def test_what_is_not_written_is_refused_with_the_bytes_that_were_meant() -> None:
    class Readable(Store):
        name = "readable"
        size = Plain.size
        pread = Plain.pread

    with pytest.raises(StoreError, match="'readable' is open for reading only") as caught:
        Readable().pwrite(b"abc", 7)
    assert caught.value.where == Span(7, 3)
    with pytest.raises(StoreError) as caught:
        Readable().flush()
    assert caught.value.where is None


def test_an_error_of_the_system_keeps_its_words_and_its_number() -> None:
    error = Plain().failure(no_space(), "write", Span(1, 2))
    assert error.errno == errno.ENOSPC and error.where == Span(1, 2)
    assert error.message == "Could not write 'plain': nothing could be written"
    assert reason(MemoryError()) == "not enough memory"
    assert reason(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert reason(ValueError("too long")) == "too long"


def test_after_a_failed_flush_the_store_is_no_longer_writable() -> None:
    store = Plain()
    store.require_writable(Span(0, 1))
    store.flush_failure(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StoreError, match=r"earlier flush failed.*Input/output error") as caught:
        store.require_writable(Span(0, 1))
    assert caught.value.errno == errno.EIO
