"""LUKS headers as facts: what QEMU calls the algorithms, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from qcow2c import structs
from qcow2c.errors import CorruptMetadata, Qcow2Error, UnsupportedFeature
from qcow2c.format.header import EncryptionHeader
from qcow2c.format.luks import read_luks_header
from qcow2c.storage.sources import Memory

ENABLED, DISABLED = structs.LuksKeySlotState.ENABLED, structs.LuksKeySlotState.DISABLED


def luks(**changes: Any) -> bytes:
    slot = {"active": int(DISABLED), "iterations": 5, "salt": bytes(32), "key_material_offset": 8, "stripes": 4000}
    fields: dict[str, Any] = {
        "magic": structs.LUKS_MAGIC,
        "version": 1,
        "cipher_name": b"aes",
        "cipher_mode": b"xts-plain64",
        "hash_spec": b"sha256",
        "payload_offset": 4040,
        "key_bytes": 64,
        "mk_digest": bytes(20),
        "mk_digest_salt": bytes(32),
        "mk_digest_iter": 1000,
        "uuid": b"c33d20b5",
        "key_slots": [{**slot, "active": int(ENABLED)}] + [slot] * 7,
        **changes,
    }
    for name, size in (("cipher_name", 32), ("cipher_mode", 32), ("hash_spec", 32), ("uuid", 40)):
        fields[name] = fields[name].ljust(size, b"\0")
    return bytes(structs.LUKS_HEADER.build(fields))


def read(data: bytes, length: int = 4096) -> Any:
    return read_luks_header(Memory(bytes(512) + data), EncryptionHeader(512, length))


def test_a_header_has_the_names_of_qemu() -> None:
    found = read(luks())
    assert (found.cipher, found.cipher_mode, found.iv_generator, found.iv_hash) == ("aes-256", "xts", "plain64", None)
    assert (found.hash, found.payload_offset, found.iterations, found.uuid) == ("sha256", 4040 * 512, 1000, "c33d20b5")
    assert [slot.active for slot in found.slots] == [True] + [False] * 7
    assert (found.slots[0].iterations, found.slots[0].stripes, found.slots[0].key_offset) == (5, 4000, 4096)


def test_essiv_has_a_hash_and_cbc_one_key() -> None:
    found = read(luks(cipher_name=b"serpent", cipher_mode=b"cbc-essiv:sha1", key_bytes=16))
    assert (found.cipher, found.cipher_mode, found.iv_generator, found.iv_hash) == (
        "serpent-128",
        "cbc",
        "essiv",
        "sha1",
    )


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"magic": b"LUKS\0\0"}, CorruptMetadata, "no LUKS header"),
        ({"version": 2}, UnsupportedFeature, "LUKS version 2"),
        ({"cipher_name": b"rot"}, UnsupportedFeature, "'rot' with a key of 64 bytes"),
        ({"key_bytes": 63}, UnsupportedFeature, "key of 63 bytes"),
        ({"cipher_mode": b"xts"}, UnsupportedFeature, "unknown IV generator ''"),
        ({"cipher_mode": b"abc-plain"}, UnsupportedFeature, "unknown cipher"),
        ({"cipher_mode": b"cbc-essiv", "key_bytes": 32}, UnsupportedFeature, "unknown IV generator hash ''"),
        ({"hash_spec": b"crc"}, UnsupportedFeature, "unknown hash 'crc'"),
    ],
)
def test_a_header_of_another_kind_is_refused(changes: dict[str, Any], error: type[Qcow2Error], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        read(luks(**changes))
    assert caught.value.where is not None
    assert caught.value.where.offset == 512


@pytest.mark.parametrize(("data", "length"), [(luks()[:300], 4096), (luks(), 100)])
def test_a_short_header_is_refused(data: bytes, length: int) -> None:
    with pytest.raises(CorruptMetadata, match="cut short"):
        read(data, length)
