"""`PatchedBytes`: a store as another one would be with some bytes changed, which are changed nowhere. Read-only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qcow2c.errors import Span
from qcow2c.storage.locks import Use
from qcow2c.storage.store import Store


class PatchedBytes(Store):
    """Another store, with other bytes at some offsets. That store stays open; it is not closed here."""

    def __init__(self, whole: Store, patches: Mapping[int, bytes]) -> None:
        """`patches` are bytes by their offset; what lies behind the end of the store makes it no longer."""
        self._whole, self._patches = whole, dict(patches)
        self.start = whole.start
        self.name = whole.name
        self.path = whole.path

    @property
    def file_name(self) -> str:
        return self._whole.file_name

    def size(self) -> int:
        return self._whole.size()

    def pread(self, length: int, offset: int) -> bytes:
        found = bytearray(self._whole.pread(length, offset))
        for at, data in self._patches.items():
            first, end = max(at, offset), min(at + len(data), offset + len(found))
            if first < end:
                found[first - offset : end - offset] = data[first - at : end - at]
        return bytes(found)

    def allocated_size(self) -> int | None:
        return self._whole.allocated_size()

    def extents(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        """Yield those of the other store; a hole that is patched counts as data."""
        for span, is_data in self._whole.extents(start, end):
            is_patched = any(at < span.end and span.offset < at + len(data) for at, data in self._patches.items())
            yield span, is_data or is_patched

    def identity(self) -> object:
        return self._whole.identity(), tuple(self._patches)

    def lock(self, use: Use) -> None:
        self._whole.lock(use)
