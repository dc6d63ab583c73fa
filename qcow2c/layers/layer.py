"""What a layer of a chain answers, whatever its format, and the raw file as a layer. Reads; walks no tables.

The layers of qcow2 images are `reader.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.errors import Span, StoreError
from qcow2c.format.tables import Kind
from qcow2c.light import TYPE_CHECKING, NamedTuple, Protocol
from qcow2c.storage.sources import Store
from qcow2c.storage.zeros import fill_zeros

if TYPE_CHECKING:
    from qcow2c.format.header import Header


_DATA, _HOLE = Kind.DATA, Kind.ZERO_ALLOCATED


class Run(NamedTuple):
    """Guest bytes of one kind that lie together: `host_offset` belongs to the first byte.

    It is the offset in the data store for the kinds with a host cluster, the L2 entry for COMPRESSED, else 0.
    """

    kind: Kind
    guest_offset: int
    length: int
    host_offset: int


class Extent(NamedTuple):
    """Bytes of the disk of one kind: `offset` in the file of the layer at `depth` (0: the top), None without one."""

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    offset: int | None
    compressed: bool = False


class Layer(Protocol):
    """One image of a chain: what it holds itself, and what lies below it."""

    image_format: str
    """qcow2 or raw."""
    store: Store
    """The file of the image."""
    data_store: Store
    """The file that holds its guest data: the same one, or the external data file."""
    backing: Layer | None
    """What shows where this layer says nothing, None where nothing lies below."""
    disk_size: int
    """Length in bytes; what lies beyond reads as zeros."""

    @property
    def header(self) -> Header | None:
        """The header of a qcow2 image, None for another format."""
        ...

    @property
    def encrypted(self) -> bool:
        """Whether its data in the file is encrypted."""
        ...

    @property
    def needs_key(self) -> bool:
        """Whether it is encrypted, and no key was given: its data cannot be read."""
        ...

    def read_into(self, buffer: memoryview, guest_offset: int) -> None:
        """Fill `buffer` from `guest_offset`, with zeros beyond the end.

        Raises MissingKey, CorruptMetadata, CorruptData, StoreError.
        """
        ...

    def runs(self, guest_offset: int, length: int) -> Iterator[Run]:
        """Yield what this layer alone says of `length` bytes, in order and without gaps.

        Raises CorruptMetadata, StoreError.
        """
        ...

    def run_at(self, guest_offset: int, length: int) -> Run:
        """Return the first of the `runs` of a range, which is not empty. Raises as they do."""
        ...

    def require_whole(self) -> None:
        """Raise StoreError where the file of its data was cut off since it was opened: what it lacks is no hole."""
        ...

    def table_entries(self, start: int, end: int) -> int:
        """Return how many entries of tables describe a range, subclusters counted; 0 where there are no tables."""
        ...


class RawLayer:
    """A raw file as a layer: its bytes, and zeros beyond them."""

    image_format = "raw"
    header = None
    needs_key = False
    backing: Layer | None = None

    def __init__(self, store: Store, *, encrypted: bool = False) -> None:
        """`encrypted`: the store decrypts a file, whose bytes are no use."""
        self.encrypted = encrypted
        self.store = self.data_store = store
        self.disk_size = store.size()

    def read_into(self, buffer: memoryview, guest_offset: int) -> None:
        """Fill `buffer` from the file. Raises StoreError, also where the file has become shorter than it was."""
        done = self.store.readinto_at(buffer, guest_offset)
        if done < len(buffer):
            self._require_whole(guest_offset, guest_offset + len(buffer))
            fill_zeros(buffer[done:])

    def require_whole(self) -> None:
        self._require_whole(0, self.disk_size)

    def _require_whole(self, start: int, end: int) -> None:
        """Raise StoreError if bytes of a range were cut off since the file was opened."""
        now, expected = self.store.size(), min(end, self.disk_size)
        if max(now, start) < expected:
            message = (
                f"{self.store.name!r} was cut off since it was opened: it had {self.disk_size} bytes, and has {now}"
            )
            raise StoreError(message, where=Span(now, expected - now), filename=self.store.path)

    def runs(self, guest_offset: int, length: int) -> Iterator[Run]:
        """Yield the data and the holes of the file, each in its place. Raises StoreError."""
        self._require_whole(guest_offset, guest_offset + length)
        return file_runs(self.store, guest_offset, length)

    def run_at(self, guest_offset: int, length: int) -> Run:
        """Return the first of the `runs` of a range, which is not empty. Raises StoreError."""
        self._require_whole(guest_offset, guest_offset + length)
        return next(file_runs(self.store, guest_offset, length))

    def table_entries(self, _start: int, _end: int) -> int:
        return 0


def file_runs(store: Store, offset: int, length: int) -> Iterator[Run]:
    """Yield the data and the holes of a file, which are ZERO_ALLOCATED; what is past its end is a hole."""
    end, size = offset + length, store.size()
    for (at, count), is_data in store.extents(offset, min(end, size)):
        yield Run(_DATA if is_data else _HOLE, at, count, at)
    beyond = max(offset, size)
    if end > beyond:
        yield Run(_HOLE, beyond, end - beyond, beyond)
