"""Encryption headers as facts: the LUKS1 header that `crypt_method` 2 points to. It holds no keys.

Owns what the header says and which names QEMU has for it. It decrypts nothing yet and never writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from qcow2c.constants import LUKS_MAGIC, SECTOR_SIZE, LuksKeySlotState
from qcow2c.errors import CorruptMetadata, Span, UnsupportedFeature
from qcow2c.format.header import EncryptionHeader
from qcow2c.storage.sources import Store
from qcow2c.structs import LUKS_HEADER

SPEC = "Full disk encryption header pointer"

HASHES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
CIPHER_MODES = ("ecb", "cbc", "xts", "ctr")
IV_GENERATORS = ("plain", "plain64", "essiv")
CIPHER_KEY_BYTES = {"aes": (16, 24, 32), "cast5": (16,), "serpent": (16, 24, 32), "twofish": (16, 24, 32)}
"""Names as LUKS spells them, and the lengths of their keys in bytes."""


@dataclass(frozen=True, slots=True)
class LuksSlot:
    """A key slot; `key_offset` in bytes from the start of the encryption header."""

    active: bool
    iterations: int
    stripes: int
    key_offset: int


@dataclass(frozen=True, slots=True)
class LuksHeader:
    """What a LUKS1 header says, under QEMU's names of the algorithms; `payload_offset` in bytes."""

    cipher: str
    cipher_mode: str
    iv_generator: str
    iv_hash: str | None
    """The hash of the iv generator "essiv"; None for the others, which have none."""
    hash: str
    payload_offset: int
    key_bytes: int
    iterations: int
    uuid: str
    slots: tuple[LuksSlot, ...]


def read_luks_header(store: Store, pointer: EncryptionHeader) -> LuksHeader:
    """Return the LUKS header at `pointer`. Raises CorruptMetadata, UnsupportedFeature."""
    size = LUKS_HEADER.sizeof()
    where = Span(pointer.offset, size)
    data = store.pread(size, pointer.offset)
    if len(data) < size or pointer.length < size:
        have = min(len(data), pointer.length)
        raise CorruptMetadata(f"the LUKS header is cut short: {have} of {size} bytes", where=where, spec=SPEC)
    if data[: len(LUKS_MAGIC)] != LUKS_MAGIC:
        message = f"no LUKS header: it starts with {data[: len(LUKS_MAGIC)]!r}"
        raise CorruptMetadata(message, where=where, spec=SPEC)
    found = LUKS_HEADER.parse(data)
    if found.version != 1:
        raise UnsupportedFeature(f"LUKS version {found.version} is not supported", where=where, spec=SPEC)
    cipher_mode, _, generator = _text(found.cipher_mode).partition("-")
    iv_generator, _, iv_hash = generator.partition(":")
    slots = tuple(
        LuksSlot(
            active=int(slot.active) == LuksKeySlotState.ENABLED,
            iterations=slot.iterations,
            stripes=slot.stripes,
            key_offset=slot.key_material_offset * SECTOR_SIZE,
        )
        for slot in found.key_slots
    )
    return LuksHeader(
        cipher=_cipher(_text(found.cipher_name), cipher_mode, found.key_bytes, where),
        cipher_mode=_known("cipher mode", cipher_mode, CIPHER_MODES, where),
        iv_generator=_known("IV generator", iv_generator, IV_GENERATORS, where),
        iv_hash=_known("IV generator hash", iv_hash, HASHES, where) if iv_generator == "essiv" else None,
        hash=_known("hash", _text(found.hash_spec), HASHES, where),
        payload_offset=found.payload_offset * SECTOR_SIZE,
        key_bytes=found.key_bytes,
        iterations=found.mk_digest_iter,
        uuid=_text(found.uuid),
        slots=slots,
    )


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _known(what: str, name: str, names: tuple[str, ...], where: Span) -> str:
    if name not in names:
        raise UnsupportedFeature(f"unknown {what} {name!r} in the LUKS header", where=where, spec=SPEC)
    return name


def _cipher(name: str, cipher_mode: str, key_bytes: int, where: Span) -> str:
    """Return a cipher's name with its key length in bits; XTS has two keys in one."""
    length = key_bytes // 2 if cipher_mode == "xts" else key_bytes
    if length not in CIPHER_KEY_BYTES.get(name, ()):
        message = f"unknown cipher {name!r} with a key of {key_bytes} bytes in the LUKS header"
        raise UnsupportedFeature(message, where=where, spec=SPEC)
    return f"{name}-{length * 8}"
