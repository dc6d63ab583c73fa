"""A store with other bytes: as a bytearray that is changed, and nothing is written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qcow2c.storage.locks import Use
from qcow2c.storage.patched import PatchedBytes
from qcow2c.storage.sources import Memory

DATA = bytes(range(100))


@given(
    st.dictionaries(st.integers(0, 120), st.binary(min_size=1, max_size=12), max_size=4), st.integers(0, 110),
    st.integers(0, 110),
)  # fmt: skip
def test_reads_are_those_of_a_changed_copy(patches: dict[int, bytes], offset: int, length: int) -> None:
    model = bytearray(DATA)
    for at, data in patches.items():
        end = min(len(model), at + len(data))
        if at < end:
            model[at:end] = data[: end - at]
    store = PatchedBytes(Memory(DATA), patches)
    assert store.pread(length, offset) == bytes(model[offset : offset + length])
    buffer = bytearray(length)
    done = store.readinto_at(memoryview(buffer), offset)
    assert buffer[:done] == model[offset : offset + length]
    assert store.size() == len(DATA) and not store.writable


def test_the_rest_is_the_other_store_s() -> None:
    whole = Memory(DATA)
    store = PatchedBytes(whole, {10: b"x"})
    assert (store.name, store.file_name, store.allocated_size()) == (
        whole.name,
        whole.file_name,
        whole.allocated_size(),
    )
    assert [*store.extents(0, 100)] == [*whole.extents(0, 100)]
    assert store.identity() != PatchedBytes(whole, {}).identity()
    store.lock(Use.SHARED)
