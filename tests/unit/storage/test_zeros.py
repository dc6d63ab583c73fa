"""Zeros, without a buffer of their length."""

from __future__ import annotations

from qcow2c.storage.zeros import fill_zeros


def test_fill_zeros_fills_more_than_one_block() -> None:
    buffer = bytearray(b"x" * (3 << 20))
    fill_zeros(memoryview(buffer)[1:-1])
    assert bytes(buffer) == b"x" + bytes((3 << 20) - 2) + b"x"
