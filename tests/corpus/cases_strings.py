"""Header extensions, feature names, backing file names and data file names."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from .case import HostileCase, either, error, opens
from .patch import (
    EXT_BACKING_FORMAT,
    EXT_BITMAPS,
    EXT_CRYPTO,
    EXT_DATA_FILE,
    EXT_FEATURES,
    EXT_UNKNOWN,
    Edit,
    Make,
    backing_name,
    extension,
    extension_area,
    field,
    patched,
    put,
    set_bits,
    unpack_seed,
)

ESCAPES = b"\x1b[31mred\x1b]0;title\x07\r\n\x08\x9b2J"


def feature(kind: int, bit: int, name: bytes) -> bytes:
    return struct.pack(">BB46s", kind, bit, name)


def features(*rows: bytes, length: int | None = None) -> Edit:
    return extension_area(extension(EXT_FEATURES, b"".join(rows), length))


def unending(kind: int) -> Edit:
    """Fill the rest of the cluster with empty extensions of one type, without an end marker."""
    return extension_area(extension(kind, b"") * 512, end=False)


EXTENSIONS = [
    error("extension-longer-than-cluster", "v3", extension_area(extension(EXT_UNKNOWN, b"x", 4096))),
    error("extension-length-max", "v3", extension_area(extension(EXT_UNKNOWN, b"x", 2**32 - 1))),
    error("extension-length-max-minus-7", "v3", extension_area(extension(EXT_UNKNOWN, b"x", 2**32 - 8))),
    either("extensions-empty-without-end-marker", "v3", unending(EXT_UNKNOWN)),
    either("extension-ends-at-cluster-end", "v3", extension_area(extension(EXT_UNKNOWN, bytes(4096 - 112 - 8)))),
    either(
        "extension-header-cut-by-cluster-end",
        "v3",
        extension_area(extension(EXT_UNKNOWN, bytes(4096 - 112 - 16)), b"\x12\x34\x56\x78", end=False),
    ),
    error(
        "extension-over-the-backing-name",
        "overlay",
        lambda image: put(struct.unpack_from(">Q", image, 8)[0] - 24, struct.pack(">II", EXT_UNKNOWN, 64))(image),
    ),
    opens("extension-unknown-with-escapes", "v3", extension_area(extension(EXT_UNKNOWN, ESCAPES)), check="clean"),
    either("extension-backing-format-15", "overlay", extension_area(extension(EXT_BACKING_FORMAT, b"q" * 15))),
    error("extension-backing-format-16", "overlay", extension_area(extension(EXT_BACKING_FORMAT, b"q" * 16))),
    either(
        "extension-backing-format-escapes",
        "overlay",
        extension_area(extension(EXT_BACKING_FORMAT, b"\x1b[2J\0x")),
    ),
    either(
        "extension-backing-format-without-backing",
        "v3",
        extension_area(extension(EXT_BACKING_FORMAT, b"raw")),
    ),
    either(
        "extension-backing-format-twice",
        "overlay",
        extension_area(extension(EXT_BACKING_FORMAT, b"raw"), extension(EXT_BACKING_FORMAT, b"qcow2")),
    ),
    error("extension-crypto-without-luks", "v3", extension_area(extension(EXT_CRYPTO, bytes(16)))),
    opens("extension-bitmaps-too-short", "bitmaps", extension_area(extension(EXT_BITMAPS, bytes(23))), check="error"),
    either(
        "extension-unknown-twice",
        "v3",
        extension_area(extension(EXT_UNKNOWN, b"a"), extension(EXT_UNKNOWN, b"b")),
    ),
    opens("features-cut-in-a-row", "v3", features(feature(0, 5, b"five"), length=47), check="clean"),
    opens("features-length-1", "v3", features(b"\0"), check="clean"),
    opens(
        "features-big-numbers",
        "v3",
        features(*(feature(kind, bit, b"big") for kind, bit in ((0, 64), (1, 255), (2, 128), (3, 0), (255, 255)))),
    ),
    error(
        "features-name-an-unknown-bit",
        "v3",
        set_bits("incompatible", 1 << 40),
        features(feature(0, 40, b"teleport")),
    ),
    error("features-name-full-46", "v3", set_bits("incompatible", 1 << 40), features(feature(0, 40, b"N" * 46))),
    error("features-name-escapes", "v3", set_bits("incompatible", 1 << 40), features(feature(0, 40, ESCAPES))),
    error(
        "features-name-bad-utf8",
        "v3",
        set_bits("incompatible", 1 << 40),
        features(feature(0, 40, b"\xff\xfe\xc0")),
    ),
    error(
        "features-two-names-for-a-bit",
        "v3",
        set_bits("incompatible", 1 << 40),
        features(feature(0, 40, b"one"), feature(0, 40, b"two")),
    ),
]


def outside(folder: Path, name: str) -> Path:
    """Make a secret beside the image's folder that no command may open."""
    secret = folder.parent / name
    secret.write_bytes(b"SECRET" * 1000)
    return secret


