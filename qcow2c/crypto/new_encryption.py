"""The encryption of a new image: what is asked for, and the LUKS header, master key and cipher that are made of it.

It writes nothing: whoever builds the image does. Spec: "Full disk encryption header pointer"; LUKS On-Disk Format 1.2.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from typing import NamedTuple

from qcow2c.constants import (
    LUKS_KEY_MATERIAL_OFFSET,
    LUKS_LEAST_ITERATIONS,
    LUKS_MAGIC,
    LUKS_STRIPES,
    SECTOR_SIZE,
    CryptMethod,
    Limit,
    LuksKeySlotState,
)
from qcow2c.crypto.cipher_kind import LEGACY_AES, CipherKind, essiv_key, require_cipher
from qcow2c.crypto.guest_cipher import GuestCipher, legacy_key
from qcow2c.crypto.key_slots import DIGEST_BYTES, stretched
from qcow2c.crypto.secrets import OneKey, Secret, secret_of
from qcow2c.crypto.sector_cipher import SectorCipher
from qcow2c.crypto.splitter import split
from qcow2c.errors import UsageError
from qcow2c.format.derived import LUKS_HEADER, LUKS_KEY_SLOT
from qcow2c.format.luks import CIPHER_KEY_BYTES, CIPHER_MODES, HASHES, IV_GENERATORS
from qcow2c.storage.integers import settle_integers

SALT_BYTES = 32
KEY_SLOTS = 8
ITER_TIME_MS = 2000
_DIGEST_SHARE = 8
"""The digest of the master key has this part of a slot's iterations, as in QEMU."""
_MEASURED_SECONDS = 0.02


class NewSlot(NamedTuple):
    """A key slot that is yet to be written: what the header says of it, and its key material."""

    iterations: int
    salt: bytes
    material: bytes

    def __repr__(self) -> str:
        return f"<NewSlot of {self.iterations} iterations>"


class MadeEncryption(NamedTuple):
    """The encryption of one image: `header` is written to it, cluster-aligned, and empty for legacy AES."""

    method: CryptMethod
    header: bytes
    """LUKS header and the key material of the first slot; up to `length` zeros follow."""
    length: int
    """Bytes that the encryption header takes."""
    cipher: GuestCipher

    def __repr__(self) -> str:
        return f"<MadeEncryption {self.method.name}>"


@dataclass(frozen=True)
class Encryption:
    """How a new image is encrypted: "luks", or "aes", which only very old programs need and no other should have.

    `key` is a passphrase, or a function that is asked for it. `cipher` is called as in cryptsetup, with the length of
    the key: "aes-256-xts-plain64"; what is left out at its end is as QEMU has it. `hash` is that of the key slots, and
    a slot takes about `iter_time_ms` to open.
    """

    format: str
    key: OneKey = field(repr=False)
    cipher: str = "aes-256-xts-plain64"
    hash: str = "sha256"
    iter_time_ms: int = ITER_TIME_MS

    def __post_init__(self) -> None:
        settle_integers(self)
        if self.format not in ("luks", "aes"):
            raise UsageError(f"Parameter 'encrypt.format' does not accept value {self.format!r}")
        if self.format == "luks":
            require_makeable(cipher_kind(self.cipher), self.hash)
        if self.iter_time_ms <= 0:
            raise UsageError("iter-time must be greater than zero")

    @property
    def header_bytes(self) -> int:
        """Length of the encryption header: of the LUKS header and of the room for all key material."""
        return 0 if self.format == "aes" else _slot_offset(cipher_kind(self.cipher), KEY_SLOTS)

    def make(self, name: str = "the new image") -> MadeEncryption:
        """Return all that an image needs, with a master key of its own. Asks for the key, and takes its time.

        Raises UsageError, UnsupportedFeature.
        """
        secret = secret_of(self.key, name)
        if self.format == "aes":
            cipher = SectorCipher(LEGACY_AES, legacy_key(secret))
            return MadeEncryption(CryptMethod.AES, b"", 0, GuestCipher(cipher, by_host_offset=False))
        kind = cipher_kind(self.cipher)
        master_key = os.urandom(kind.key_bytes)
        slot = new_slot(kind, self.hash, master_key, secret, self.iter_time_ms)
        header = _stored_header(kind, self.hash, master_key, slot).ljust(LUKS_KEY_MATERIAL_OFFSET, b"\0")
        cipher = SectorCipher(kind, master_key)
        guest = GuestCipher(cipher, by_host_offset=True, slot=0)
        return MadeEncryption(CryptMethod.LUKS, header + slot.material, self.header_bytes, guest)


