"""`StoreContract`: what a store promises, as tests to inherit. A bytearray is the model; no test framework is needed.

Subclass it under a name that your test runner collects, and say how a store of the kind is made over given bytes.
The medium is asked behind the store's back, so that a store cannot vouch for itself. Spec: `qcow2c.storage.store`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from qcow2c.errors import StoreError
from qcow2c.storage.store import Store

CONTENT = bytes(range(1, 256)) * 20
"""What is on a medium before a test begins: no byte of it is zero."""

FAR = (1 << 62, 1 << 63, 1 << 64)
"""Offsets that no file has."""

_CHANGES: dict[str, tuple[Any, ...]] = {
    "pwrite": (b"x", 3),
    "pwritev": ([b"x", b"y"], 3),
    "flush": (),
    "truncate": (3,),
    "allocate": (0, 3),
    "write_zeroes": (0, 3),
    "punch": (0, 3),
}
"""Each method of `Store` that changes something, with arguments."""


class Made(NamedTuple):
    """A store over a medium of its own, and the medium as others see it."""

    store: Store
    stored: Callable[[], bytes]
    """Return all bytes of the medium, without the store."""


class StoreContract(ABC):
    """What every store promises: reads at every edge, and that nothing is written through it unless it was asked for.

    A context manager of the subclass makes the medium, and removes it at its end.
    """

    @abstractmethod
    def make(self, content: bytes, *, writable: bool) -> AbstractContextManager[Made]:
        """Return a store over a new medium with `content`; it is `writable` only where that is asked for."""

    def test_a_read_gives_what_is_there_and_ends_with_the_store(self) -> None:
        with self.make(CONTENT, writable=False) as (store, _):
            assert store.size() == len(CONTENT)
            for length, offset in _reads():
                expected = CONTENT[offset : offset + length]
                assert store.pread(length, offset) == expected, (length, offset)
                buffer = bytearray(b"?" * length)
                assert store.readinto_at(memoryview(buffer), offset) == len(expected), (length, offset)
                assert buffer == expected.ljust(length, b"?"), (length, offset)

    def test_an_empty_store_has_nothing_to_read(self) -> None:
        with self.make(b"", writable=False) as (store, _):
            assert store.size() == 0
            assert store.pread(10, 0) == b""
            assert list(store.extents(0, 0)) == []

    def test_extents_cover_a_range_without_gaps_and_holes_are_zeros(self) -> None:
        content = CONTENT + bytes(1 << 20) + CONTENT
        with self.make(content, writable=False) as (store, _):
            for start, end in ((0, len(content)), (3, 5000), (len(CONTENT) + 7, 1 << 20), (5, 5)):
                at = start
                for span, holds_data in store.extents(start, end):
                    assert span.offset == at and span.length
                    assert holds_data or not any(content[at : span.end])
                    at = span.end
                assert at == end

    def test_a_store_has_a_name_and_is_identical_to_itself_alone(self) -> None:
        with self.make(CONTENT, writable=False) as (store, _), self.make(CONTENT, writable=False) as (other, _):
            assert store.name and isinstance(store.name, str)
            assert store.identity() == store.identity() != other.identity()
            occupied = store.allocated_size()
            assert occupied is None or occupied >= 0

    def test_threads_read_at_once(self) -> None:
        places = [(number * 37 % 4000, 1 + number % 900) for number in range(200)]
        with self.make(CONTENT, writable=False) as (store, _), ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda place: store.pread(place[1], place[0]), places)
            assert list(found) == [CONTENT[offset : offset + length] for offset, length in places]

    def test_a_store_for_reading_refuses_every_change(self) -> None:
        for method, arguments in _CHANGES.items():
            with self.make(CONTENT, writable=False) as (store, stored):
                assert not store.writable
                _require_refusal(store, method, *arguments)
                assert store.pread(len(CONTENT) + 1, 0) == stored() == CONTENT

    def test_closing_twice_does_nothing(self) -> None:
        with self.make(CONTENT, writable=False) as (store, _):
            store.close()
            store.close()


class WritableStoreContract(StoreContract):
    """What every store promises that can be written to as well: whole writes, or an error that says where."""

    def test_any_history_of_changes_does_what_it_does_to_a_bytearray(self) -> None:
        @settings(deadline=None)
        @given(st.lists(changes(), max_size=8))
        def prove(history: list[tuple[str, tuple[Any, ...]]]) -> None:
            model = _Model(CONTENT)
            with self.make(CONTENT, writable=True) as (store, stored):
                assert store.writable
                for method, arguments in history:
                    getattr(store, method)(*arguments)
                    getattr(model, method)(*arguments)
                    found = store.size(), store.pread(len(model.content) + 1, 0)
                    assert found == (len(model.content), bytes(model.content)), (method, arguments)
                store.flush()
                assert stored() == model.content

        prove()

    def test_what_is_flushed_lies_on_the_medium(self) -> None:
        with self.make(CONTENT, writable=True) as (store, stored):
            store.pwrite(b"here", 1)
            store.pwritev([b"and", bytearray(b" "), memoryview(b"there")], len(CONTENT) + 10)
            store.flush()
            assert stored() == CONTENT[:1] + b"here" + CONTENT[5:] + bytes(10) + b"and there"

    def test_giving_space_back_touches_no_other_byte_and_never_grows(self) -> None:
        content = CONTENT * 40
        with self.make(content, writable=True) as (store, _):
            store.punch(4096, 8192)
            store.punch(len(content) - 100, 1 << 20)
            store.punch(0, 0)
            assert store.size() == len(content)
            assert store.pread(4096, 0) == content[:4096]
            assert store.pread(len(content) - 100 - 12_288, 12_288) == content[12_288:-100]

    def test_space_that_is_allocated_changes_no_byte(self) -> None:
        with self.make(CONTENT, writable=True) as (store, _):
            store.allocate(100, 9000)
            assert store.pread(1 << 21, 0) == CONTENT.ljust(9100, b"\0")

    def test_a_clone_holds_the_same_bytes_where_it_is_made_at_all(self) -> None:
        with self.make(CONTENT * 8, writable=False) as (source, _), self.make(b"", writable=True) as (store, _):
            if store.clone(source, 4096, 0, 8192):
                assert store.pread(8193, 0) == (CONTENT * 8)[4096:12_288]

    def test_offsets_that_no_file_has_are_errors(self) -> None:
        for offset in FAR:
            with self.make(CONTENT, writable=True) as (store, stored):
                _require_refusal(store, "pwrite", b"xy", offset)
                _require_refusal(store, "write_zeroes", offset, 2)
                _require_refusal(store, "allocate", offset, 2)
                assert store.pread(len(CONTENT) + 1, 0) == CONTENT
                store.flush()
                assert stored() == CONTENT


def changes() -> st.SearchStrategy[tuple[str, tuple[Any, ...]]]:
    """Draw changes of a store: the name of a method of `Store`, and its arguments."""
    places = st.integers(0, 20_000)
    data = st.binary(max_size=40)
    parts = st.lists(data | data.map(bytearray), max_size=4)
    arguments = {
        "pwrite": st.tuples(data, places),
        "pwritev": st.tuples(parts, places),
        "write_zeroes": st.tuples(places, places),
        "allocate": st.tuples(places, places),
        "truncate": st.tuples(places),
        "flush": st.just(()),
    }
    return st.one_of([st.tuples(st.just(name), drawn) for name, drawn in arguments.items()])


class _Model:
    """What a store must hold, changed by methods that are named as those of `Store`."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def pwrite(self, data: bytes, offset: int) -> None:
        if data:
            self._reach(offset)
            self.content[offset : offset + len(data)] = data

    def pwritev(self, parts: list[bytes], offset: int) -> None:
        self.pwrite(b"".join(parts), offset)

    def write_zeroes(self, offset: int, length: int) -> None:
        self.pwrite(bytes(length), offset)

    def allocate(self, offset: int, length: int) -> None:
        if length:
            self._reach(offset + length)

    def truncate(self, size: int) -> None:
        del self.content[size:]
        self._reach(size)

    def flush(self) -> None:
        pass

    def _reach(self, end: int) -> None:
        self.content.extend(bytes(max(0, end - len(self.content))))


def _reads() -> list[tuple[int, int]]:
    """Lengths and offsets around both ends of CONTENT, and far behind it."""
    end = len(CONTENT)
    near = [(10, 0), (0, 7), (100, end - 120), (1, end - 1), (50, end - 20), (5, end), (5, end + 1), (end + 9, 0)]
    return near + [(5, offset) for offset in FAR]


def _require_refusal(store: Store, method: str, *arguments: Any) -> None:
    """Raise AssertionError unless a change raises StoreError."""
    try:
        getattr(store, method)(*arguments)
    except StoreError:
        return
    raise AssertionError(f"{method} changed {store.name!r}, which should have refused it")
