"""Data appended to a file that is being made, collected into large writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from qcow2c.storage.store import Store

WRITE_BYTES = 4 << 20
"""Bytes of one write, which begins at a multiple of them."""

Done = Callable[[], None]


class Appender:
    """Adjacent buffers on their way to a store: gathered, and written in large aligned pieces."""

    def __init__(self, store: Store, position: int) -> None:
        self._store = store
        self._position = position
        self._parts: deque[tuple[memoryview, Done | None]] = deque()
        self._length = 0

    def append(self, data: memoryview, done: Done | None = None) -> None:
        """Add bytes, which must not change before `done` is called. Raises StoreError."""
        self._parts.append((data, done))
        self._length += len(data)
        while self._length >= WRITE_BYTES - self._position % WRITE_BYTES:
            self._write(WRITE_BYTES - self._position % WRITE_BYTES)

    def flush(self) -> None:
        """Write what is left. Raises StoreError."""
        self._write(self._length)

    def _write(self, length: int) -> None:
        views: list[memoryview] = []
        finished: list[Done] = []
        left = length
        while left or (self._parts and not len(self._parts[0][0])):
            data, done = self._parts.popleft()
            if len(data) > left:
                self._parts.appendleft((data[left:], done))
                data, done = data[:left], None
            views.append(data)
            left -= len(data)
            if done is not None:
                finished.append(done)
        if length == WRITE_BYTES:
            self._store.reserve(self._position, length)
        if length:
            self._store.pwritev(views, self._position)
        self._position += length
        self._length -= length
        for done in finished:
            done()
