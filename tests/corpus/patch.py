"""Byte-level edits of qcow2 images: an independent witness that spells every offset itself."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

SEEDS = Path(__file__).parent / "seeds"

Edit = Callable[[bytearray], None]
Make = Callable[[Path], Path]

MAGIC = b"QFI\xfb"
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1

# Header field: byte offset and struct format.
FIELDS: dict[str, tuple[int, str]] = {
    "magic": (0, ">I"),
    "version": (4, ">I"),
    "backing_file_offset": (8, ">Q"),
    "backing_file_size": (16, ">I"),
    "cluster_bits": (20, ">I"),
    "size": (24, ">Q"),
    "crypt_method": (32, ">I"),
    "l1_size": (36, ">I"),
    "l1_table_offset": (40, ">Q"),
    "refcount_table_offset": (48, ">Q"),
    "refcount_table_clusters": (56, ">I"),
    "nb_snapshots": (60, ">I"),
    "snapshots_offset": (64, ">Q"),
    "incompatible": (72, ">Q"),
    "compatible": (80, ">Q"),
    "autoclear": (88, ">Q"),
    "refcount_order": (96, ">I"),
    "header_length": (100, ">I"),
    "compression_type": (104, ">B"),
}

EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441
EXT_UNKNOWN = 0x12345678


@cache
def seed_bytes(name: str) -> bytes:
    """Return the content of one seed (`name` without its ending .gz)."""
    return gzip.decompress((SEEDS / f"{name}.gz").read_bytes())


def write_sparse(path: Path, content: bytes | bytearray, block: int = 65536) -> Path:
    """Write `content`, leaving holes where a whole block is zero."""
    with path.open("wb") as file:
        for at in range(0, len(content), block):
            piece = content[at : at + block]
            if piece.count(0) != len(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(content))
    return path


def unpack_seed(name: str, folder: Path) -> Path:
    return write_sparse(folder / name, seed_bytes(name))


def get(image: bytes | bytearray, field: str) -> int:
    at, form = FIELDS[field]
    value: int = struct.unpack_from(form, image, at)[0]
    return value


def u64(image: bytes | bytearray, at: int) -> int:
    value: int = struct.unpack_from(">Q", image, at)[0]
    return value


def cluster_size(image: bytes | bytearray) -> int:
    return 1 << get(image, "cluster_bits")


def header_end(image: bytes | bytearray) -> int:
    return 72 if get(image, "version") == 2 else get(image, "header_length")


def extensions(image: bytes | bytearray) -> list[tuple[int, int, bytes]]:
    """Return (offset of the data, type, data) of each extension before the end marker."""
    found: list[tuple[int, int, bytes]] = []
    at = header_end(image)
    while True:
        kind, length = struct.unpack_from(">II", image, at)
        if kind == EXT_END:
            return found
        found.append((at + 8, kind, bytes(image[at + 8 : at + 8 + length])))
        at += 8 + (length + 7 & ~7)


def extension_at(image: bytes | bytearray, kind: int) -> int:
    """Return the offset of the data of the first extension of this type."""
    return next(at for at, found, _ in extensions(image) if found == kind)


# --- edits ---------------------------------------------------------------------------------------------------------


def field(name: str, value: int) -> Edit:
    at, form = FIELDS[name]
    return lambda image: struct.pack_into(form, image, at, value)


def set_bits(name: str, bits: int) -> Edit:
    at, form = FIELDS[name]
    return lambda image: struct.pack_into(form, image, at, get(image, name) | bits)


def put(at: int, content: bytes) -> Edit:
    """Overwrite bytes at a fixed offset; the file grows where they reach past its end."""

    def edit(image: bytearray) -> None:
        if len(image) < at + len(content):
            image.extend(bytes(at + len(content) - len(image)))
        image[at : at + len(content)] = content

    return edit


def put_u64(at: int, value: int) -> Edit:
    return put(at, struct.pack(">Q", value))


def cut(length: int) -> Edit:
    """Truncate to `length` bytes (a negative number counts from the end)."""

    def edit(image: bytearray) -> None:
        del image[length:]

    return edit


def grow(length: int) -> Edit:
    return lambda image: image.extend(bytes(max(0, length - len(image))))


def l1_entry_at(image: bytes | bytearray, index: int) -> int:
    return get(image, "l1_table_offset") + 8 * index


def l2_table_at(image: bytes | bytearray, l1_index: int) -> int:
    return u64(image, l1_entry_at(image, l1_index)) & 0x00FFFFFFFFFFFE00


def l2_entry_at(image: bytes | bytearray, guest_cluster: int) -> int:
    """Return the file offset of a standard L2 entry (of 16 bytes with extended L2)."""
    width = 16 if get(image, "version") > 2 and get(image, "incompatible") & 16 else 8
    per_table = cluster_size(image) // width
    return l2_table_at(image, guest_cluster // per_table) + width * (guest_cluster % per_table)


def l1(index: int, change: Callable[[int], int]) -> Edit:
    def edit(image: bytearray) -> None:
        at = l1_entry_at(image, index)
        struct.pack_into(">Q", image, at, change(u64(image, at)))

    return edit


def l2(guest_cluster: int, change: Callable[[int], int]) -> Edit:
    def edit(image: bytearray) -> None:
        at = l2_entry_at(image, guest_cluster)
        struct.pack_into(">Q", image, at, change(u64(image, at)))

    return edit


def l2_bitmap(guest_cluster: int, change: Callable[[int], int]) -> Edit:
    """Change the second word of an extended L2 entry."""

    def edit(image: bytearray) -> None:
        at = l2_entry_at(image, guest_cluster) + 8
        struct.pack_into(">Q", image, at, change(u64(image, at)))

    return edit


def refcount_table(index: int, change: Callable[[int], int]) -> Edit:
    def edit(image: bytearray) -> None:
        at = get(image, "refcount_table_offset") + 8 * index
        struct.pack_into(">Q", image, at, change(u64(image, at)))

    return edit


def refcount(cluster: int, value: int) -> Edit:
    """Set one reference count in the first refcount block, whatever its width."""

    def edit(image: bytearray) -> None:
        order = 4 if get(image, "version") == 2 else get(image, "refcount_order")
        block = u64(image, get(image, "refcount_table_offset"))
        bits = 1 << order
        if bits >= 8:
            width = bits // 8
            image[block + cluster * width : block + (cluster + 1) * width] = value.to_bytes(width, "big")
            return
        at, shift = block + cluster * bits // 8, cluster * bits % 8
        image[at] = image[at] & ~(((1 << bits) - 1) << shift) | value << shift

    return edit


def to(value: int) -> Callable[[int], int]:
    return lambda _: value


def with_bits(bits: int) -> Callable[[int], int]:
    return lambda old: old | bits


def without_bits(bits: int) -> Callable[[int], int]:
    return lambda old: old & ~bits


def flipped(bits: int) -> Callable[[int], int]:
    return lambda old: old ^ bits


def extension(kind: int, data: bytes, length: int | None = None) -> bytes:
    """Return one extension, padded to 8; `length` lies about the length."""
    return struct.pack(">II", kind, len(data) if length is None else length) + data + bytes(-len(data) % 8)


def extension_area(*items: bytes, end: bool = True) -> Edit:
    """Put these extensions in place of the ones there; a backing name moves behind them."""

    def edit(image: bytearray) -> None:
        start = header_end(image)
        name_at, name_length = get(image, "backing_file_offset"), get(image, "backing_file_size")
        name = bytes(image[name_at : name_at + name_length]) if name_at else b""
        area = b"".join(items) + (bytes(8) if end else b"")
        limit = cluster_size(image)
        image[start:limit] = (area + name + bytes(limit))[: limit - start]
        if name_at:
            struct.pack_into(">Q", image, 8, start + len(area))

    return edit


def backing_name(name: bytes, fmt: bytes | None = b"qcow2") -> Edit:
    """Name a backing file, with its format extension in front."""

    def edit(image: bytearray) -> None:
        struct.pack_into(">QI", image, 8, 0, 0)
        items = [extension(EXT_BACKING_FORMAT, fmt)] if fmt is not None else []
        extension_area(*items)(image)
        at = header_end(image) + sum(map(len, items)) + 8
        image[at : at + len(name)] = name
        struct.pack_into(">QI", image, 8, at, len(name))

    return edit


def patched(seed: str, *edits: Edit, named: str = "image.qcow2") -> Make:
    """Return a maker of a copy of `seed` (for example "v3") with the edits done in order."""

    def make(folder: Path) -> Path:
        image = bytearray(seed_bytes(f"{seed}.qcow2"))
        for edit in edits:
            edit(image)
        return write_sparse(folder / named, image)

    return make


def literal(content: bytes) -> Make:
    def make(folder: Path) -> Path:
        path = folder / "image.qcow2"
        path.write_bytes(content)
        return path

    return make
