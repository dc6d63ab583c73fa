"""The contract of stores finds each way of breaking it: a store with one fault fails the test that is about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

import pytest

from qcow2c.errors import Span
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Buffer, Store
from qcow2c.testing import Made, WritableStoreContract


class ZerosBehindTheEnd(Memory):
    def pread(self, length: int, offset: int) -> bytes:
        return super().pread(length, offset).ljust(length, b"\0")


class FillsTheBuffer(Memory):
    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        return super().readinto_at(buffer, offset) and len(buffer)


class HolesWithData(Memory):
    def extents(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        return ((span, False) for span, _ in super().extents(start, end))


class ExtentsThatEndEarly(Memory):
    def extents(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        return super().extents(start, min(end, 4096))


class LikeEveryOther(Memory):
    def identity(self) -> object:
        return "store"


class NeverEmpty(Memory):
    def size(self) -> int:
        return super().size() or 1


class SharesOnePosition(Memory):
    def pread(self, length: int, offset: int) -> bytes:
        self.position = offset
        sleep(0.0005)
        return super().pread(length, self.position)


class WritableByMistake(WritableMemory):
    writable = False


class ClosedOnce(Memory):
    def close(self) -> None:
        super().close()
        del self._data


class CutsWritesShort(WritableMemory):
    def pwrite(self, data: Buffer, offset: int) -> None:
        super().pwrite(data[:20], offset)


class WritesPartsInOnePlace(WritableMemory):
    def pwritev(self, parts: object, offset: int) -> None:
        for part in parts:  # type: ignore[attr-defined]
            self.pwrite(part, offset)


class ZeroesNothing(WritableMemory):
    def write_zeroes(self, offset: int, length: int) -> None:
        self.allocate(offset, length)


class GrowsByOnes(WritableMemory):
    def truncate(self, size: int) -> None:
        self._data[self.size() :] = b"1" * max(0, size - self.size())
        super().truncate(size)


class AllocatesOverData(WritableMemory):
    def allocate(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)


class PunchesTooMuch(WritableMemory):
    def punch(self, offset: int, length: int) -> None:
        self.write_zeroes(max(0, offset - 1), min(length + 1, self.size() - offset))


class PunchesBehindTheEnd(WritableMemory):
    def punch(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)


class ClonesSomethingElse(WritableMemory):
    def clone(self, source: Store, _source_offset: int, offset: int, length: int) -> bool:
        self.pwrite(source.pread(length, 0), offset)
        return True


class WrapsAround(WritableMemory):
    def pwrite(self, data: Buffer, offset: int) -> None:
        super().pwrite(data, offset % (1 << 32) if offset >= 1 << 62 else offset)


class NeverFlushes(WritableMemory):
    def __init__(self, data: bytearray) -> None:
        super().__init__(bytearray(data))


FAULTS = {
    ZerosBehindTheEnd: "test_a_read_gives_what_is_there_and_ends_with_the_store",
    FillsTheBuffer: "test_a_read_gives_what_is_there_and_ends_with_the_store",
    HolesWithData: "test_extents_cover_a_range_without_gaps_and_holes_are_zeros",
    ExtentsThatEndEarly: "test_extents_cover_a_range_without_gaps_and_holes_are_zeros",
    LikeEveryOther: "test_a_store_has_a_name_and_is_identical_to_itself_alone",
    NeverEmpty: "test_an_empty_store_has_nothing_to_read",
    SharesOnePosition: "test_threads_read_at_once",
    WritableByMistake: "test_a_store_for_reading_refuses_every_change",
    ClosedOnce: "test_closing_twice_does_nothing",
    CutsWritesShort: "test_any_history_of_changes_does_what_it_does_to_a_bytearray",
    WritesPartsInOnePlace: "test_what_is_flushed_lies_on_the_medium",
    ZeroesNothing: "test_any_history_of_changes_does_what_it_does_to_a_bytearray",
    GrowsByOnes: "test_any_history_of_changes_does_what_it_does_to_a_bytearray",
    AllocatesOverData: "test_space_that_is_allocated_changes_no_byte",
    PunchesTooMuch: "test_giving_space_back_touches_no_other_byte_and_never_grows",
    PunchesBehindTheEnd: "test_giving_space_back_touches_no_other_byte_and_never_grows",
    ClonesSomethingElse: "test_a_clone_holds_the_same_bytes_where_it_is_made_at_all",
    WrapsAround: "test_offsets_that_no_file_has_are_errors",
    NeverFlushes: "test_what_is_flushed_lies_on_the_medium",
}
"""Stores with one fault each, and the test that must find it."""


def contract_of(kind: type[Store]) -> WritableStoreContract:
    class Contract(WritableStoreContract):
        @contextmanager
        def make(self, content: bytes, *, writable: bool) -> Iterator[Made]:
            data = bytearray(content)
            if issubclass(kind, WritableMemory) == writable or kind is WritableByMistake:
                store = kind(data)  # type: ignore[call-arg]
            else:
                store = WritableMemory(data) if writable else Memory(data)
            yield Made(store, lambda: bytes(data))

    return Contract()


@pytest.mark.parametrize(("kind", "test"), FAULTS.items(), ids=[kind.__name__ for kind in FAULTS])
def test_a_store_with_a_fault_fails(kind: type[Store], test: str) -> None:
    with pytest.raises((AssertionError, AttributeError)):
        getattr(contract_of(kind), test)()


def test_each_test_of_the_contract_finds_some_fault() -> None:
    tests = {name for name in dir(WritableStoreContract) if name.startswith("test_")}
    assert tests == set(FAULTS.values())
