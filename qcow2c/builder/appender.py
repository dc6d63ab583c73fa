"""Data appended to a file that is being made: what is small is collected, and written together."""

from __future__ import annotations

from qcow2c.storage.store import Store

WRITE_BYTES = 512 << 10
"""Bytes that are written at once, as soon as so many have come together."""


class Appender:
    """Adjacent buffers on their way to a store, gathered into writes."""

    def __init__(self, store: Store, position: int) -> None:
        self._store = store
        self._position = position
        self._parts: list[memoryview] = []
        self._length = 0

    def append(self, data: memoryview) -> None:
        """Add bytes, which must not change before the next `flush`. Raises StoreError."""
        self._parts.append(data)
        self._length += len(data)
        if self._length >= WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is left. Raises StoreError."""
        if self._length:
            self._store.pwritev(self._parts, self._position)
        self._position += self._length
        self._length = 0
        self._parts.clear()
