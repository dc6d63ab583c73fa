"""Ciphers of 512-byte sectors: AES in XTS, CBC, CTR and ECB, with the initialization vectors of LUKS1 and of QEMU.

Sectors are encrypted one by one, each with the vector of its number. This is the simple form, a call of the library a
sector; from some size on `bulk_cipher.py` does the same over whole arrays. It knows no offsets and no keys' origin.
Spec: "Data encryption"; LUKS On-Disk Format 1.2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qcow2c.constants import SECTOR_SIZE
from qcow2c.crypto.cipher_kind import BLOCK, Block, CipherKind, block_functions, iv_function, require_cipher

if TYPE_CHECKING:
    from qcow2c.crypto.bulk_cipher import BulkCipher

BULK_BYTES = 64 << 10
"""From this length on, sectors go through arrays."""

PATIENCE_BYTES = 2 << 20
"""What one cipher does sector by sector before it imports numpy, which takes as long as 8 MiB, and turns to arrays."""

XTS_KEY_BYTES = (32, 64)
"""The lengths of XTS keys that the library takes; AES-192 has 48, and is made of its parts here."""

_REDUCTION = 1 << 128 | 0x87


class SectorCipher:
    """A cipher with its key. Several threads may use it; buffers are changed in place."""

    def __init__(self, kind: CipherKind, key: bytes) -> None:
        """Raises UnsupportedFeature for a cipher that the library does not have."""
        require_cipher(kind)
        self.kind = kind
        self._key = key
        self._iv = iv_function(kind, key)
        self._done = 0
        self._bulk: BulkCipher | None = None
        self._encrypt_sectors, self._decrypt_sectors = _forms(kind, key)

    def __repr__(self) -> str:
        return f"<SectorCipher {'-'.join(self.kind[:3])}>"

    def encrypt(self, buffer: memoryview, sector: int) -> None:
        """Encrypt whole sectors in place, the first of which has a number; the last may be shorter, in whole blocks."""
        if self._takes_bulk(len(buffer)):
            whole = len(buffer) // SECTOR_SIZE * SECTOR_SIZE
            self._arrays().encrypt(buffer[:whole], sector)
            buffer, sector = buffer[whole:], sector + whole // SECTOR_SIZE
        self._each(self._encrypt_sectors, buffer, sector)

    def decrypt(self, buffer: memoryview, sector: int) -> None:
        """Undo `encrypt`."""
        if self._takes_bulk(len(buffer)):
            whole = len(buffer) // SECTOR_SIZE * SECTOR_SIZE
            self._arrays().decrypt(buffer[:whole], sector)
            buffer, sector = buffer[whole:], sector + whole // SECTOR_SIZE
        self._each(self._decrypt_sectors, buffer, sector)

    def encrypt_simply(self, buffer: memoryview, sector: int) -> None:
        """`encrypt` without arrays, whatever the length."""
        self._each(self._encrypt_sectors, buffer, sector)

    def decrypt_simply(self, buffer: memoryview, sector: int) -> None:
        """`decrypt` without arrays, whatever the length."""
        self._each(self._decrypt_sectors, buffer, sector)

    def _takes_bulk(self, length: int) -> bool:
        if length < BULK_BYTES:
            return False
        if self._bulk is None and self._done < PATIENCE_BYTES:
            self._done += PATIENCE_BYTES if "numpy" in sys.modules else length
        return self._bulk is not None or self._done >= PATIENCE_BYTES

    def _arrays(self) -> BulkCipher:
        if self._bulk is None:
            from qcow2c.crypto.bulk_cipher import BulkCipher  # Late: it imports numpy.

            self._bulk = BulkCipher(self.kind, self._key)
        return self._bulk

    def _each(self, form: Callable[[bytes, memoryview], bytes], buffer: memoryview, sector: int) -> None:
        iv = self._iv
        for start in range(0, len(buffer), SECTOR_SIZE):
            part = buffer[start : start + SECTOR_SIZE]
            part[:] = form(iv(sector), part)
            sector += 1


def _forms(kind: CipherKind, key: bytes) -> tuple[Callable[[bytes, memoryview], bytes], ...]:
    """Return how a sector is encrypted and decrypted, given its initialization vector."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    half = len(key) // 2
    if kind.mode == "xts" and (len(key) not in XTS_KEY_BYTES or key[:half] == key[half:]):
        return _own_xts(key)
    algorithm = algorithms.AES(key)
    named: dict[str, Callable[[bytes], Any]] = {
        "xts": modes.XTS,
        "cbc": modes.CBC,
        "ctr": modes.CTR,
        "ecb": lambda _iv: modes.ECB(),
    }
    mode = named[kind.mode]

    def encrypt(iv: bytes, data: memoryview) -> bytes:
        return Cipher(algorithm, mode(iv)).encryptor().update(data)

    def decrypt(iv: bytes, data: memoryview) -> bytes:
        return Cipher(algorithm, mode(iv)).decryptor().update(data)

    return encrypt, decrypt


def _own_xts(key: bytes) -> tuple[Callable[[bytes, memoryview], bytes], ...]:
    """Return XTS made of single blocks, for keys that the library does not take in this mode."""
    half = len(key) // 2
    encrypt_block, decrypt_block = block_functions(key[:half])
    tweak_of = block_functions(key[half:])[0]

    def apply(block: Block, iv: bytes, data: memoryview) -> bytes:
        tweak = int.from_bytes(tweak_of(iv), "little")
        tweaks = bytearray()
        for _ in range(len(data) // BLOCK):
            tweaks += tweak.to_bytes(BLOCK, "little")
            tweak <<= 1
            if tweak >> 128:
                tweak ^= _REDUCTION
        return _xor(block(_xor(data, tweaks)), tweaks)

    return (lambda iv, data: apply(encrypt_block, iv, data)), (lambda iv, data: apply(decrypt_block, iv, data))


def _xor(one: bytes | bytearray | memoryview, other: bytes | bytearray) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")
