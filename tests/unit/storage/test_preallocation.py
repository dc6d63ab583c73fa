"""Extending a file: zeros up to its new end, space as it was asked for, and nothing lost where it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcow2c.errors import StoreError
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.preallocation import Preallocation, extend
from qcow2c.storage.sources import WritableMemory
from qcow2c.storage.store import Buffer

MIB = 1 << 20
MODES: list[Preallocation] = ["off", "metadata", "falloc", "full"]


@pytest.mark.parametrize("mode", MODES)
def test_it_ends_where_it_was_asked_to_with_zeros_in_between(mode: Preallocation) -> None:
    data = bytearray(b"kept" + b"leftover")
    extend(WritableMemory(data), 4, 5 * MIB + 3, mode)
    assert data == b"kept" + bytes(5 * MIB - 1)


@pytest.mark.parametrize("mode", MODES)
def test_space_is_taken_where_it_was_asked_for(mode: Preallocation, tmp_path: Path) -> None:
    store = LocalFile(tmp_path / "file", writable=True, create=True)
    extend(store, 0, 2 * MIB, mode)
    assert ((store.allocated_size() or 0) >= 2 * MIB) == (mode in ("falloc", "full"))
    store.close()


class Full(WritableMemory):
    """Memory with room for so many bytes, in which every write is noticed."""

    def __init__(self, data: bytearray, room: int) -> None:
        super().__init__(data)
        self.room = room

    def pwrite(self, data: Buffer, offset: int) -> None:
        if offset + len(data) > self.room:
            raise StoreError("No space left on device")
        super().pwrite(data, offset)


@pytest.mark.parametrize("leftover", [b"", b"leftover"])
def test_without_room_the_file_is_as_short_as_before(leftover: bytes) -> None:
    data = bytearray(b"kept" + leftover)
    with pytest.raises(StoreError, match="No space left"):
        extend(Full(data, MIB), 4, 9 * MIB, "full")
    assert data == b"kept"
