"""The buffers that a copy reads into and writes from, which threads share."""

from __future__ import annotations

import mmap
import threading

SLAB_BYTES = 512 << 10
"""Bytes of a slab, unless clusters are larger.

It fits the processor's cache, so that what was read is written while it is there; docs/performance.md has the trials.
"""


class Buffers:
    """Buffers that are used again, the last one first: it is still in the processor's cache.

    They begin at a page, which makes copying to and from them faster.
    """

    def __init__(self, count: int, length: int = SLAB_BYTES) -> None:
        self.length = length
        """Bytes of each."""
        self._left = count
        self._free: list[memoryview] = []
        self._changed = threading.Condition()
        self._closed = False

    def take(self) -> memoryview:
        """Return a buffer; wait until there is one. Raises Closed after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._left or self._closed)
            if self._closed:
                raise Closed
            if self._free:
                return self._free.pop()
            self._left -= 1
        return memoryview(mmap.mmap(-1, self.length))

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Let some time go by, if any. Raises Closed after `close`."""
        with self._changed:
            if self._changed.wait_for(lambda: self._closed, max(0.0, seconds)):
                raise Closed

    def close(self) -> None:
        """Let no thread wait any more: the copy has failed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Closed(Exception):
    """There will be no more buffers."""
