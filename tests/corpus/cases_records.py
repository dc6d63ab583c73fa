"""Snapshot tables, bitmap directories and LUKS areas."""

from __future__ import annotations

import struct
from pathlib import Path

from .case import HostileCase, either, error, opens
from .patch import (
    EXT_BITMAPS,
    EXT_CRYPTO,
    Edit,
    extension_area,
    extension_at,
    field,
    get,
    put,
    put_u64,
    seed_bytes,
    set_bits,
    u64,
    write_sparse,
)

U32 = 2**32 - 1


def at_snapshot(offset: int, content: bytes) -> Edit:
    """Overwrite bytes of the first snapshot record."""
    return lambda image: put(get(image, "snapshots_offset") + offset, content)(image)


def snapshot_u16(offset: int, value: int) -> Edit:
    return at_snapshot(offset, struct.pack(">H", value))


def snapshot_u32(offset: int, value: int) -> Edit:
    return at_snapshot(offset, struct.pack(">I", value))


def snapshot_u64(offset: int, value: int) -> Edit:
    return at_snapshot(offset, struct.pack(">Q", value))


def record(extra: bytes, *, l1: tuple[int, int], ident: bytes = b"1", name: bytes = b"first") -> bytes:
    body = struct.pack(">QIHHIIQII", *l1, len(ident), len(name), 0, 0, 0, 0, len(extra)) + extra + ident + name
    return body + bytes(-len(body) % 8)


def one_snapshot(extra: bytes, *, ident: bytes = b"1", name: bytes = b"first", copies: int = 1) -> Edit:
    """Replace the snapshot table by records of our own that share the first snapshot's L1."""

    def edit(image: bytearray) -> None:
        at = get(image, "snapshots_offset")
        first = struct.unpack_from(">QI", image, at)
        image[at : at + 4096] = (record(extra, l1=first, ident=ident, name=name) * copies).ljust(4096, b"\0")[:4096]
        field("nb_snapshots", copies)(image)

    return edit


ESCAPES = b"\x1b[31m\x1b]0;x\x07\r\n\x9b"
SIZES = struct.pack(">QQQ", 0, 2**21, 2**64 - 1)

SNAPSHOTS = [
    either("snapshot-table-past-eof", "snapshots", field("snapshots_offset", 2**40)),
    error("snapshot-table-misaligned", "snapshots", field("snapshots_offset", 0x1008)),
    error("snapshot-table-2^63", "snapshots", field("snapshots_offset", 2**63)),
    either("snapshots-more-than-there-are", "snapshots", field("nb_snapshots", 65536)),
    either("snapshots-fewer-than-there-are", "snapshots", field("nb_snapshots", 1)),
    either("snapshot-extra-1025", "snapshots", snapshot_u32(36, 1025)),
    either("snapshot-extra-max", "snapshots", snapshot_u32(36, U32)),
    *(
        either(f"snapshot-extra-{length}", "snapshots", one_snapshot((SIZES + bytes(1000))[:length]))
        for length in (0, 8, 15, 16, 24, 25, 1024)
    ),
    either("snapshot-extra-0-in-v2", "snapshots-v2", one_snapshot(b"")),
    either("snapshot-id-length-max", "snapshots", snapshot_u16(12, 65535)),
    either("snapshot-name-length-max", "snapshots", snapshot_u16(14, 65535)),
    either("snapshot-name-and-id-empty", "snapshots", one_snapshot(SIZES, ident=b"", name=b"")),
    either("snapshot-name-escapes", "snapshots", one_snapshot(SIZES, ident=ESCAPES, name=ESCAPES)),
    either("snapshot-name-bad-utf8", "snapshots", one_snapshot(SIZES, name=b"\xff\xfe\xc0\x80")),
    either("snapshot-name-with-nul", "snapshots", one_snapshot(SIZES, name=b"a\0b")),
    either("snapshots-of-one-name", "snapshots", one_snapshot(SIZES, copies=5)),
    either("snapshot-date-max", "snapshots", snapshot_u64(16, 2**64 - 1), snapshot_u64(24, 2**64 - 1)),
    either("snapshot-vm-state-2^64-1", "snapshots", snapshot_u64(40, 2**64 - 1)),
    either("snapshot-disk-size-2^64-1", "snapshots", snapshot_u64(48, 2**64 - 1)),
    either("snapshot-disk-size-0", "snapshots", snapshot_u64(48, 0)),
    either("snapshot-l1-misaligned", "snapshots", snapshot_u64(0, 0x1008)),
    either("snapshot-l1-past-eof", "snapshots", snapshot_u64(0, 2**40)),
    either("snapshot-l1-2^63", "snapshots", snapshot_u64(0, 2**63)),
    either("snapshot-l1-is-the-header", "snapshots", snapshot_u64(0, 0)),
    either("snapshot-l1-too-big", "snapshots", snapshot_u32(8, 4194305)),
    either("snapshot-l1-entries-max", "snapshots", snapshot_u32(8, U32)),
    either("snapshot-l1-too-small", "snapshots", snapshot_u32(8, 0)),
]


def all_snapshots_on_one_l1(folder: Path) -> Path:
    """65,536 snapshots of 56 bytes and more, each with the active L1 of 64 entries."""
    image = bytearray(seed_bytes("snapshots.qcow2"))
    first = struct.unpack_from(">QI", image, get(image, "snapshots_offset"))
    at = len(image) + -len(image) % 4096
    put(at, record(SIZES[:16], l1=first, ident=b"1", name=b"n") * 65536)(image)
    field("snapshots_offset", at)(image)
    field("nb_snapshots", 65536)(image)
    return write_sparse(folder / "image.qcow2", image)


