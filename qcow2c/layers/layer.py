"""What a qcow2 layer can lie on: the protocol of a layer, and the raw file. Reads; knows no format."""

from __future__ import annotations

from typing import Protocol

from qcow2c.storage.sources import Store
from qcow2c.storage.zeros import fill_zeros


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
