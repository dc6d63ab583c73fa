"""Changes of LUKS key slots. The master key stays; which passphrases open it, changes.

Durable order: a new slot first has its key material, then all the header says of it but that it is in use, and then
that: one write within a sector each. A slot that goes is first not in use, and then its key material is overwritten.
Whatever comes between, an image keeps every slot but the one that is changed: no crash locks anybody out.
"""

from __future__ import annotations

import os

from qcow2c.constants import LUKS_STRIPES, SECTOR_SIZE, LuksKeySlotState
from qcow2c.crypto.key_slots import kind_of_luks
from qcow2c.crypto.new_encryption import SALT_BYTES, new_slot
from qcow2c.crypto.secrets import Secret
from qcow2c.errors import UsageError
from qcow2c.format.derived import LUKS_HEADER, LUKS_KEY_SLOT
from qcow2c.format.header import EncryptionHeader
from qcow2c.format.layout import stored_integer
from qcow2c.format.luks import LuksHeader, require_sound_slots
from qcow2c.storage.store import Store

_ERASE_TIMES = 8


def add_slot(
    store: Store,
    pointer: EncryptionHeader,
    luks: LuksHeader,
    master_key: bytes,
    secret: Secret,
    *,
    slot: int | None = None,
    iter_time_ms: int,
) -> int:
    """Let a passphrase open an image, too; return the number of its slot, the first free one if none is given.

    Raises UsageError where it is in use or all are, StoreError.
    """
    require_sound_slots(luks, pointer)
    slot = _free_slot(luks) if slot is None else require_slot(luks, slot)
    if luks.slots[slot].active:
        raise UsageError(f"Refusing to overwrite active keyslot {slot} - please erase it first")
    new = new_slot(kind_of_luks(luks), luks.hash, master_key, secret, iter_time_ms)
    store.pwrite(new.material, pointer.offset + luks.slots[slot].key_offset)
    store.flush()
    fields = (LuksKeySlotState.DISABLED, new.iterations, new.salt)
    _write_slot(store, pointer, luks, slot, *fields)
    store.flush()
    _write_state(store, pointer, slot, LuksKeySlotState.ENABLED)
    store.flush()
    return slot


def remove_slot(store: Store, pointer: EncryptionHeader, luks: LuksHeader, slot: int, *, force: bool = False) -> None:
    """Let what opened a slot open it no more. Raises UsageError for the last one that is in use, unless `force`."""
    require_sound_slots(luks, pointer)
    require_slot(luks, slot)
    if not force and not any(other.active for index, other in enumerate(luks.slots) if index != slot):
        raise UsageError(f"Attempt to erase the only active keyslot {slot}: without it, all data is lost")
    _write_state(store, pointer, slot, LuksKeySlotState.DISABLED)
    store.flush()
    for _ in range(_ERASE_TIMES):
        store.pwrite(os.urandom(luks.material_bytes), pointer.offset + luks.slots[slot].key_offset)
        store.flush()
    _write_slot(store, pointer, luks, slot, LuksKeySlotState.DISABLED, 0, bytes(SALT_BYTES))
    store.flush()


def require_slot(luks: LuksHeader, slot: int) -> int:
    """Return the number of a slot if there is one. Raises UsageError."""
    if not 0 <= slot < len(luks.slots):
        raise UsageError(f"Invalid keyslot {slot} specified, must be between 0 and {len(luks.slots) - 1}")
    return slot


def _free_slot(luks: LuksHeader) -> int:
    for index, slot in enumerate(luks.slots):
        if not slot.active:
            return index
    raise UsageError(f"Can't add a keyslot - all {len(luks.slots)} key slots are in use: remove one first")


def _slot_offset(pointer: EncryptionHeader, slot: int) -> int:
    """Return where the header tells of a slot."""
    return pointer.offset + LUKS_HEADER["key_slots"].offset + slot * LUKS_KEY_SLOT.size


def _write_slot(
    store: Store,
    pointer: EncryptionHeader,
    luks: LuksHeader,
    slot: int,
    state: LuksKeySlotState,
    iterations: int,
    salt: bytes,
) -> None:
    fields: dict[str, int | bytes] = {
        "active": int(state),
        "iterations": iterations,
        "salt": salt,
        "key_material_offset": luks.slots[slot].key_offset // SECTOR_SIZE,
        "stripes": LUKS_STRIPES,
    }
    store.pwrite(LUKS_KEY_SLOT.packed(fields), _slot_offset(pointer, slot))


def _write_state(store: Store, pointer: EncryptionHeader, slot: int, state: LuksKeySlotState) -> None:
    """Write whether a slot is in use: four bytes, which no sector's end divides."""
    field = LUKS_KEY_SLOT["active"]
    store.pwrite(stored_integer(int(state), field.size), _slot_offset(pointer, slot) + field.offset)
