from __future__ import annotations

import os

import pytest

from qcow2c.crypto.cipher_kind import LEGACY_AES, CipherKind
from qcow2c.crypto.guest_cipher import GuestCipher, guest_cipher, legacy_key
from qcow2c.crypto.secrets import Secret
from qcow2c.crypto.sector_cipher import SectorCipher
from qcow2c.errors import UsageError, WrongKey
from qcow2c.format.header import Header
from qcow2c.storage.sources import Memory
from tests.corpus.make_seeds import SECRET
from tests.corpus.patch import seed_bytes

XTS = CipherKind("aes-128", "xts", "plain64")


def test_legacy_keys_are_cut_and_padded() -> None:
    assert legacy_key(Secret(b"short")) == b"short" + bytes(11)
    assert legacy_key(Secret(b"a passphrase of more than 16")) == b"a passphrase of "


@pytest.mark.parametrize(("by_host_offset", "sector"), [(True, 0x2000 // 512), (False, 0x9000 // 512)])
def test_sectors_are_counted_in_the_file_or_on_the_disk(by_host_offset: bool, sector: int) -> None:  # noqa: FBT001
    cipher = SectorCipher(XTS, os.urandom(32))
    expected = bytearray(b"d" * 1024)
    cipher.encrypt(memoryview(expected), sector)
    found = GuestCipher(cipher, by_host_offset=by_host_offset).encrypted(b"d" * 1024, 0x2000, 0x9000)
    assert found == expected


def test_parts_of_sectors_are_read() -> None:
    guest = GuestCipher(SectorCipher(LEGACY_AES, os.urandom(16)), by_host_offset=False)
    data = os.urandom(2048)
    store = Memory(bytes(4096) + guest.encrypted(data, 4096, 512))
    for start, length in ((0, 2048), (1, 5), (511, 2), (700, 1000), (2047, 1)):
        buffer = bytearray(length)
        guest.read_into(store, memoryview(buffer), 4096 + start, 512 + start)
        assert buffer == data[start : start + length]


def test_what_the_file_has_no_more_of_is_decrypted_as_zeros() -> None:
    guest = GuestCipher(SectorCipher(XTS, os.urandom(32)), by_host_offset=True)
    short, whole = bytearray(1024), bytearray(1024)
    guest.read_into(Memory(b"x" * 700), memoryview(short), 0, 0)
    guest.read_into(Memory(b"x" * 700 + bytes(324)), memoryview(whole), 0, 0)
    assert short == whole


def test_the_cipher_of_an_image_is_made_of_its_key() -> None:
    store = Memory(seed_bytes("luks.qcow2"))
    header = Header.load(store)
    found = guest_cipher(store, header, Secret(SECRET.encode()))
    assert found.slot == 0 and SECRET not in repr(found)
    with pytest.raises(WrongKey):
        guest_cipher(store, header, Secret(b"no"))
    plain = Memory(seed_bytes("v3.qcow2"))
    with pytest.raises(UsageError):
        guest_cipher(plain, Header.load(plain), Secret(b""))
