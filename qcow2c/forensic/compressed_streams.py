"""What the compressed clusters of an image decompress to: more or less than a cluster is read differently by programs.

One cluster at a time, never more than a byte beyond it.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from qcow2c.constants import CompressionType
from qcow2c.errors import Span
from qcow2c.format import codecs, tables
from qcow2c.references.walk import Walk

_TICKS = 64
"""Clusters between two calls of what may stop the work."""


def wrong_streams(walk: Walk, tick: Callable[[], object]) -> Iterator[tuple[Span, str]]:
    """Yield where compressed data does not make one whole cluster, and why; `tick` may raise. Raises StoreError."""
    geometry, method = walk.geometry, walk.header.compression_type
    decompress = codecs.decompressor(method)
    found = walk.stored_tables()
    for start, end in walk.batches(found):
        tick()
        entries = walk.batch(found, start, end).entries.reshape(-1)
        entries = np.unique(entries[(entries & np.uint64(tables.L2_COMPRESSED)) != 0])
        offsets, lengths = tables.compressed_extents(entries, geometry)
        for number, (offset, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
            if number % _TICKS == 0:
                tick()
            data = walk.store.pread(length, offset)
            try:
                decompress(data, geometry.cluster_size)
            except codecs.DecompressionError as exc:
                yield Span(offset, length), f"the compressed cluster cannot be read: {exc}"
                continue
            if _goes_on(method, data, geometry.cluster_size):
                yield Span(offset, length), f"compressed data of more than a cluster, {geometry.cluster_size} bytes"


def _goes_on(method: int, data: bytes, cluster_size: int) -> bool:
    """Return whether a stream that begins with a whole cluster has more than that."""
    if method == CompressionType.ZLIB:
        try:
            return len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, cluster_size + 1)) > cluster_size
        except zlib.error:
            return False
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=False) as reader:
            return len(reader.read(cluster_size + 1)) > cluster_size
    except zstandard.ZstdError:
        return False