def at_bitmap_extension(offset: int, content: bytes) -> Edit:
    return lambda image: put(extension_at(image, EXT_BITMAPS) + offset, content)(image)


def directory(image: bytearray) -> int:
    return u64(image, extension_at(image, EXT_BITMAPS) + 16)


def at_directory(offset: int, content: bytes) -> Edit:
    """Overwrite bytes of the first bitmap's directory entry."""
    return lambda image: put(directory(image) + offset, content)(image)


def bitmap_table_word(value: int) -> Edit:
    return lambda image: put_u64(u64(image, directory(image)), value)(image)


def word(form: str, value: int) -> bytes:
    return struct.pack(form, value)


BITMAPS = [
    opens("bitmaps-0", "bitmaps", at_bitmap_extension(0, word(">I", 0)), check="error"),
    opens("bitmaps-65536", "bitmaps", at_bitmap_extension(0, word(">I", 65536)), check="error"),
    either("bitmaps-one-more", "bitmaps", at_bitmap_extension(0, word(">I", 3))),
    either("bitmaps-one-fewer", "bitmaps", at_bitmap_extension(0, word(">I", 1))),
    opens("bitmaps-reserved-field", "bitmaps", at_bitmap_extension(4, word(">I", 1)), check="error"),
    either("bitmap-directory-size-0", "bitmaps", at_bitmap_extension(8, word(">Q", 0))),
    either("bitmap-directory-size-8-less", "bitmaps", at_bitmap_extension(8, word(">Q", 56))),
    opens("bitmap-directory-size-max", "bitmaps", at_bitmap_extension(8, word(">Q", 2**64 - 1)), check="error"),
    opens("bitmap-directory-misaligned", "bitmaps", at_bitmap_extension(16, word(">Q", 0x1008)), check="error"),
    either("bitmap-directory-past-eof", "bitmaps", at_bitmap_extension(16, word(">Q", 2**40))),
    either("bitmap-name-length-max", "bitmaps", at_directory(18, word(">H", 65535))),
    either("bitmap-name-length-0", "bitmaps", at_directory(18, word(">H", 0))),
    either("bitmap-name-escapes", "bitmaps", at_directory(24, b"\x1b[2J\r")),
    either("bitmap-extra-data-max", "bitmaps", at_directory(20, word(">I", U32))),
    *(either(f"bitmap-granularity-{bits}", "bitmaps", at_directory(17, bytes([bits]))) for bits in (0, 8, 32, 63, 255)),
    either("bitmap-flags-reserved", "bitmaps", at_directory(12, word(">I", 0xFFFFFFF8))),
    either("bitmap-type-0", "bitmaps", at_directory(16, b"\0")),
    either("bitmap-table-size-0", "bitmaps", at_directory(8, word(">I", 0))),
    either("bitmap-table-size-max", "bitmaps", at_directory(8, word(">I", U32))),
    either(
        "bitmap-table-size-largest-allowed",
        "bitmaps",
        at_directory(8, word(">I", 0x20000)),
        at_directory(17, b"\x1f"),
    ),
    either("bitmap-table-misaligned", "bitmaps", at_directory(0, word(">Q", 0x1008))),
    either("bitmap-table-past-eof", "bitmaps", at_directory(0, word(">Q", 2**40))),
    either("bitmap-table-entry-reserved", "bitmaps", bitmap_table_word(2)),
    either("bitmap-table-entry-past-eof", "bitmaps", bitmap_table_word(2**40)),
    opens("bitmaps-autoclear-off", "bitmaps", field("autoclear", 0)),
    either("bitmaps-extension-gone", "bitmaps", extension_area()),
]


def at_crypto(offset: int, value: int) -> Edit:
    return lambda image: put_u64(extension_at(image, EXT_CRYPTO) + offset, value)(image)


def in_luks(offset: int, content: bytes) -> Edit:
    """Overwrite bytes of the LUKS partition header."""
    return lambda image: put(u64(image, extension_at(image, EXT_CRYPTO)) + offset, content)(image)


def case(name: str, change: Edit) -> HostileCase:
    return either(f"luks-{name}", "luks", change)


LUKS = [
    case("pointer-past-eof", at_crypto(0, 2**40)),
    error("luks-pointer-misaligned", "luks", at_crypto(0, 0x1008)),
    case("pointer-2^63", at_crypto(0, 2**63)),
    case("pointer-to-the-header", at_crypto(0, 0)),
    case("length-0", at_crypto(8, 0)),
    case("length-max", at_crypto(8, 2**64 - 1)),
    case("magic-wrong", in_luks(0, b"LUXS")),
    case("version-2", in_luks(6, b"\0\2")),
    case("cipher-name-escapes", in_luks(8, b"\x1b[31mcipher\x07")),
    case("cipher-name-full", in_luks(8, b"a" * 32)),
    case("key-bytes-max", in_luks(108, b"\xff" * 4)),
    case("iterations-max", in_luks(164, b"\xff" * 4)),
    case("uuid-escapes", in_luks(168, b"\x1b]0;owned\x07" + b"\xff" * 30)),
    case("slot-garbage", in_luks(208, b"\xa5" * 48)),
    case("slot-stripes-max", in_luks(208 + 44, b"\xff" * 4)),
    either("luks-extension-gone", "luks", extension_area()),
    either("aes-with-luks-number", "aes", field("crypt_method", 2)),
    either("luks-with-aes-number", "luks", field("crypt_method", 1)),
    either("luks-and-dirty", "luks", set_bits("incompatible", 1)),
]

CASES: list[HostileCase] = [
    *SNAPSHOTS,
    *BITMAPS,
    *LUKS,
    HostileCase("snapshots-65536-on-one-l1", all_snapshots_on_one_l1, heavy=True),
]
