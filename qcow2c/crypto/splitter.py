"""The anti-forensic splitter of LUKS: a key as many stripes, of which none may be missing. Pure arithmetic.

Spec: LUKS On-Disk Format 1.2, "Anti-forensic splitter".
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from qcow2c.constants import LUKS_STRIPES
from qcow2c.crypto.cipher_kind import missing_hash


def split(
    key: bytes, hash_name: str, stripes: int = LUKS_STRIPES, random: Callable[[int], bytes] = os.urandom
) -> bytes:
    """Return a key as stripes, all but the last of them random. Raises UnsupportedFeature for an unknown hash."""
    spread = random(len(key) * (stripes - 1))
    return spread + _xor(_digested(spread, len(key), hash_name), key)


def merge(material: bytes, key_bytes: int, hash_name: str) -> bytes:
    """Return the key that was split. Raises UnsupportedFeature for an unknown hash."""
    spread = len(material) - key_bytes
    return _xor(_digested(material[:spread], key_bytes, hash_name), material[spread:])


def _digested(stripes: bytes, key_bytes: int, hash_name: str) -> bytes:
    """Return what all stripes but the last come to."""
    try:
        digest_bytes = hashlib.new(hash_name, usedforsecurity=False).digest_size
    except ValueError as exc:
        raise missing_hash(hash_name) from exc
    parts = [(index.to_bytes(4, "big"), start) for index, start in enumerate(range(0, key_bytes, digest_bytes))]
    block = bytes(key_bytes)
    for at in range(0, len(stripes), key_bytes):
        mixed = _xor(block, stripes[at : at + key_bytes])
        hashed = [
            hashlib.new(hash_name, number + mixed[start : start + digest_bytes], usedforsecurity=False).digest()
            for number, start in parts
        ]
        block = b"".join(hashed)[:key_bytes]  # Only the last digest may be too long.
    return block


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")
