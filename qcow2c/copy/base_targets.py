"""The layer into which a commit copies, raw or qcow2: it is in use, so that zeros must replace what is there.

What is data above becomes data, what is zeros above becomes zeros and gives its space back. Guest offsets are bytes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qcow2c.constants import SECTOR_SIZE
from qcow2c.copy.plan import Slab
from qcow2c.copy.targets import Target
from qcow2c.disk.opening import open_image
from qcow2c.image import Image
from qcow2c.storage.gate import Gate
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key


class BaseTarget(Target):
    """A layer that is open for writing. A crash leaves it with some of what it has taken; `finish` makes it durable."""

    def __init__(self) -> None:
        super().__init__(unit=0)

    @abstractmethod
    def stores(self) -> tuple[Store, ...]:
        """Return the files that are written."""

    @abstractmethod
    def grow(self, size: int) -> bool:
        """Let the disk have `size` bytes, with zeros behind its end, if it has fewer; return whether that was so.

        Durable at once. Raises UsageError, LimitExceeded, StoreError.
        """

    @abstractmethod
    def _write(self, data: memoryview, offset: int) -> None: ...

    def _place(self, slab: Slab, buffer: memoryview) -> None:
        """Write all that a slab has, in few pieces."""
        for start, end in _asked(slab):
            self._write(buffer[start - slab.start : end - slab.start], start)
        for start, end in slab.zeros:
            self.zero(start, end)


class RawBase(BaseTarget):
    """A raw file, written by whichever thread has read."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def stores(self) -> tuple[Store, ...]:
        return (self._store,)

    def grow(self, size: int) -> bool:
        if -(-self._store.size() // SECTOR_SIZE) * SECTOR_SIZE >= size:
            return False
        self._store.truncate(size)
        return True

    def prepare(self, slab: Slab, buffer: memoryview) -> None:
        self._place(slab, buffer)

    def take(self, _slab: Slab, _buffer: memoryview, _prepared: Any) -> None:
        """It is written."""

    def _write(self, data: memoryview, offset: int) -> None:
        self._store.pwrite(data, offset)

    def zero(self, start: int, end: int) -> None:
        # What is a hole then reads as zeros; what is not may read as anything, and is written.
        store, end = self._store, min(end, self._store.size())
        if start < end:
            store.punch(start, end - start)
            for span, is_data in store.extents(start, end):
                if is_data:
                    store.write_zeroes(span.offset, span.length)

    def finish(self, _size: int) -> None:
        self._store.flush()


class ImageBase(BaseTarget):
    """A qcow2 image, whose enabled bitmaps record what is written."""

    def __init__(self, image: Image) -> None:
        super().__init__()
        self._image = image

    def stores(self) -> tuple[Store, ...]:
        return self._image.layer.store, self._image.layer.data_store

    def grow(self, size: int) -> bool:
        from qcow2c.disk.size import grow

        return grow(self._image, size)

    def prepare(self, slab: Slab, buffer: memoryview) -> None:
        """An image takes one write at a time."""

    def take(self, slab: Slab, buffer: memoryview, _prepared: Any) -> None:
        self._place(slab, buffer)

    def _write(self, data: memoryview, offset: int) -> None:
        self._image.pwrite(data, offset)

    def zero(self, start: int, end: int) -> None:
        self._image.write_zeroes(start, end - start, unmap=True)

    def finish(self, _size: int) -> None:
        self._image.flush()


@contextmanager
def open_base(
    source: Source | Store, image_format: str, gate: str | Gate, key: Key | KeyRing = None
) -> Iterator[BaseTarget]:
    """Open a layer for writing, and exclude all others. Raises as `open_image`, ImageLocked."""
    if image_format != "raw":
        with open_image(source, "r+", key=key, gate=gate) as image:
            yield ImageBase(image)
        return
    with opened(source, Use.WRITABLE_IMAGE) as store:
        yield RawBase(store)


def _asked(slab: Slab) -> Iterator[tuple[int, int]]:
    """Yield the ranges, as (start, end), of consecutive pieces."""
    start = end = -1
    for piece in slab.pieces:
        if piece.start != end:
            if start < end:
                yield start, end
            start = piece.start
        end = piece.start + piece.length
    if start < end:
        yield start, end
