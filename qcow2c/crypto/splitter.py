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
    digest = _hash(hash_name)
    digest_bytes = len(digest(b""))
    parts = [
        (index.to_bytes(4, "big"), slice(start, start + digest_bytes))
        for index, start in enumerate(range(0, key_bytes, digest_bytes))
    ]
    block = 0
    for at in range(0, len(stripes), key_bytes):
        mixed = (block ^ int.from_bytes(stripes[at : at + key_bytes], "little")).to_bytes(key_bytes, "little")
        hashed = b"".join([digest(number + mixed[part]) for number, part in parts])
        block = int.from_bytes(hashed[:key_bytes], "little")  # Only the last digest may be too long.
    return block.to_bytes(key_bytes, "little")


def _hash(name: str) -> Callable[[bytes], bytes]:
    """Return a hash as a function; those that Python has by name are the quickest that way."""
    constructor = getattr(hashlib, name, None) if name in hashlib.algorithms_guaranteed else None
    if constructor is not None:
        return lambda data: constructor(data, usedforsecurity=False).digest()
    try:
        hashlib.new(name, usedforsecurity=False)
    except ValueError as exc:
        raise missing_hash(name) from exc
    return lambda data: hashlib.new(name, data, usedforsecurity=False).digest()


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")
