"""What a qcow2 layer can lie on: the protocol of a layer, and the raw file. Reads; knows no format."""

from __future__ import annotations

from typing import Protocol

from qcow2c.storage import Store

_ZEROS = bytes(1 << 20)


class Layer(Protocol):
    """Anything that a qcow2 layer can lie on."""

    disk_size: int
    """Length in bytes; what lies beyond reads as zeros."""

    def read_into(self, buffer: memoryview, guest_offset: int) -> None:
        """Fill `buffer` from `guest_offset`, with zeros beyond the end."""
        ...


class RawLayer:
    """A raw file as a layer: its bytes, and zeros beyond them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.disk_size = store.size()

    def read_into(self, buffer: memoryview, guest_offset: int) -> None:
        """Fill `buffer` from the file. Raises StoreError."""
        fill_zeros(buffer[self.store.readinto_at(buffer, guest_offset) :])


def zeros(length: int) -> memoryview:
    """Return `length` zero bytes; short lengths share one buffer."""
    return memoryview(_ZEROS)[:length] if length <= len(_ZEROS) else memoryview(bytes(length))


def fill_zeros(buffer: memoryview) -> None:
    """Zero a buffer of any length without making another of that length."""
    for start in range(0, len(buffer), len(_ZEROS)):
        part = buffer[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
