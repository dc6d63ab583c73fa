"""Published vectors: IEEE 1619-2007 (XTS), NIST SP 800-38A (CBC, CTR, ECB). The rest is held by test_bulk_cipher.py."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from qcow2c.crypto import sector_cipher
from qcow2c.crypto.cipher_kind import CipherKind
from qcow2c.crypto.sector_cipher import SectorCipher

XTS = CipherKind("aes-128", "xts", "plain64")


@pytest.mark.parametrize(
    ("key", "sector", "plain", "expected"),
    [
        # The halves of the first key are equal: the library refuses that, the standard does not.
        ("00" * 32, 0, "00" * 32, "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e"),
        (
            "11" * 16 + "22" * 16, 0x3333333333, "44" * 32,
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        ),
    ],
    ids=["vector-1", "vector-2"],
)  # fmt: skip
def test_xts_is_as_published(key: str, sector: int, plain: str, expected: str) -> None:
    buffer = bytearray.fromhex(plain)
    cipher = SectorCipher(XTS, bytes.fromhex(key))
    cipher.encrypt(memoryview(buffer), sector)
    assert buffer.hex() == expected
    cipher.decrypt(memoryview(buffer), sector)
    assert buffer.hex() == plain


def test_ecb_is_as_published() -> None:
    buffer = bytearray.fromhex("6bc1bee22e409f96e93d7e117393172a")
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    SectorCipher(CipherKind("aes-128", "ecb", "plain64"), key).encrypt(memoryview(buffer), 0)
    assert buffer.hex() == "3ad77bb40d7a3660a89ecaf32466ef97"


def test_a_key_that_the_library_takes_gives_the_same_by_parts() -> None:
    key, data = os.urandom(32), os.urandom(1024)
    one, other = bytearray(data), bytearray(data)
    SectorCipher(XTS, key).encrypt(memoryview(one), 5)
    encrypt = sector_cipher._own_xts(key)[0]
    for sector in range(2):
        part = memoryview(other)[sector * 512 : sector * 512 + 512]
        part[:] = encrypt((5 + sector).to_bytes(16, "little"), part)
    assert one == other


@pytest.mark.parametrize("mode", ["xts", "cbc", "ctr", "ecb"])
def test_the_last_sector_may_be_short(mode: str) -> None:
    kind = CipherKind("aes-192", mode, "plain64")
    data = os.urandom(96_000)  # As the key material of AES-192: 187 sectors and a half.
    buffer = bytearray(data)
    cipher = SectorCipher(kind, os.urandom(kind.key_bytes))
    cipher.encrypt(memoryview(buffer), 0)
    whole = bytearray(data + bytes(256))
    cipher.encrypt(memoryview(whole), 0)
    if mode != "cbc":
        assert buffer[: 187 * 512] == whole[: 187 * 512]
    cipher.decrypt(memoryview(buffer), 0)
    assert buffer == data


def test_arrays_are_used_once_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sector_cipher, "PATIENCE_BYTES", 256 << 10)
    monkeypatch.setattr(sector_cipher, "sys", SimpleNamespace(modules={}))  # As if numpy was not there yet.
    key, data = os.urandom(32), os.urandom(128 << 10)
    cipher, found = SectorCipher(XTS, key), []
    for _ in range(3):
        buffer = bytearray(data)
        cipher.encrypt(memoryview(buffer), 7)
        found.append((bytes(buffer), cipher._bulk is not None))
    assert [is_bulk for _, is_bulk in found] == [False, True, True]
    assert len({encrypted for encrypted, _ in found}) == 1


def test_no_key_is_in_a_repr() -> None:
    assert repr(SectorCipher(XTS, bytes(range(32)))) == "<SectorCipher aes-128-xts-plain64>"
