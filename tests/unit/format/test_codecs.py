"""Decompression to exactly one cluster, whatever surrounds or ends the data."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
import zlib

import pytest
import zstandard

from qcow2c.errors import UnsupportedFeature
from qcow2c.format.codecs import DecompressionError, decompress_zstd, decompressor, inflate

SIZE = 65536
TEXT = (b"some text that repeats, " * 3000)[:SIZE]


def deflated(data: bytes, window: int = -12, level: int = 6) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, window)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("window", [-9, -12, -15])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_deflate_of_every_window_and_level_inflates(window: int, level: int) -> None:
    far = random.Random(1).randbytes(20000)
    data = (far + far + far + far)[:SIZE]
    assert inflate(deflated(data, window, level), SIZE) == data


def test_what_follows_the_cluster_is_not_looked_at() -> None:
    packed = deflated(TEXT)
    assert inflate(packed + os.urandom(400), SIZE) == TEXT
    assert inflate(packed + bytes(511), SIZE) == TEXT
    assert inflate(deflated(TEXT + b"more than a cluster"), SIZE) == TEXT


@pytest.mark.parametrize("packed", [b"", b"\xff" * 50, deflated(TEXT)[:-20], deflated(TEXT[:-1])])
def test_deflate_data_that_makes_no_whole_cluster_is_an_error(packed: bytes) -> None:
    with pytest.raises(DecompressionError):
        inflate(packed, SIZE)


def test_a_bomb_costs_no_more_than_a_cluster() -> None:
    bomb = deflated(bytes(64 << 20))
    tracemalloc.start()
    assert inflate(bomb, SIZE) == bytes(SIZE)
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_zstd_frames_of_every_shape_decompress() -> None:
    known = zstandard.ZstdCompressor().compress(TEXT)
    unknown = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(TEXT)
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    halves = zstandard.compress(TEXT[:1000]) + zstandard.compress(TEXT[1000:])
    for packed in (known, known + bytes(300), unknown, skippable + known, halves):
        assert decompress_zstd(packed, SIZE) == TEXT


def frame(declared: int) -> bytes:
    """A frame header with an 8-byte content size and nothing behind it."""
    return struct.pack("<IB", 0xFD2FB528, 0xE0) + struct.pack("<Q", declared)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"garbage garbage garbage",
        zstandard.compress(TEXT)[:-9],
        zstandard.compress(TEXT[:-1]),
        frame(1 << 60),
        frame(SIZE),
        struct.pack("<IBB", 0xFD2FB528, 0x00, 0xFF) + bytes(40),
        zstandard.compress(b"") * 40,
    ],
)
def test_zstd_data_that_makes_no_whole_cluster_is_an_error(packed: bytes) -> None:
    with pytest.raises(DecompressionError):
        decompress_zstd(packed, SIZE)


def test_methods_are_found_by_their_number() -> None:
    assert decompressor(0) is inflate
    assert decompressor(1) is decompress_zstd
    with pytest.raises(UnsupportedFeature, match="compression type 2"):
        decompressor(2)
