"""Decompressed clusters: a few are kept, and what cannot be decompressed has its places."""

from __future__ import annotations

import random
import zlib

import pytest
import zstandard

import qcow2c
from qcow2c.errors import CorruptData, Span
from qcow2c.format import derived
from tests.building import L2_COMPRESSED, Builder, deflate

COMPRESSION = derived.INCOMPATIBLE_FEATURES["compression_type"].mask


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_zstd_clusters_read() -> None:
    builder = Builder(cluster_bits=12, incompatible=COMPRESSION, compression_type=1)
    data = b"again and again " * 256
    builder.compressed(0, zstandard.compress(data), inside=3)
    with qcow2c.open(builder.build()) as image:
        assert image.pread(4096, 0) == data


def test_compressed_data_that_crosses_into_the_next_host_cluster_reads() -> None:
    builder = Builder(cluster_bits=12)
    data = pattern(5, 4096)
    packer = zlib.compressobj(0, zlib.DEFLATED, -12)
    builder.compressed(0, packer.compress(data) + packer.flush(), inside=3001)
    with qcow2c.open(builder.build()) as image:
        assert image.pread(4096, 0) == data


def test_a_decompressed_cluster_is_kept_and_the_cache_is_bounded() -> None:
    builder = Builder(64 << 21, cluster_bits=21)
    for cluster in range(4):
        builder.compressed(cluster, deflate(bytes([cluster]) * (1 << 21)))
    with qcow2c.open(builder.build()) as image:
        for cluster in (0, 1, 2, 3, 0, 3):
            assert image.pread(1, (cluster << 21) + 12345) == bytes([cluster])
        assert len(image.layer.decompressed._kept) == 2


def test_data_that_does_not_decompress_is_an_error_with_both_places() -> None:
    builder = Builder(cluster_bits=12)
    offset = builder.compressed(3, b"\xff" * 100, inside=77)
    with qcow2c.open(builder.build()) as image, pytest.raises(CorruptData, match="cannot be read") as caught:
        image.pread(1, 3 * 4096 + 9)
    assert caught.value.guest == Span(3 * 4096, 4096)
    assert caught.value.where is not None and caught.value.where.offset == offset


def test_compressed_data_past_the_end_is_an_error() -> None:
    builder = Builder(cluster_bits=12)
    builder.entry(0, L2_COMPRESSED | 4096 * 1000)
    with qcow2c.open(builder.build()) as image, pytest.raises(CorruptData, match="past the end"):
        image.pread(1, 0)
