"""Cluster compression: raw deflate and zstd. Owns decompression to exactly one cluster, and its bounds."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache

from qcow2c.constants import CompressionType
from qcow2c.errors import UnsupportedFeature, UsageError

Decompressor = Callable[[bytes | memoryview, int], bytes | bytearray]
"""Takes the sectors that hold the compressed data, and the cluster size; returns a cluster."""

_MAX_WINDOW_BITS = -15
"""Raw deflate. Writers keep to a 4 KiB window; a reader that allows the largest one reads every stream."""


class DecompressionError(ValueError):
    """The data does not decompress to a whole cluster."""


def decompressor(method: int) -> Decompressor:
    """Return the function for a compression type. Raises UnsupportedFeature."""
    if method == CompressionType.ZLIB:
        return inflate
    if method == CompressionType.ZSTD:
        return decompress_zstd
    raise UnsupportedFeature(f"unknown compression type {method}", spec="Additional fields (version 3 and higher)")


Compressor = Callable[[bytes], bytes]
"""Takes a cluster; returns its compressed data, of whatever length."""

_WINDOW_BITS = 12
"""Raw deflate with the 4 KiB window of the specification, which every reader has."""

_MEMORY_LEVEL = 9
_FAST_LEVELS = {1: 1, 2: 3}
"""Levels that ISA-L does many times as fast as any zlib, with data a tenth larger: by its own levels."""

LEVELS = {CompressionType.ZLIB: range(1, 10), CompressionType.ZSTD: range(1, 23)}
DEFAULT_LEVELS = {CompressionType.ZLIB: 6, CompressionType.ZSTD: 3}


@cache
def compressor(method: int, level: int | None = None) -> Compressor:
    """Return the function for a compression type, which threads may share, at a level or the default one.

    Raises UnsupportedFeature, UsageError.
    """
    if method not in LEVELS:
        raise UnsupportedFeature(f"unknown compression type {method}", spec="Additional fields (version 3 and higher)")
    kind = CompressionType(method)
    chosen = DEFAULT_LEVELS[kind] if level is None else level
    if chosen not in LEVELS[kind]:
        first, last, name = LEVELS[kind][0], LEVELS[kind][-1], kind.name.lower()
        raise UsageError(f"compression level {chosen} is not between {first} and {last}, as {name} has them")
    if kind is CompressionType.ZSTD:
        return _zstd_compressor(chosen)
    return _fast_deflate(_FAST_LEVELS[chosen]) if chosen in _FAST_LEVELS else _deflate(chosen)


def _deflate(level: int) -> Compressor:
    from zlib_ng import zlib_ng

    def compress(cluster: bytes) -> bytes:
        packer = zlib_ng.compressobj(level, zlib_ng.DEFLATED, -_WINDOW_BITS, _MEMORY_LEVEL)
        packed: bytes = packer.compress(cluster) + packer.flush()
        return packed

    return compress


def _fast_deflate(level: int) -> Compressor:
    from isal import igzip_lib

    def compress(cluster: bytes) -> bytes:
        packed: bytes = igzip_lib.compress(cluster, level, flag=igzip_lib.COMP_DEFLATE, hist_bits=_WINDOW_BITS)
        return packed

    return compress


def _zstd_compressor(level: int) -> Compressor:
    import zstandard

    local = threading.local()

    def compress(cluster: bytes) -> bytes:
        # A context serves one thread at a time.
        context = getattr(local, "context", None)
        if context is None:
            context = local.context = zstandard.ZstdCompressor(level=level)
        packed: bytes = context.compress(cluster)
        return packed

    return compress


def inflate(data: bytes | memoryview, cluster_size: int) -> bytes | bytearray:
    """Inflate raw deflate data to one cluster; what follows the cluster in the last sector is not looked at."""
    import deflate

    with suppress(deflate.DeflateError):
        whole: bytearray = deflate.deflate_decompress(data, cluster_size)
        if len(whole) == cluster_size:
            return whole
    # The quickest library takes nothing but whole streams of that length: another one says what is there.
    from isal import isal_zlib

    try:
        cluster = isal_zlib.decompressobj(_MAX_WINDOW_BITS).decompress(data, cluster_size)
    except isal_zlib.IsalError as exc:  # type: ignore[misc]  # The stub has an instance for the class.
        raise DecompressionError(f"bad deflate data: {exc}") from exc
    return _whole(cluster, cluster_size)


_zstd = threading.local()


def decompress_zstd(data: bytes | memoryview, cluster_size: int) -> bytes:
    """Decompress zstd frames, of which there may be several, to one cluster.

    Memory is bounded by the cluster size and zstd's own limit on the window, not by what a frame declares.
    """
    import zstandard

    context = getattr(_zstd, "context", None)
    if context is None:
        context = _zstd.context = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(data) == cluster_size:
            return _whole(context.decompress(data, cluster_size, allow_extra_data=True), cluster_size)
        with context.stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            return _whole(reader.read(cluster_size), cluster_size)
    except (zstandard.ZstdError, MemoryError) as exc:
        raise DecompressionError(f"bad zstd data: {exc}") from exc


def _whole(cluster: bytes, cluster_size: int) -> bytes:
    if len(cluster) != cluster_size:
        raise DecompressionError(f"the data ends after {len(cluster)} of {cluster_size} bytes")
    return cluster
