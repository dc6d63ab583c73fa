"""An image of two states whose difference is known, and the stream of a difference."""

from __future__ import annotations

import random
from typing import Any

from qcow2c.disk.differences import Difference
from qcow2c.ops.diff import open_states, write_stream
from qcow2c.storage.sources import Memory
from tests.building import Builder, deflate

SIZE = 4096


def noise(seed: int, length: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(length)


def two_states() -> bytes:
    """An image of 64 clusters whose active state differs from its snapshot in clusters 2 (data) and 3 (zeros)."""
    builder = Builder(64 * SIZE)
    for guest in range(8):
        builder.data(guest, noise(guest))
    for guest in range(8, 12):
        builder.compressed(guest, deflate(noise(guest, 500).ljust(SIZE, b"x")))
    builder.snapshot(b"one", id_str=b"7")
    builder.data(2, noise(2, 512) + noise(22, SIZE - 512))
    builder.entry(3, 1)
    return builder.build()


CHANGED = [Difference(2 * SIZE + 512, SIZE - 512, zero=False), Difference(3 * SIZE, SIZE, zero=True)]


class Counting(Memory):
    """Memory that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.read = 0

    def pread(self, length: int, offset: int) -> bytes:
        self.read += length
        return super().pread(length, offset)


def stream_of(first: Any, second: Any = None, **how: Any) -> bytes:
    parts: list[bytes] = []
    with open_states(first, second, **how) as (before, after):
        write_stream(before, after, lambda data: parts.append(bytes(data)))
    return b"".join(parts)
