"""Key slots of LUKS: which there are, and which passphrases open an image. Its data, and its master key, stay.

Durable order: see `crypto/slot_changes.py`. A crash leaves the slots before or after a change, and in between both of
those that are changed for each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from typing import NamedTuple

from qcow2c.constants import CryptMethod
from qcow2c.crypto.key_slots import OpenedSlot, kind_of_luks, open_slot
from qcow2c.crypto.new_encryption import ITER_TIME_MS
from qcow2c.crypto.secrets import OneKey, Secret, secret_of
from qcow2c.crypto.slot_changes import add_slot, remove_slot, require_slot
from qcow2c.errors import UsageError, WrongKey
from qcow2c.format.detection import detect_format
from qcow2c.format.header import EncryptionHeader
from qcow2c.format.loaded_image import load_header, require_not_corrupt
from qcow2c.format.luks import LuksHeader, read_luks_header
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened

__all__ = ["KeySlot", "KeySlots", "add_key", "change_key", "key_slots", "remove_key"]


@dataclass(frozen=True, slots=True)
class KeySlot:
    """A key slot; `iterations` of PBKDF2, 0 where it is not in use."""

    number: int
    active: bool
    iterations: int


@dataclass(frozen=True, slots=True)
class KeySlots:
    """What a LUKS header says: its cipher, called as in cryptsetup, its hash, and its slots."""

    cipher: str
    hash: str
    uuid: str
    slots: tuple[KeySlot, ...]
    opened: int | None = None
    """The slot that the key opens, None where none was given."""


class _Volume(NamedTuple):
    """An encrypted image that is open: its file, and its LUKS header."""

    store: Store
    pointer: EncryptionHeader
    luks: LuksHeader

    def open_slot(self, key: OneKey) -> OpenedSlot:
        return open_slot(self.store, self.pointer, self.luks, secret_of(key, self.store.name))

    def renewed(self) -> _Volume:
        return self._replace(luks=read_luks_header(self.store, self.pointer))


def key_slots(source: Source | Store, *, key: OneKey | None = None, share: bool = False) -> KeySlots:
    """Return the key slots of an image that is encrypted with LUKS, or of a raw LUKS volume.

    With a `key` it says which slot that opens. Raises UsageError for what has no key slots, WrongKey, CorruptMetadata,
    UnsupportedFeature, StoreError.
    """
    with _volume(source, Use.of_reader(share=share)) as volume:
        luks = volume.luks
        kind = kind_of_luks(luks)
        generator = kind.iv_generator if kind.iv_hash is None else f"{kind.iv_generator}:{kind.iv_hash}"
        slots = (
            KeySlot(number, slot.active, slot.iterations if slot.active else 0)
            for number, slot in enumerate(luks.slots)
        )
        found = None if key is None else volume.open_slot(key).slot
        return KeySlots(f"{kind.algorithm}-{kind.mode}-{generator}", luks.hash, luks.uuid, tuple(slots), found)


def add_key(
    source: Source | Store,
    key: OneKey,
    new_key: OneKey,
    *,
    slot: int | None = None,
    iter_time_ms: int = ITER_TIME_MS,
) -> int:
    """Let `new_key`, too, open an image that `key` opens; return its slot: a free one, unless a `slot` is given.

    Opening it takes about `iter_time_ms`. No other program may use the image. Raises WrongKey, UsageError where the
    slot is in use or none is free, and as `key_slots`.
    """
    with _volume(source, Use.WRITABLE_IMAGE) as volume:
        master_key = volume.open_slot(key).master_key
        return _add(volume, master_key, secret_of(new_key, volume.store.name), slot, iter_time_ms)


def remove_key(
    source: Source | Store, *, key: OneKey | None = None, slot: int | None = None, force: bool = False
) -> tuple[int, ...]:
    """Take away a `slot`, or each one that a `key` opens; return their numbers. What was in them is overwritten.

    Raises UsageError where no slot would be left, and nobody could ever read the image again, unless `force`; WrongKey
    where the key opens none, and as `key_slots`.
    """
    if (key is None) == (slot is None):
        raise UsageError("either a key or a slot must be given")
    with _volume(source, Use.WRITABLE_IMAGE) as volume:
        if slot is not None:
            numbers: tuple[int, ...] = (require_slot(volume.luks, index(slot)),)
            if not volume.luks.slots[numbers[0]].active:
                raise UsageError(f"key slot {slot} is not in use")
        else:
            assert key is not None
            numbers = tuple(_all_slots(volume, secret_of(key, volume.store.name)))
        left = [number for number, one in enumerate(volume.luks.slots) if one.active and number not in numbers]
        if not left and not force:
            which = f"key slot {slot} is" if key is None else "the key opens"
            raise UsageError(f"{which} all that is left: without it nobody could read the image again")
        for number in numbers:
            remove_slot(volume.store, volume.pointer, volume.renewed().luks, number, force=force)
        return numbers


def change_key(source: Source | Store, key: OneKey, new_key: OneKey, *, iter_time_ms: int = ITER_TIME_MS) -> int:
    """Let `new_key` open an image instead of `key`; return its slot, which was free before.

    Durable order: the new slot is there before the old one goes, so that a crash leaves one of them, or both.
    Raises WrongKey, UsageError where no slot is free, and as `key_slots`.
    """
    with _volume(source, Use.WRITABLE_IMAGE) as volume:
        master_key, old = volume.open_slot(key)
        number = _add(volume, master_key, secret_of(new_key, volume.store.name), None, iter_time_ms)
        remove_slot(volume.store, volume.pointer, volume.renewed().luks, old)
        return number


def _add(volume: _Volume, master_key: bytes, secret: Secret, slot: int | None, iter_time_ms: int) -> int:
    if iter_time_ms <= 0:
        raise UsageError("iter-time must be greater than zero")
    return add_slot(
        volume.store, volume.pointer, volume.luks, master_key, secret,
        slot=None if slot is None else index(slot), iter_time_ms=index(iter_time_ms),
    )  # fmt: skip


def _all_slots(volume: _Volume, secret: Secret) -> Iterator[int]:
    """Yield each slot that a passphrase opens. Raises WrongKey where there is none."""
    luks = volume.luks
    while True:
        try:
            found = open_slot(volume.store, volume.pointer, luks, secret).slot
        except WrongKey:
            if luks is volume.luks:
                raise
            return
        yield found
        luks = luks.without(found)


@contextmanager
def _volume(source: Source | Store, use: Use) -> Iterator[_Volume]:
    """Open an image or a raw LUKS volume for its key slots."""
    with opened(source, use) as store:
        if detect_format(store) == "luks":
            luks = read_luks_header(store, EncryptionHeader(0, store.size()))
            yield _Volume(store, EncryptionHeader(0, luks.payload_offset), luks)
            return
        header, _notices = load_header(store)
        if use is Use.WRITABLE_IMAGE:
            require_not_corrupt(header)
        pointer = header.encryption_header
        if header.crypt_method != CryptMethod.LUKS or pointer is None:
            what = "encrypted with legacy AES" if header.crypt_method == CryptMethod.AES else "not encrypted"
            raise UsageError(f"{store.name!r} is {what}: it has no key slots")
        yield _Volume(store, pointer, read_luks_header(store, pointer))
