"""How the guest data of one image is encrypted: its cipher, and whether sectors are counted in the file or on the disk.

Spec: "Data encryption".
"""

from __future__ import annotations

from qcow2c.constants import SECTOR_SIZE, CryptMethod
from qcow2c.crypto.cipher_kind import LEGACY_AES
from qcow2c.crypto.key_slots import kind_of_luks, open_slot
from qcow2c.crypto.secrets import Secret
from qcow2c.crypto.sector_cipher import SectorCipher
from qcow2c.errors import CorruptMetadata, UsageError
from qcow2c.format.header import Header
from qcow2c.format.luks import read_luks_header
from qcow2c.storage.store import Buffer, Store

_MASK = SECTOR_SIZE - 1


class GuestCipher:
    """The cipher of an image's guest data. Compressed clusters are never encrypted."""

    def __init__(
        self, cipher: SectorCipher, *, by_host_offset: bool, slot: int | None = None, payload: int = 0
    ) -> None:
        """`slot` is the key slot that was opened; sectors of a file are counted from its byte `payload`."""
        self._cipher = cipher
        self._by_host_offset = by_host_offset
        self._payload = payload
        self.slot = slot

    def __repr__(self) -> str:
        return f"<GuestCipher {self._cipher!r}>"

    def from_payload(self, payload: int) -> GuestCipher:
        """Return the same cipher of a file whose sectors are counted from a byte on: a raw LUKS volume's."""
        return GuestCipher(self._cipher, by_host_offset=True, slot=self.slot, payload=payload)

    def _sector(self, host_offset: int, guest_offset: int) -> int:
        return (host_offset - self._payload if self._by_host_offset else guest_offset) // SECTOR_SIZE

    def read_into(self, store: Store, buffer: memoryview, host_offset: int, guest_offset: int) -> None:
        """Fill a buffer with guest bytes; what the file has no more of counts as zeros there. Raises StoreError."""
        before = host_offset & _MASK
        if not before and not len(buffer) & _MASK:
            self._read_sectors(store, buffer, host_offset, guest_offset)
            return
        sectors = bytearray(-(-(before + len(buffer)) // SECTOR_SIZE) * SECTOR_SIZE)
        self._read_sectors(store, memoryview(sectors), host_offset - before, guest_offset - before)
        buffer[:] = sectors[before : before + len(buffer)]

    def _read_sectors(self, store: Store, buffer: memoryview, host_offset: int, guest_offset: int) -> None:
        done = store.readinto_at(buffer, host_offset)
        if done < len(buffer):
            buffer[done:] = bytes(len(buffer) - done)
        self._cipher.decrypt(buffer, self._sector(host_offset, guest_offset))

    def encrypted(self, data: Buffer, host_offset: int, guest_offset: int) -> bytearray:
        """Return whole sectors as they are in the file."""
        result = bytearray(data)
        self._cipher.encrypt(memoryview(result), self._sector(host_offset, guest_offset))
        return result


def guest_cipher(store: Store, header: Header, secret: Secret) -> GuestCipher:
    """Return the cipher of an encrypted image that a secret opens.

    Raises WrongKey where it opens no key slot of LUKS; legacy AES cannot tell. Raises as `open_slot`.
    """
    if header.crypt_method == CryptMethod.AES:
        return GuestCipher(SectorCipher(LEGACY_AES, legacy_key(secret)), by_host_offset=False)
    if header.crypt_method != CryptMethod.LUKS:
        raise UsageError(f"{store.name!r} is not encrypted")
    pointer = header.encryption_header
    if pointer is None:
        raise CorruptMetadata("crypt_method is LUKS, but there is no encryption header", spec="Data encryption")
    luks = read_luks_header(store, pointer)
    opened = open_slot(store, pointer, luks, secret)
    cipher = SectorCipher(kind_of_luks(luks), opened.master_key)
    return GuestCipher(cipher, by_host_offset=True, slot=opened.slot)


def legacy_key(secret: Secret) -> bytes:
    """Return the key of legacy AES: the passphrase itself, cut or padded with zeros to 16 bytes."""
    return secret.data[:16].ljust(16, b"\0")
