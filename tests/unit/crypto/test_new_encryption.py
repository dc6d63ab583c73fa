from __future__ import annotations

from typing import Any

import pytest

from qcow2c.constants import CryptMethod, Limit
from qcow2c.crypto.cipher_kind import CipherKind
from qcow2c.crypto.key_slots import open_slot
from qcow2c.crypto.new_encryption import Encryption, cipher_kind, iterations_of
from qcow2c.crypto.secrets import Secret
from qcow2c.errors import Qcow2Error, UnsupportedFeature, UsageError, WrongKey
from qcow2c.format.header import EncryptionHeader
from qcow2c.format.luks import read_luks_header
from qcow2c.storage.sources import Memory


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aes-256", CipherKind("aes-256", "xts", "plain64")),
        ("aes-128-cbc", CipherKind("aes-128", "cbc", "plain64")),
        ("aes-192-xts-plain", CipherKind("aes-192", "xts", "plain")),
        ("aes-256-cbc-essiv", CipherKind("aes-256", "cbc", "essiv", "sha256")),
        ("aes-256-cbc-essiv:md5", CipherKind("aes-256", "cbc", "essiv", "md5")),
    ],
)
def test_a_cipher_is_called_as_in_cryptsetup(name: str, kind: CipherKind) -> None:
    assert cipher_kind(name) == kind


@pytest.mark.parametrize(
    "name", ["aes", "aes-100", "rot-13", "aes-256-gcm", "aes-256-cbc-odd", "aes-256-xts-plain:md5"]
)
def test_an_unknown_cipher_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        cipher_kind(name)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"format": "luks2"}, UsageError),
        ({"cipher": "serpent-256-xts"}, UnsupportedFeature),
        ({"cipher": "aes-192-cbc"}, UsageError),
        ({"cipher": "aes-256-cbc-essiv:sha1"}, UnsupportedFeature),
        ({"hash": "crc32"}, UsageError),
        ({"iter_time_ms": 0}, UsageError),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is(options: dict[str, Any], error: type[Qcow2Error]) -> None:
    with pytest.raises(error):
        Encryption(**{"format": "luks", "key": "k"} | options)


@pytest.mark.parametrize("cipher", ["aes-256", "aes-128-cbc-essiv:sha256", "aes-192-xts"])
@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512"])
def test_a_header_opens_with_its_key_alone(cipher: str, name: str) -> None:
    made = Encryption("luks", lambda _name: "key", cipher, name, iter_time_ms=1).make()
    assert made.method is CryptMethod.LUKS
    store, pointer = Memory(made.header.ljust(made.length, b"\0")), EncryptionHeader(0, made.length)
    luks = read_luks_header(store, pointer)
    assert (luks.payload_offset, luks.hash, [slot.active for slot in luks.slots]) == (
        made.length,
        name,
        [True] + [False] * 7,
    )
    assert len(open_slot(store, pointer, luks, Secret(b"key")).master_key) == luks.key_bytes
    with pytest.raises(WrongKey):
        open_slot(store, pointer, luks, Secret(b"other"))


def test_two_images_have_two_master_keys() -> None:
    encryption = Encryption("luks", "key", iter_time_ms=1)
    one, other = (encryption.make().cipher.encrypted(bytes(512), 0, 0) for _ in range(2))
    assert one != other


def test_legacy_aes_has_no_header() -> None:
    made = Encryption("aes", b"key").make()
    assert (made.method, made.header, made.length) == (CryptMethod.AES, b"", 0)


def test_no_repr_shows_a_key() -> None:
    encryption = Encryption("luks", "hush", iter_time_ms=1)
    assert "hush" not in repr(encryption) and repr(encryption.make()) == "<MadeEncryption LUKS>"


def test_iterations_take_their_time_within_bounds() -> None:
    assert 1000 <= iterations_of("sha256", 64, 1) <= iterations_of("sha256", 64, 200)
    assert iterations_of("sha1", 16, 10**9) == Limit.LUKS_ITERATIONS // 8
