"""What a cipher is called, and its initialization vectors: plain, plain64 and essiv. No sector is encrypted here.

Spec: "Data encryption"; LUKS On-Disk Format 1.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from qcow2c.errors import UnsupportedFeature

BLOCK = 16
"""Bytes of a block of AES."""

Block = Callable[[bytes], bytes]

_LOW_32 = (1 << 32) - 1


class CipherKind(NamedTuple):
    """What a cipher is called: the names of LUKS, `algorithm` with its key length in bits, as "aes-256"."""

    algorithm: str
    mode: str
    iv_generator: str
    iv_hash: str | None = None

    @property
    def key_bytes(self) -> int:
        """Length of the key; XTS takes two."""
        bits = int(self.algorithm.rpartition("-")[2])
        return bits // 8 * (2 if self.mode == "xts" else 1)


LEGACY_AES = CipherKind("aes-128", "cbc", "plain64")
"""`crypt_method` 1."""


def require_cipher(kind: CipherKind) -> None:
    """Raise UnsupportedFeature, in one line that says what can be done, for all ciphers but AES."""
    name = kind.algorithm.partition("-")[0]
    if name != "aes":
        message = f"the cipher {name} is not supported, AES is: let qemu-img convert the image to aes-256"
        raise UnsupportedFeature(message, spec="Data encryption")


def block_functions(key: bytes) -> tuple[Block, Block]:
    """Return AES of consecutive single blocks: encryption and decryption."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(key), modes.ECB())
    return (lambda data: cipher.encryptor().update(data)), (lambda data: cipher.decryptor().update(data))


def essiv_key(kind: CipherKind, key: bytes) -> bytes:
    """Return the key of the generator "essiv". Raises UnsupportedFeature where its length is none of AES's."""
    digest = hashed(kind.iv_hash or "", key)
    if len(digest) not in (16, 24, 32):
        message = f"essiv with {kind.iv_hash} needs an AES key of {len(digest)} bytes, and there is none"
        raise UnsupportedFeature(message, spec="Data encryption")
    return digest


def iv_function(kind: CipherKind, key: bytes) -> Callable[[int], bytes]:
    """Return the initialization vector as a function of a sector's number."""
    if kind.iv_generator == "plain":
        return lambda sector: (sector & _LOW_32).to_bytes(BLOCK, "little")
    if kind.iv_generator == "plain64":
        return lambda sector: sector.to_bytes(BLOCK, "little")
    encrypt_block = block_functions(essiv_key(kind, key))[0]
    return lambda sector: encrypt_block(sector.to_bytes(BLOCK, "little"))


def hashed(name: str, data: bytes) -> bytes:
    """Return a digest. Raises UnsupportedFeature for a hash that this Python does not have."""
    try:
        return hashlib.new(name, data, usedforsecurity=False).digest()
    except ValueError as exc:
        raise missing_hash(name) from exc


def missing_hash(name: str) -> UnsupportedFeature:
    """Return the error for a hash that OpenSSL, as this Python uses it, does not have."""
    return UnsupportedFeature(f"this Python has no hash {name!r}: let qemu-img convert the image", spec="LUKS")
