"""What the bitmaps of an image say, read word by word: nothing that the package reads bitmaps with is asked."""

from __future__ import annotations

import struct
from typing import Any

from qcow2c.format.header import Header
from qcow2c.format.records import read_bitmaps
from qcow2c.storage.sources import Memory


def bitmap_bits(image: bytes) -> list[tuple[Any, ...]]:
    """Return name, flags, granularity and bits of each bitmap, whole clusters of them."""
    store = Memory(image)
    header = Header.load(store)
    found = []
    for record in read_bitmaps(store, header).records:
        words = struct.unpack_from(f">{record.bitmap_table_size}Q", image, record.bitmap_table_offset)
        parts = [
            image[word & ~0x1FF : (word & ~0x1FF) + header.cluster_size]
            if word & ~0x1FF
            else bytes([255 * (word & 1)]) * header.cluster_size
            for word in words
        ]
        found.append((record.name, record.flags, record.granularity_bits, b"".join(parts)))
    return found
