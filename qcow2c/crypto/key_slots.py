"""LUKS1 key slots: the master key of an image, encrypted with a passphrase, and found again. It reads, never writes.

A passphrase is stretched by PBKDF2 with the slot's salt; that key opens the slot's material, which the splitter joins
to the master key; its digest in the header says whether it is the right one. Spec: LUKS On-Disk Format 1.2.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

from qcow2c.crypto.cipher_kind import CipherKind, missing_hash, require_cipher
from qcow2c.crypto.secrets import Secret
from qcow2c.crypto.sector_cipher import SectorCipher
from qcow2c.crypto.splitter import merge
from qcow2c.errors import CorruptMetadata, Span, UsageError, WrongKey
from qcow2c.format.header import EncryptionHeader
from qcow2c.format.luks import SPEC, LuksHeader, require_sound_slots
from qcow2c.storage.store import Store

DIGEST_BYTES = 20
MOST_SECRET_BYTES = 512 << 10


class OpenedSlot(NamedTuple):
    """The master key, and the number of the slot that a passphrase opened."""

    master_key: bytes
    slot: int

    def __repr__(self) -> str:
        return f"<OpenedSlot {self.slot}>"


def kind_of_luks(luks: LuksHeader) -> CipherKind:
    """Return what a LUKS header says of its cipher."""
    return CipherKind(luks.cipher, luks.cipher_mode, luks.iv_generator, luks.iv_hash)


def open_slot(store: Store, pointer: EncryptionHeader, luks: LuksHeader, secret: Secret) -> OpenedSlot:
    """Return the master key that a passphrase opens, by the first slot that it fits.

    Raises WrongKey where it fits none, UnsupportedFeature for ciphers and hashes that are not there, CorruptMetadata
    and LimitExceeded for slots that are not believed, StoreError.
    """
    require_cipher(kind_of_luks(luks))
    require_sound_slots(luks, pointer)
    for index, slot in enumerate(luks.slots):
        if slot.active:
            key = _try_slot(store, pointer, luks, index, secret)
            if key is not None:
                return OpenedSlot(key, index)
    active = sum(slot.active for slot in luks.slots)
    message = f"Invalid password, cannot unlock any keyslot: the key opens none of {active} in {store.name!r}"
    raise WrongKey(message, spec=SPEC)


def _try_slot(store: Store, pointer: EncryptionHeader, luks: LuksHeader, index: int, secret: Secret) -> bytes | None:
    """Return the master key if the passphrase opens one slot."""
    slot = luks.slots[index]
    where = Span(pointer.offset + slot.key_offset, luks.material_bytes)
    material = bytearray(store.pread(where.length, where.offset))
    if len(material) < where.length:
        message = f"key slot {index}: its key material is cut short, {len(material)} of {where.length} bytes"
        raise CorruptMetadata(message, where=where, spec=SPEC)
    slot_key = stretched(luks.hash, secret, slot.salt, slot.iterations, luks.key_bytes)
    SectorCipher(kind_of_luks(luks), slot_key).decrypt_simply(memoryview(material), 0)
    key = merge(bytes(material), luks.key_bytes, luks.hash)
    digest = stretched(luks.hash, Secret(key), luks.digest_salt, luks.iterations, DIGEST_BYTES)
    return key if hmac.compare_digest(digest, luks.digest) else None


def stretched(hash_name: str, secret: Secret, salt: bytes, iterations: int, length: int) -> bytes:
    """Return PBKDF2 of a secret. Raises UnsupportedFeature for a hash that is not there."""
    if len(secret.data) > MOST_SECRET_BYTES:
        raise UsageError(f"a passphrase of {len(secret.data)} bytes: at most {MOST_SECRET_BYTES} are allowed")
    try:
        return hashlib.pbkdf2_hmac(hash_name, secret.data, salt, iterations, length)
    except ValueError as exc:
        raise missing_hash(hash_name) from exc
