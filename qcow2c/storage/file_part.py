"""`FilePart`: a part of a file as a store of its own, which is read and never written."""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.errors import Span, UsageError
from qcow2c.storage.locks import Use
from qcow2c.storage.store import Store

_SECTOR_SIZE = 512


class FilePart(Store):
    """Bytes of another store from an offset on: so many, or all. The other store stays open; it is not closed here."""

    def __init__(self, whole: Store, offset: int, size: int | None = None, *, name: str | None = None) -> None:
        """Raises UsageError, in QEMU's words, for a part that does not lie in the store."""
        length = whole.size()
        shown = -(-length // _SECTOR_SIZE) * _SECTOR_SIZE
        if size is not None and size % _SECTOR_SIZE:
            raise UsageError(f"Specified size is not multiple of {_SECTOR_SIZE}")
        if offset > shown:
            raise UsageError(f"Offset ({offset}) cannot be greater than size of the containing file ({shown})")
        if size is not None and offset + size > shown:
            message = f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the "
            raise UsageError(f"{message} actual size of the containing file ({shown})")
        self._whole, self._offset, self._size = whole, offset, size
        self.start = whole.start + offset
        self.name = whole.name if name is None else name
        self.path = whole.path

    @property
    def file_name(self) -> str:
        return self._whole.file_name

    def size(self) -> int:
        there = max(0, self._whole.size() - self._offset)
        return there if self._size is None else min(there, self._size)

    def pread(self, length: int, offset: int) -> bytes:
        return self._whole.pread(self._inside(length, offset), self._offset + offset)

    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        return self._whole.readinto_at(buffer[: self._inside(len(buffer), offset)], self._offset + offset)

    def _inside(self, length: int, offset: int) -> int:
        """Return how many of so many bytes at an offset belong to the part, or to nothing."""
        return length if self._size is None else max(0, min(length, self._size - offset))

    def allocated_size(self) -> int | None:
        return self._whole.allocated_size()

    def extents(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        for span, is_data in self._whole.extents(self._offset + start, self._offset + end):
            yield Span(span.offset - self._offset, span.length), is_data

    def identity(self) -> object:
        return self._whole.identity(), self._offset, self._size

    def lock(self, use: Use) -> None:
        self._whole.lock(use)
