"""`LuksVolume`: what a raw LUKS volume holds, as a store: sectors of a file from its payload on, decrypted.

Its header and key slots are other modules' business. Writes are whole sectors; only `flush` makes anything durable.
"""

from __future__ import annotations

from qcow2c.constants import SECTOR_SIZE
from qcow2c.crypto.guest_cipher import GuestCipher
from qcow2c.crypto.key_slots import kind_of_luks, open_slot
from qcow2c.crypto.secrets import Secret
from qcow2c.crypto.sector_cipher import SectorCipher
from qcow2c.format.header import EncryptionHeader
from qcow2c.format.luks import LuksHeader, read_luks_header
from qcow2c.storage.store import Buffer, Store

_ZEROS = bytes(1 << 20)


class LuksVolume(Store):
    """The payload of a volume. The file stays open; it is not closed here."""

    def __init__(self, file: Store, payload: int, cipher: GuestCipher) -> None:
        self._file, self._payload, self._cipher = file, payload, cipher
        self.name, self.path, self.writable = file.name, file.path, file.writable

    def size(self) -> int:
        return max(0, self._file.size() - self._payload)

    def pread(self, length: int, offset: int) -> bytes:
        buffer = bytearray(max(0, min(length, self.size() - offset)))
        self.readinto_at(memoryview(buffer), offset)
        return bytes(buffer)

    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        inside = buffer[: max(0, min(len(buffer), self.size() - offset))]
        self._cipher.read_into(self._file, inside, self._payload + offset, offset)
        return len(inside)

    def allocated_size(self) -> int | None:
        return self._file.allocated_size()

    def identity(self) -> object:
        return self._file.identity(), self._payload

    def pwrite(self, data: Buffer, offset: int) -> None:
        before, behind = offset % SECTOR_SIZE, -(offset + len(data)) % SECTOR_SIZE
        if before or behind:
            start, end = offset - before, offset + len(data) + behind
            sectors = bytearray(self.pread(end - start, start).ljust(end - start, b"\0"))
            sectors[before : before + len(data)] = data
            data, offset = sectors, start
        self._file.pwrite(self._cipher.encrypted(data, self._payload + offset, offset), self._payload + offset)

    def allocate(self, offset: int, length: int) -> None:
        self._file.allocate(self._payload + offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        for start in range(offset, offset + length, len(_ZEROS)):
            self.pwrite(_ZEROS[: min(len(_ZEROS), offset + length - start)], start)

    def truncate(self, size: int) -> None:
        self._file.truncate(self._payload + size)

    def flush(self) -> None:
        self._file.flush()


def read_volume_header(file: Store) -> LuksHeader:
    """Return the LUKS header at the start of a file. Raises CorruptMetadata, UnsupportedFeature, StoreError."""
    return read_luks_header(file, EncryptionHeader(0, file.size()))


def open_volume(file: Store, secret: Secret) -> LuksVolume:
    """Return what a volume holds. Raises WrongKey, and as `open_slot`."""
    luks = read_volume_header(file)
    opened = open_slot(file, EncryptionHeader(0, luks.payload_offset), luks, secret)
    cipher = SectorCipher(kind_of_luks(luks), opened.master_key)
    guest = GuestCipher(cipher, by_host_offset=True, slot=opened.slot, payload=luks.payload_offset)
    return LuksVolume(file, luks.payload_offset, guest)