def naming(name: bytes, fmt: bytes | None = b"raw") -> Make:
    return patched("v3", backing_name(name, fmt))


def absolute_name(folder: Path) -> Path:
    return naming(os.fsencode(outside(folder, f"{folder.name}-absolute-secret")))(folder)


def parent_name(folder: Path) -> Path:
    outside(folder, f"{folder.name}-parent-secret")
    return naming(os.fsencode(f"../{folder.name}-parent-secret"))(folder)


def symlink_out(folder: Path) -> Path:
    (folder / "inside").symlink_to(outside(folder, f"{folder.name}-symlink-secret"))
    return naming(b"inside")(folder)


def folder_symlink_out(folder: Path) -> Path:
    outside(folder, f"{folder.name}-linked-secret")
    (folder / "door").symlink_to(folder.parent)
    return naming(os.fsencode(f"door/{folder.name}-linked-secret"))(folder)


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return naming(b"pipe")(folder)


def directory(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return naming(b"sub")(folder)


def itself(folder: Path) -> Path:
    return patched("v3", backing_name(b"image.qcow2"))(folder)


def two_cycle(folder: Path) -> Path:
    patched("v3", backing_name(b"image.qcow2"), named="other.qcow2")(folder)
    return patched("v3", backing_name(b"other.qcow2"))(folder)


def cycle_through_symlink(folder: Path) -> Path:
    (folder / "alias.qcow2").symlink_to("image.qcow2")
    return patched("v3", backing_name(b"alias.qcow2"))(folder)


def chain(depth: int) -> Make:
    """Return a maker of `depth` files: the image and depth - 1 backing files."""

    def make(folder: Path) -> Path:
        for level in range(depth - 1, 0, -1):
            edits = [backing_name(f"{level + 1}.qcow2".encode())] if level < depth - 1 else []
            patched("c512", *edits, named=f"{level}.qcow2")(folder)
        return patched("c512", *([backing_name(b"1.qcow2")] if depth > 1 else []))(folder)

    return make


def chain_case(depth: int) -> HostileCase:
    names = frozenset(f"{level}.qcow2" for level in range(1, depth))
    return HostileCase(f"backing-chain-of-{depth}", chain(depth), expect="opens", allowed=names)


def base_is_damaged(folder: Path) -> Path:
    patched("base", field("l1_size", 0), named="base.qcow2")(folder)
    return patched("overlay")(folder)


def base_is_missing(folder: Path) -> Path:
    return patched("overlay")(folder)


def base_is_text(folder: Path) -> Path:
    (folder / "base.qcow2").write_text("no image at all\n")
    return patched("overlay")(folder)


OTHER = frozenset({"base.qcow2"})

BACKING = [
    either("backing-name-length-0", "overlay", field("backing_file_size", 0)),
    either("backing-name-1023", "v3", backing_name(b"n" * 1023)),
    error("backing-name-1024", "v3", backing_name(b"n" * 1024)),
    error("backing-name-length-max", "overlay", field("backing_file_size", 2**32 - 1)),
    error("backing-name-outside-cluster", "overlay", field("backing_file_offset", 8192)),
    error("backing-name-offset-2^63", "overlay", field("backing_file_offset", 2**63)),
    error("backing-name-over-cluster-end", "overlay", field("backing_file_offset", 4090)),
    either("backing-name-at-cluster-end", "overlay", field("backing_file_offset", 4096)),
    either("backing-name-inside-header", "overlay", field("backing_file_offset", 8)),
    either("backing-name-with-nul", "v3", backing_name(b"base\0.qcow2")),
    either("backing-name-with-escapes", "v3", backing_name(ESCAPES)),
    either("backing-name-bad-utf8", "v3", backing_name(b"\xff\xfe\xc0.img")),
    either("backing-name-only-a-slash", "v3", backing_name(b"/")),
    HostileCase("backing-absolute", absolute_name, expect="opens"),
    HostileCase("backing-parent", parent_name, expect="opens"),
    HostileCase("backing-symlink-out", symlink_out, expect="opens"),
    HostileCase("backing-through-linked-folder", folder_symlink_out, expect="opens"),
    HostileCase("backing-fifo", fifo, expect="opens", askable=False),
    HostileCase("backing-directory", directory, expect="opens"),
    HostileCase("backing-device", naming(b"/dev/zero"), expect="opens"),
    HostileCase("backing-proc", naming(b"/proc/self/mem"), expect="opens"),
    HostileCase("backing-etc-passwd", naming(b"/etc/passwd"), expect="opens"),
    HostileCase("backing-json", naming(b'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}')),
    HostileCase("backing-nbd", naming(b"nbd://127.0.0.1:10809/x")),
    HostileCase("backing-fat", naming(b"fat:rw:/etc")),
    HostileCase("backing-file-prefix", naming(b"file:/etc/passwd")),
    HostileCase("backing-file-url", naming(b"file:///etc/passwd")),
    HostileCase("backing-format-unknown", naming(b"base.qcow2", b"nosuch")),
    HostileCase("backing-itself", itself, expect="opens", askable=False, allowed=frozenset({"image.qcow2"})),
    HostileCase("backing-two-cycle", two_cycle, expect="opens", askable=False, allowed=frozenset({"other.qcow2"})),
    HostileCase(
        "backing-cycle-through-symlink",
        cycle_through_symlink,
        expect="opens",
        askable=False,
        allowed=frozenset({"alias.qcow2"}),
    ),
    *map(chain_case, (63, 64, 65, 500)),
    HostileCase("backing-damaged", base_is_damaged, expect="opens", allowed=OTHER),
    HostileCase("backing-missing", base_is_missing, expect="opens", allowed=OTHER),
    HostileCase("backing-is-text", base_is_text, expect="opens", allowed=OTHER),
]


def data_name(name: bytes) -> Edit:
    return extension_area(extension(EXT_DATA_FILE, name))


def data_file_case(
    name: str,
    *edits: Edit,
    seed: str = "datafile",
    missing: bool = False,
    allowed: frozenset[str] = frozenset({"datafile.data"}),
) -> HostileCase:
    def make(folder: Path) -> Path:
        if not missing:
            unpack_seed("datafile.data", folder)
        return patched(seed, *edits)(folder)

    return HostileCase(name, make, allowed=allowed)


def data_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return patched("datafile", data_name(b"pipe"))(folder)


def data_short(folder: Path) -> Path:
    (folder / "datafile.data").write_bytes(bytes(1000))
    return patched("datafile")(folder)


DATA_FILES = [
    data_file_case("data-file-missing", missing=True),
    data_file_case("data-file-name-empty", data_name(b"")),
    data_file_case("data-file-name-absent", extension_area()),
    data_file_case("data-file-absolute", data_name(b"/etc/passwd"), allowed=frozenset()),
    data_file_case("data-file-parent", data_name(b"../../etc/passwd"), allowed=frozenset()),
    data_file_case("data-file-json", data_name(b'json:{"driver":"null-co"}'), allowed=frozenset()),
    data_file_case("data-file-escapes", data_name(ESCAPES), allowed=frozenset()),
    data_file_case("data-file-is-the-image", data_name(b"image.qcow2"), allowed=frozenset({"image.qcow2"})),
    data_file_case("data-file-with-backing", backing_name(b"datafile.data", b"raw"), set_bits("autoclear", 2)),
    HostileCase("data-file-fifo", data_fifo, askable=False),
    HostileCase("data-file-short", data_short, allowed=frozenset({"datafile.data"})),
]

CASES: list[HostileCase] = [*EXTENSIONS, *BACKING, *DATA_FILES]
