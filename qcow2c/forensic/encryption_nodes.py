"""Nodes of the encryption header: what it says, and where its key slots and their key material lie. Never a key.

With a key of the caller's it says which slot that opens. It decrypts no guest data.
"""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.constants import LUKS_STRIPES, SECTOR_SIZE, CryptMethod
from qcow2c.crypto.secrets import OneKey, secret_of
from qcow2c.errors import Qcow2Error, Span
from qcow2c.forensic.nodes import Node, field_nodes
from qcow2c.format.derived import LUKS_HEADER, LUKS_KEY_SLOT
from qcow2c.format.header import EncryptionHeader, Header
from qcow2c.storage.store import Store

__all__ = ["OneKey", "encryption_nodes"]

_LEGACY = "legacy AES-CBC with a key of 128 bits, by guest offset; it has no header of its own"
_LONGEST_KEY = 64
"""Bytes: of AES-256 in XTS mode. A key that is said to be longer has no place that could be shown."""


def encryption_nodes(store: Store, header: Header, key: OneKey | None = None) -> Iterator[Node]:
    """Yield the LUKS header, its key slots, their key material, and where the payload is; never what is in them."""
    if header.crypt_method == CryptMethod.AES:
        yield Node("aes", None, None, _LEGACY)
    pointer = header.encryption_header
    if pointer is None:
        return
    data = store.pread(LUKS_HEADER.size, pointer.offset)
    words = f"{pointer.length} bytes of header and key material"
    if key is not None and header.crypt_method == CryptMethod.LUKS:
        words += f"; {_opened(store, pointer, key)}"
    span = Span(pointer.offset, LUKS_HEADER.size)
    yield Node("luks", span, None, words, make_children=lambda: _children(data, pointer))


def _opened(store: Store, pointer: EncryptionHeader, key: OneKey) -> str:
    """Return in words which slot a key opens."""
    from qcow2c.crypto.key_slots import open_slot
    from qcow2c.format.luks import read_luks_header

    try:
        secret = secret_of(key, store.name)
        return f"the key opens key_slot {open_slot(store, pointer, read_luks_header(store, pointer), secret).slot}"
    except Qcow2Error as error:
        return f"the key opens nothing: {error.message}"


def _children(data: bytes, pointer: EncryptionHeader) -> Iterator[Node]:
    yield from field_nodes(LUKS_HEADER, data, pointer.offset)
    slots = LUKS_HEADER["key_slots"]
    key_bytes = LUKS_HEADER.values(data)["key_bytes"] if len(data) == LUKS_HEADER.size else 0
    for index in range(slots.size // LUKS_KEY_SLOT.size):
        at = slots.offset + index * LUKS_KEY_SLOT.size
        yield _key_slot(data[at : at + LUKS_KEY_SLOT.size], pointer.offset + at, index, pointer, key_bytes)
    if len(data) == LUKS_HEADER.size:
        begin = LUKS_HEADER.values(data)["payload_offset"] * SECTOR_SIZE
        text = f"guest data is in the data clusters, by host offset; in a raw volume it would begin at byte {begin:#x}"
        yield Node("payload", None, None, text)


def _key_slot(data: bytes, base: int, index: int, pointer: EncryptionHeader, key_bytes: int) -> Node:
    words, material = "", None
    if len(data) == LUKS_KEY_SLOT.size:
        fields = LUKS_KEY_SLOT.values(data)
        state = LUKS_KEY_SLOT["active"].names.get(fields["active"], "unknown")
        offset = fields["key_material_offset"] * SECTOR_SIZE
        words = f"{state}, key material at {pointer.offset + offset:#x}"
        length = key_bytes * LUKS_STRIPES
        if 0 < key_bytes <= _LONGEST_KEY and offset + length <= pointer.length:
            shown = f"of key_slot {index}, {state}: the master key in {LUKS_STRIPES} stripes, encrypted"
            material = Node("key_material", Span(pointer.offset + offset, length), None, shown)

    def children() -> Iterator[Node]:
        yield from field_nodes(LUKS_KEY_SLOT, data, base)
        if material is not None:
            yield material

    return Node(f"key_slot {index}", Span(base, LUKS_KEY_SLOT.size), None, words, make_children=children)
