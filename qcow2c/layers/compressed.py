"""Compressed clusters in bulk: many that lie close together are read at once, and decompressed one after the other.

It is what `Reader.read_into` does cluster by cluster, which has the last word on whatever is unusual.
"""

from __future__ import annotations

from qcow2c.format.codecs import DecompressionError
from qcow2c.format.tables import L2_COMPRESSED, CompressedExtent, Kind, compressed_extent
from qcow2c.layers.layer import Layer
from qcow2c.layers.reader import Reader

_MOST_BYTES = 8 << 20
_SLACK_BYTES = 256 << 10
"""Bytes that are read at once, at most, and those among them that were not asked for."""


def read_compressed(layer: Layer, buffer: memoryview, guest_offset: int) -> None:
    """Fill a buffer as `Layer.read_into`, which raises the same, but from compressed clusters in bulk."""
    if not isinstance(layer, Reader) or layer.needs_key or layer.salvage is not None:
        layer.read_into(buffer, guest_offset)
        return
    size = layer.geometry.cluster_size
    done = 0
    while done < len(buffer):
        at = guest_offset + done
        found = _close_together(layer, at, (len(buffer) - done) // size) if not at % size else []
        if len(found) > 1:
            stop = done + len(found) * size
            _read_together(layer, buffer[done:stop], at, found)
        else:
            stop = min(len(buffer), done + max(size - at % size, _plain(layer, at, len(buffer) - done)))
            layer.read_into(buffer[done:stop], at)
        done = stop


def _plain(reader: Reader, guest_offset: int, length: int) -> int:
    """Return how many of some bytes are consecutive and not compressed: those are read, and decrypted, at once."""
    run = reader.run_at(guest_offset, length)
    return 0 if run.kind is Kind.COMPRESSED else run.length


def _close_together(reader: Reader, guest_offset: int, most: int) -> list[CompressedExtent]:
    """Return where the data of the next clusters lies, as far as it is worth to be read at once, in any order."""
    geometry = reader.geometry
    found: list[CompressedExtent] = []
    low = high = total = 0
    for at in range(guest_offset, guest_offset + (most << geometry.cluster_bits), geometry.cluster_size):
        entry = reader.entry(at)
        if not entry & L2_COMPRESSED:
            break
        where = compressed_extent(entry, geometry)
        low = min(low, where.host_offset) if found else where.host_offset
        high = max(high, where.host_offset + where.length)
        total += where.length
        if high - low > min(_MOST_BYTES, 2 * total + _SLACK_BYTES):
            break
        found.append(where)
    return found


def _read_together(reader: Reader, buffer: memoryview, guest_offset: int, extents: list[CompressedExtent]) -> None:
    size = reader.geometry.cluster_size
    low = min(where.host_offset for where in extents)
    high = max(where.host_offset + where.length for where in extents)
    data = memoryview(reader.store.pread(high - low, low))
    for start, where in zip(range(0, len(buffer), size), extents, strict=True):
        part, inside = buffer[start : start + size], where.host_offset - low
        try:
            part[:] = reader.decompressed.decompress(data[inside : inside + where.length], size)
        except DecompressionError:
            reader.read_into(part, guest_offset + start)  # Which says what is wrong, or salvages.