def cipher_kind(name: str) -> CipherKind:
    """Return a cipher by its name. Raises UsageError."""
    algorithm, bits, mode, generator = (*name.split("-", 3), "", "", "")[:4]
    generator, _, iv_hash = generator.partition(":")
    mode, generator = mode or "xts", generator or "plain64"
    if generator == "essiv":
        iv_hash = iv_hash or "sha256"
    is_known = bits.isdecimal() and int(bits) // 8 in CIPHER_KEY_BYTES.get(algorithm, ())
    known = mode in CIPHER_MODES, generator in IV_GENERATORS, not iv_hash or iv_hash in HASHES
    if not is_known or not all(known) or (iv_hash and generator != "essiv"):
        raise UsageError(f"unknown cipher {name!r}: it is called like aes-256-xts-plain64")
    return CipherKind(f"{algorithm}-{bits}", mode, generator, iv_hash or None)


def require_makeable(kind: CipherKind, hash_name: str) -> None:
    """Raise UsageError, UnsupportedFeature for what cannot be made, or what no other program would open."""
    if hash_name not in HASHES:
        raise UsageError(f"Parameter 'hash-alg' does not accept value {hash_name!r}")
    require_cipher(kind)
    if kind.key_bytes * LUKS_STRIPES % SECTOR_SIZE:
        raise UsageError(f"key material of {kind.algorithm} in mode {kind.mode} is no whole sectors: use mode xts")
    if kind.iv_generator == "essiv":
        essiv_key(kind, b"")


def new_slot(kind: CipherKind, hash_name: str, master_key: bytes, secret: Secret, iter_time_ms: int) -> NewSlot:
    """Return a key slot that a passphrase opens. Raises UnsupportedFeature, UsageError."""
    salt = os.urandom(SALT_BYTES)
    iterations = iterations_of(hash_name, len(master_key), iter_time_ms)
    slot_key = stretched(hash_name, secret, salt, iterations, len(master_key))
    material = bytearray(split(master_key, hash_name))
    SectorCipher(kind, slot_key).encrypt_simply(memoryview(material), 0)
    return NewSlot(iterations, salt, bytes(material))


def iterations_of(hash_name: str, length: int, iter_time_ms: int) -> int:
    """Return how many iterations of PBKDF2 take so long here, within the bounds of a slot."""
    count, seconds = LUKS_LEAST_ITERATIONS, 0.0
    while True:
        start = time.thread_time()
        stretched(hash_name, Secret(b"measured"), bytes(SALT_BYTES), count, length)
        seconds = time.thread_time() - start
        if seconds >= min(_MEASURED_SECONDS, iter_time_ms / 1000):
            break
        count *= 2
    wanted = int(count * iter_time_ms / 1000 / seconds)
    return max(LUKS_LEAST_ITERATIONS, min(wanted, Limit.LUKS_ITERATIONS // KEY_SLOTS))


def _slot_offset(kind: CipherKind, slot: int) -> int:
    """Return where the key material of a slot begins in the encryption header."""
    each = -(-kind.key_bytes * LUKS_STRIPES // LUKS_KEY_MATERIAL_OFFSET) * LUKS_KEY_MATERIAL_OFFSET
    return LUKS_KEY_MATERIAL_OFFSET + slot * each


def _stored_header(kind: CipherKind, hash_name: str, master_key: bytes, first: NewSlot) -> bytes:
    """Return the LUKS header of an image whose first key slot is in use."""
    digest_salt = os.urandom(SALT_BYTES)
    digest_iterations = max(LUKS_LEAST_ITERATIONS, first.iterations // _DIGEST_SHARE)
    generator = kind.iv_generator if kind.iv_hash is None else f"{kind.iv_generator}:{kind.iv_hash}"
    slots: list[dict[str, int | bytes]] = [
        {
            "active": int(LuksKeySlotState.DISABLED if slot else LuksKeySlotState.ENABLED),
            "iterations": 0 if slot else first.iterations,
            "salt": bytes(SALT_BYTES) if slot else first.salt,
            "key_material_offset": _slot_offset(kind, slot) // SECTOR_SIZE,
            "stripes": LUKS_STRIPES,
        }
        for slot in range(KEY_SLOTS)
    ]
    words = {
        "cipher_name": kind.algorithm.partition("-")[0],
        "cipher_mode": f"{kind.mode}-{generator}",
        "hash_spec": hash_name,
        "uuid": str(uuid.uuid4()),
    }
    fields: dict[str, int | bytes] = {
        "magic": LUKS_MAGIC,
        "version": 1,
        "payload_offset": _slot_offset(kind, KEY_SLOTS) // SECTOR_SIZE,
        "key_bytes": len(master_key),
        "mk_digest": stretched(hash_name, Secret(master_key), digest_salt, digest_iterations, DIGEST_BYTES),
        "mk_digest_salt": digest_salt,
        "mk_digest_iter": digest_iterations,
        "key_slots": b"".join(map(LUKS_KEY_SLOT.packed, slots)),
    }
    for name, text in words.items():
        fields[name] = text.encode().ljust(LUKS_HEADER[name].size, b"\0")
    return LUKS_HEADER.packed(fields)
