"""What lies behind an image: bytes that are not zeros, wherever they are, and nothing else."""

from __future__ import annotations

from pathlib import Path

from qcow2c.errors import Span
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.sources import Memory
from qcow2c.storage.trailing_data import trailing_data

MIB = 1 << 20


def test_zeros_and_nothing_are_nothing() -> None:
    assert trailing_data(Memory(b"image"), 5) is None
    assert trailing_data(Memory(b"image"), 512) is None
    assert trailing_data(Memory(b"image" + bytes(3 * MIB)), 5) is None


def test_the_last_byte_counts() -> None:
    data = b"image" + bytes(3 * MIB) + b"x"
    assert trailing_data(Memory(data), 5) == Span(5, 3 * MIB + 1)
    assert trailing_data(Memory(data), len(data)) is None


def test_holes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    store = LocalFile(path)
    assert trailing_data(store, 512) is None
    store.close()
