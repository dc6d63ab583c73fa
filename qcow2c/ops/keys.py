"""Key slots of LUKS: which there are, and which passphrases open an image. Its data, and its master key, stay.

Durable order: see `crypto/slot_changes.py`. A crash leaves the slots before or after a change, and in between both of
those that are changed for each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class SlotChange:
    """A change of key slots under the names that qemu-img amend has for it; `state` is "active" or "inactive"."""

    state: str
    keyslot: int | None = None
    new_secret: OneKey | None = field(default=None, repr=False)
    old_secret: OneKey | None = field(default=None, repr=False)
    iter_time_ms: int | None = None


def change_slots(source: Source | Store, key: OneKey | None, wish: SlotChange, *, force: bool = False) -> None:
    """Change key slots as qemu-img amend does, of an image that `key` opens; `force` allows what loses keys for good.

    Raises UsageError in QEMU's words before anything is written, and as `add_key` and `remove_key`.
    """
    for problem in _slot_problems(wish):
        raise UsageError(problem)
    with _volume(source, Use.WRITABLE_IMAGE) as volume:
        if key is None:
            raise UsageError("Parameter 'encrypt.key-secret' is required for cipher")
        master_key = volume.open_slot(key).master_key
        slots = volume.luks.slots
        if wish.keyslot is not None:
            require_slot(volume.luks, wish.keyslot)
        if wish.state == "active":
            assert wish.new_secret is not None, "it was just looked at"
            if force and wish.keyslot is not None and slots[wish.keyslot].active:
                remove_slot(volume.store, volume.pointer, volume.luks, wish.keyslot, force=True)
                volume = volume.renewed()  # noqa: PLW2901 - the same volume, read again
            secret = secret_of(wish.new_secret, volume.store.name)
            time_ms = ITER_TIME_MS if wish.iter_time_ms is None else wish.iter_time_ms
            _add(volume, master_key, secret, wish.keyslot, time_ms)
            return
        numbers = _slots_to_erase(volume, wish, force=force)
        for number in numbers:
            remove_slot(volume.store, volume.pointer, volume.renewed().luks, number, force=force)


def _slot_problems(wish: SlotChange) -> Iterator[str]:
    if wish.state not in ("active", "inactive"):
        yield f"Parameter 'state' does not accept value '{wish.state}'"
    if wish.state == "active":
        if wish.new_secret is None:
            yield "'new-secret' is required to activate a keyslot"
        if wish.old_secret is not None:
            yield "'old-secret' must not be given when activating keyslots"
        return
    if wish.new_secret is not None:
        yield "'new-secret' must not be given when erasing keyslots"
    if wish.iter_time_ms is not None:
        yield "'iter-time' must not be given when erasing keyslots"
    if wish.keyslot is None and wish.old_secret is None:
        how = "either explicit keyslot index or the password currently contained in them must be given"
        yield f"To erase keyslot(s), {how}"


def _slots_to_erase(volume: _Volume, wish: SlotChange, *, force: bool) -> tuple[int, ...]:
    """Return the slots that a change takes away. Raises UsageError."""
    irreversibly = "erase all the data in the image irreversibly - refusing operation"
    active = {number for number, slot in enumerate(volume.luks.slots) if slot.active}
    try:
        by_key = (
            None if wish.old_secret is None else set(_all_slots(volume, secret_of(wish.old_secret, volume.store.name)))
        )
    except WrongKey as exc:
        raise UsageError("No keyslots match given (old) password for erase operation") from exc
    if wish.keyslot is None:
        assert by_key is not None, "one of both is there"
        if by_key == active and not force:
            raise UsageError(
                f"All the active keyslots match the (old) password that was given and erasing them will {irreversibly}"
            )
        return tuple(sorted(by_key))
    if by_key is not None and wish.keyslot not in by_key:
        raise UsageError(f"Given keyslot {wish.keyslot} doesn't contain the given old password for erase operation")
    if not force and wish.keyslot not in active:
        raise UsageError(f"Given keyslot {wish.keyslot} is already erased (inactive) ")
    if not force and active == {wish.keyslot}:
        raise UsageError(f"Attempt to erase the only active keyslot {wish.keyslot} which will {irreversibly}")
    return (wish.keyslot,)


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
