"""A raw layer: its bytes, and zeros beyond its end."""

from __future__ import annotations

from qcow2c.layers.layer import RawLayer
from qcow2c.storage.sources import Memory


def test_a_raw_layer_has_zeros_beyond_its_end() -> None:
    layer = RawLayer(Memory(b"abc"))
    buffer = bytearray(b"?" * 5)
    layer.read_into(memoryview(buffer), 1)
    assert bytes(buffer) == b"bc\0\0\0"
    assert layer.disk_size == 3
