"""Which units of a buffer hold data."""

from __future__ import annotations

import pytest

from qcow2c.copy.zero_detection import data_ranges


@pytest.mark.parametrize(
    ("words", "unit", "expected"),
    [
        ("xxxx", 8, [(0, 32)]),
        ("....", 8, []),
        ("x..x", 8, [(0, 8), (24, 32)]),
        (".x..", 8, [(8, 16)]),
        (".x..", 16, [(0, 16)]),
        (".x...", 16, [(0, 16)]),
        ("....x", 16, [(32, 40)]),
        ("..x..", 1024, [(0, 40)]),
        (".....", 1024, []),
        (".x.x.x..", 24, [(0, 48)]),
    ],
)
def test_ranges_with_data(words: str, unit: int, expected: list[tuple[int, int]]) -> None:
    """Each letter is eight bytes; only the last one of them is ever set."""
    buffer = b"".join(b"\0\0\0\0\0\0\0\1" if word == "x" else bytes(8) for word in words)
    assert data_ranges(memoryview(buffer), unit) == expected
