"""What a change of key slots writes, byte by byte; what the operations do with it is in tests/ops/test_keys.py."""

from __future__ import annotations

import pytest

from qcow2c.crypto.key_slots import open_slot
from qcow2c.crypto.new_encryption import Encryption
from qcow2c.crypto.secrets import Secret
from qcow2c.crypto.slot_changes import add_slot, remove_slot
from qcow2c.errors import UsageError
from qcow2c.format.header import EncryptionHeader
from qcow2c.format.luks import LuksHeader, read_luks_header
from qcow2c.storage.sources import WritableMemory


class Volume:
    def __init__(self) -> None:
        made = Encryption("luks", "one", "aes-128", iter_time_ms=1).make()
        self.data = bytearray(made.header.ljust(made.length, b"\0"))
        self.store, self.pointer = WritableMemory(self.data), EncryptionHeader(0, made.length)
        self.key = open_slot(self.store, self.pointer, self.luks, Secret(b"one")).master_key

    @property
    def luks(self) -> LuksHeader:
        return read_luks_header(self.store, self.pointer)

    def add(self, key: bytes, slot: int | None = None) -> int:
        return add_slot(self.store, self.pointer, self.luks, self.key, Secret(key), slot=slot, iter_time_ms=1)

    def opens(self, key: bytes) -> int:
        found = open_slot(self.store, self.pointer, self.luks, Secret(key))
        assert found.master_key == self.key
        return found.slot


def test_slots_are_filled_from_the_first_free_one() -> None:
    volume = Volume()
    assert [volume.add(b"k%d" % number) for number in range(1, 8)] == list(range(1, 8))
    assert volume.opens(b"one") == 0 and volume.opens(b"k6") == 6
    with pytest.raises(UsageError, match="all 8 key slots are in use"):
        volume.add(b"more")


def test_a_slot_in_use_is_not_overwritten() -> None:
    volume = Volume()
    with pytest.raises(UsageError, match="active keyslot 0"):
        volume.add(b"two", 0)
    with pytest.raises(UsageError, match="between 0 and 7"):
        volume.add(b"two", 8)
    assert volume.add(b"two", 5) == volume.opens(b"two") == 5


def test_what_was_in_a_slot_is_gone() -> None:
    volume = Volume()
    volume.add(b"two")
    material = volume.luks.slots[0].key_offset
    before = bytes(volume.data[material : material + volume.luks.material_bytes])
    remove_slot(volume.store, volume.pointer, volume.luks, 0)
    assert bytes(volume.data[material : material + volume.luks.material_bytes]) != before
    slot = volume.luks.slots[0]
    assert (slot.active, slot.iterations, slot.salt, slot.key_offset) == (False, 0, bytes(32), material)
    assert volume.opens(b"two") == 1


def test_the_last_slot_stays_unless_it_must_go() -> None:
    volume = Volume()
    before = bytes(volume.data)
    with pytest.raises(UsageError, match="only active keyslot 0"):
        remove_slot(volume.store, volume.pointer, volume.luks, 0)
    assert volume.data == before
    remove_slot(volume.store, volume.pointer, volume.luks, 0, force=True)
    assert not any(slot.active for slot in volume.luks.slots)
