"""Compressed clusters: descriptors that leave the file; streams cut, garbage, or that never end."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from .case import HostileCase, opens
from .make_seeds import text
from .patch import COMPRESSED, COPIED, cut, l2, with_bits
from .scratch import Scratch

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_BIT = 8


def deflate(content: bytes, window: int = -12) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    return packer.compress(content) + packer.flush()


def zeros_bomb(gigabytes: int) -> bytes:
    """Return a raw deflate stream of zeros: 16 MiB, repeated (a full flush makes it independent)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    segment = packer.compress(bytes(16 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return segment * (gigabytes * 64) + deflate(b"")


def raw_block(content: bytes, *, last: bool) -> bytes:
    return struct.pack("<I", len(content) << 3 | last)[:3] + content


def rle_block(byte: bytes, count: int, *, last: bool) -> bytes:
    return struct.pack("<I", count << 3 | 1 << 1 | last)[:3] + byte


def frame(*blocks: bytes, declared: int | None = None, window: int = 0) -> bytes:
    """Return a zstd frame by hand: with a window descriptor, or with a content size that is the window too."""
    head = b"\x00" + bytes([window]) if declared is None else b"\xe0" + struct.pack("<Q", declared)
    return ZSTD_MAGIC + head + b"".join(blocks)


def skippable(content: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A50, len(content)) + content


CONTENT = text(4096, 99)
EMPTY_FRAME = frame(raw_block(b"", last=True), declared=0)
GOOD_FRAME = frame(raw_block(CONTENT, last=True), declared=4096)


def stream(name: str, data: bytes, *, zstd: bool = False, cluster_bits: int = 12, pad: int = 0) -> HostileCase:
    """One image whose guest cluster 1 is this stream; guest clusters 0 and 2 are plain."""

    def make(folder: Path) -> Path:
        image = Scratch(
            size=16 << cluster_bits,
            cluster_bits=cluster_bits,
            incompatible=ZSTD_BIT if zstd else 0,
            compression_type=int(zstd),
        )
        image.add_plain(0, b"first")
        image.add_compressed(1, data, pad=pad)
        image.add_plain(2, b"third")
        return image.write(folder)

    return HostileCase(name, make, expect="opens")


DEFLATE_STREAMS = [
    stream("deflate-good-at-odd-byte", deflate(CONTENT), pad=4095 - 512),
    stream("deflate-cut-in-the-middle", deflate(CONTENT)[:500]),
    stream("deflate-cut-by-one-byte", deflate(CONTENT)[:-1]),
    stream("deflate-garbage", b"\xff" * 300),
    stream("deflate-random", random.Random(1).randbytes(700)),
    stream("deflate-too-short", deflate(CONTENT[:4095])),
    stream("deflate-too-long", deflate(CONTENT + b"more")),
    stream("deflate-empty", deflate(b"")),
    stream("deflate-with-zlib-header", deflate(CONTENT, 15)),
    stream("deflate-two-streams", deflate(CONTENT[:2048]) + deflate(CONTENT[2048:])),
    stream("deflate-far-distance", deflate(text(20000, 5) + text(20000, 5) + bytes(25536), -15), cluster_bits=16),
    stream("deflate-bomb-1-gib", zeros_bomb(1), cluster_bits=21),
    stream("deflate-endless-empty-blocks", b"\x00\x00\x00\xff\xff" * 20000, cluster_bits=16),
]

ZSTD_STREAMS = [
    stream("zstd-good", GOOD_FRAME, zstd=True),
    stream("zstd-cut", GOOD_FRAME[:2000], zstd=True),
    stream("zstd-garbage", b"\xff" * 300, zstd=True),
    stream("zstd-content-size-2^62", frame(raw_block(CONTENT, last=True), declared=2**62), zstd=True),
    stream("zstd-content-size-too-small", frame(raw_block(CONTENT, last=True), declared=10), zstd=True),
    stream(
        "zstd-content-size-1-gib",
        frame(*[rle_block(b"z", 131072, last=False)] * 500, declared=2**30),
        zstd=True,
    ),
    stream("zstd-window-largest", frame(raw_block(CONTENT, last=True), window=0xFF), zstd=True),
    stream("zstd-window-128-mib", frame(raw_block(CONTENT, last=True), window=17 << 3), zstd=True),
    stream(
        "zstd-four-frames",
        b"".join(frame(raw_block(CONTENT[at : at + 1024], last=True), declared=1024) for at in range(0, 4096, 1024)),
        zstd=True,
    ),
    stream(
        "zstd-good-then-another-frame",
        GOOD_FRAME + EMPTY_FRAME + frame(rle_block(b"z", 4096, last=True), declared=4096),
        zstd=True,
    ),
    stream("zstd-too-short", frame(raw_block(CONTENT[:4095], last=True), declared=4095), zstd=True),
    stream("zstd-too-long", frame(raw_block(CONTENT + b"more", last=True), declared=4100), zstd=True),
    stream("zstd-endless-empty-frames", EMPTY_FRAME * 300, zstd=True),
    stream("zstd-endless-empty-blocks", frame(*[raw_block(b"", last=False)] * 2000, window=0), zstd=True),
    stream("zstd-skippable-then-good", skippable(b"skip me") + GOOD_FRAME, zstd=True),
    stream("zstd-skippable-of-4-gib", struct.pack("<II", 0x184D2A50, 2**32 - 1) + GOOD_FRAME, zstd=True),
    stream(
        "zstd-bomb-8-gib",
        frame(*[rle_block(b"\0", 131072, last=False)] * 65536, window=0x50),
        zstd=True,
        cluster_bits=21,
    ),
]


def bombs_everywhere(folder: Path) -> Path:
    """A thousand guest clusters that name one bomb of 128 KiB in 64 KiB clusters."""
    image = Scratch(size=1000 << 16, cluster_bits=16)
    image.add_compressed(0, (zeros_bomb(1)[:100_000]))
    image.entries = dict.fromkeys(range(1000), image.entries[0])
    return image.write(folder)


def descriptor(change: Callable[[int], int]) -> Callable[[bytearray], None]:
    return l2(0, change)


DESCRIPTORS = [
    opens("compressed-past-eof", "zlib", descriptor(lambda old: old & ~(2**54 - 1) | 2**40), check="corrupt"),
    opens("compressed-offset-highest", "zlib", descriptor(lambda old: old | 2**58 - 1), check="corrupt"),
    opens("compressed-bits-56-and-57", "zlib", descriptor(with_bits(3 << 56)), check="corrupt"),
    opens("compressed-sectors-highest", "zlib", descriptor(with_bits(0xF << 58))),
    opens("compressed-in-the-header", "zlib", descriptor(lambda _old: COMPRESSED), check="corrupt"),
    opens("compressed-with-copied", "zlib", descriptor(with_bits(COPIED)), check="corrupt"),
    opens("compressed-crosses-eof", "zlib", cut(-700)),
    opens("compressed-last-byte-missing", "zlib", cut(-513)),
    HostileCase("compressed-1000-names-of-one-bomb", bombs_everywhere, expect="opens"),
]

CASES: list[HostileCase] = [*DEFLATE_STREAMS, *ZSTD_STREAMS, *DESCRIPTORS]
