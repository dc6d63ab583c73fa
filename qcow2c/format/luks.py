"""Encryption headers as facts: the LUKS1 header that `crypt_method` 2 points to. It holds no keys.

Owns what the header says, where its parts lie, and which names QEMU has for it. It decrypts nothing and never writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qcow2c.constants import (
    LUKS_KEY_MATERIAL_OFFSET,
    LUKS_MAGIC,
    LUKS_STRIPES,
    SECTOR_SIZE,
    Limit,
    LuksKeySlotState,
)
from qcow2c.errors import CorruptMetadata, LimitExceeded, Span, UnsupportedFeature
from qcow2c.format.derived import LUKS_HEADER, LUKS_KEY_SLOT
from qcow2c.format.header import EncryptionHeader
from qcow2c.light import frozen, replace
from qcow2c.storage.sources import Store

SPEC = "Full disk encryption header pointer"

HASHES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "sm3")
CIPHER_MODES = ("ecb", "cbc", "xts", "ctr")
IV_GENERATORS = ("plain", "plain64", "essiv")
CIPHER_KEY_BYTES = {"aes": (16, 24, 32), "cast5": (16,), "sm4": (16,), "serpent": (16, 24, 32), "twofish": (16, 24, 32)}
"""Names as LUKS spells them, and the lengths of their keys in bytes."""


@frozen
class LuksSlot:
    """A key slot; `key_offset` in bytes from the start of the encryption header."""

    active: bool
    iterations: int
    stripes: int
    key_offset: int
    salt: bytes = b""
    is_sound: bool = True
    """Whether the field that says so is one of the two values that there are."""


@frozen
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
    digest: bytes = b""
    digest_salt: bytes = b""

    @property
    def material_bytes(self) -> int:
        """Length of the key material of one slot."""
        return self.key_bytes * LUKS_STRIPES

    def without(self, slot: int) -> LuksHeader:
        """Return what the header says once a slot is not in use any more."""
        slots = list(self.slots)
        slots[slot] = replace(slots[slot], active=False)
        return replace(self, slots=tuple(slots))


def read_luks_header(store: Store, pointer: EncryptionHeader) -> LuksHeader:
    """Return the LUKS header at `pointer`. Raises CorruptMetadata, UnsupportedFeature."""
    size = LUKS_HEADER.size
    where = Span(pointer.offset, size)
    data = store.pread(size, pointer.offset)
    if len(data) < size or pointer.length < size:
        have = min(len(data), pointer.length)
        raise CorruptMetadata(f"the LUKS header is cut short: {have} of {size} bytes", where=where, spec=SPEC)
    if data[: len(LUKS_MAGIC)] != LUKS_MAGIC:
        message = f"no LUKS header: it starts with {data[: len(LUKS_MAGIC)]!r}"
        raise CorruptMetadata(message, where=where, spec=SPEC)
    found = LUKS_HEADER.values(data)
    if found["version"] != 1:
        raise UnsupportedFeature(f"LUKS version {found['version']} is not supported", where=where, spec=SPEC)
    cipher_mode, _, generator = _text(found["cipher_mode"]).partition("-")
    iv_generator, _, iv_hash = generator.partition(":")
    slots = tuple(
        LuksSlot(
            active=slot["active"] == LuksKeySlotState.ENABLED,
            iterations=slot["iterations"],
            stripes=slot["stripes"],
            key_offset=slot["key_material_offset"] * SECTOR_SIZE,
            salt=slot["salt"],
            is_sound=slot["active"] in tuple(LuksKeySlotState),
        )
        for slot in _slots(found["key_slots"])
    )
    return LuksHeader(
        cipher=_cipher(_text(found["cipher_name"]), cipher_mode, found["key_bytes"], where),
        cipher_mode=_known("cipher mode", cipher_mode, CIPHER_MODES, where),
        iv_generator=_known("IV generator", iv_generator, IV_GENERATORS, where),
        iv_hash=_known("IV generator hash", iv_hash, HASHES, where) if iv_generator == "essiv" else None,
        hash=_known("hash", _text(found["hash_spec"]), HASHES, where),
        payload_offset=found["payload_offset"] * SECTOR_SIZE,
        key_bytes=found["key_bytes"],
        iterations=found["mk_digest_iter"],
        uuid=_text(found["uuid"]),
        slots=slots,
        digest=found["mk_digest"],
        digest_salt=found["mk_digest_salt"],
    )


def _slots(stored: bytes) -> Iterator[dict[str, Any]]:
    for start in range(0, len(stored), LUKS_KEY_SLOT.size):
        yield LUKS_KEY_SLOT.values(stored, start)


def require_sound_slots(luks: LuksHeader, pointer: EncryptionHeader) -> None:
    """Raise CorruptMetadata, LimitExceeded for key slots that QEMU refuses, or that would take too long to open.

    Each must lie within the encryption header, before the payload, and over no other one.
    """
    where = Span(pointer.offset, LUKS_HEADER.size)
    for problem in _slot_problems(luks, pointer):
        raise CorruptMetadata(problem, where=where, spec=SPEC)
    for what, iterations in _iterations(luks):
        if iterations > Limit.LUKS_ITERATIONS:
            message = f"{what}: {iterations} iterations, more than {Limit.LUKS_ITERATIONS}"
            raise LimitExceeded(message, where=where, spec=SPEC)
        if not iterations:
            raise CorruptMetadata(f"{what}: no iterations", where=where, spec=SPEC)


def _iterations(luks: LuksHeader) -> Iterator[tuple[str, int]]:
    yield "master key digest", luks.iterations
    for index, slot in enumerate(luks.slots):
        if slot.active:
            yield f"key slot {index}", slot.iterations
    yield "all key slots", sum(slot.iterations for slot in luks.slots if slot.active) or 1


def _slot_problems(luks: LuksHeader, pointer: EncryptionHeader) -> Iterator[str]:
    length = -(-luks.material_bytes // SECTOR_SIZE) * SECTOR_SIZE
    end = min(luks.payload_offset, pointer.length)
    known: list[tuple[int, int]] = []
    for index, slot in enumerate(luks.slots):
        if not slot.is_sound:
            yield f"key slot {index} is neither active nor free"
        if slot.stripes != LUKS_STRIPES:
            yield f"key slot {index}: {slot.stripes} stripes, not {LUKS_STRIPES}"
        if slot.key_offset < LUKS_KEY_MATERIAL_OFFSET:
            yield f"key slot {index}: key material at {slot.key_offset:#x}, over the LUKS header"
        if slot.key_offset + length > end:
            yield f"key slot {index}: key material at {slot.key_offset:#x} leaves the encryption header of {end} bytes"
        for other, start in known:
            if abs(start - slot.key_offset) < length:
                yield f"key slot {index}: key material at {slot.key_offset:#x}, over that of key slot {other}"
        known.append((index, slot.key_offset))


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
