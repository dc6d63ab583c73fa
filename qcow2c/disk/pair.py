"""Where the bytes of two disks are, so that the same bytes of the same file are known; and reading them in bulk.

It decides nothing: what is to be read, and in which pieces, is a matter of the operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qcow2c.disk.disk import Disk
from qcow2c.disk.map_layers import OFFSET, ZERO, Segment
from qcow2c.layers.chain import layers_of
from qcow2c.light import NamedTuple
from qcow2c.storage.sources import Store

Place = tuple[int, int]
"""Number of a store and offset in it; or one of the numbers below."""

NOTHING, BY_LAYER = -1, -2
"""Reads as zeros (offset 0); must be read through the layers, by its guest offset."""


class PiecePair(NamedTuple):
    """Bytes that must be compared, and where they are in each disk."""

    start: int
    length: int
    places: tuple[Place, Place]

    @property
    def holds(self) -> tuple[bool, bool]:
        """Whether each disk may hold other bytes than zeros."""
        return self.places[0][0] != NOTHING, self.places[1][0] != NOTHING


class Side:
    """One of the two disks: the places of its bytes, and how they are read."""

    def __init__(self, number: int, disk: Disk, stores: list[Store]) -> None:
        """Add the disk's stores to those of both, unless they are there."""
        self.disk = disk
        self._number = number
        self._stores = stores
        self._keys = [self._key(layer.data_store) for layer in layers_of(disk.layer)]
        """The number of the store of each depth."""

    def _key(self, store: Store) -> int:
        identity = store.identity()
        for key, known in enumerate(self._stores):
            if known.identity() == identity:
                return key
        self._stores.append(store)
        return len(self._stores) - 1

    def place(self, run: Segment, at: int) -> Place:
        """Return the place of a byte, given the run that it lies in."""
        start, _, depth, flags, offset = run
        if flags & ZERO:
            return NOTHING, 0
        return (self._keys[depth], offset + at - start) if flags & OFFSET else (BY_LAYER, at)

    def read(self, pieces: Sequence[PiecePair], buffer: memoryview) -> None:
        """Fill a buffer with pieces, consecutively; it stays as it is where one is zeros.

        Raises as `Disk.read_into`.
        """
        for begin, length, key, offset in self._reads(pieces):
            view = buffer[begin : begin + length]
            if key == BY_LAYER:
                self.disk.read_into(view, offset)
            elif self._stores[key].readinto_at(view, offset) < length:
                break
        else:
            return
        # The file is cut short: the layers know what that means.
        begin = 0
        for piece in pieces:
            if piece.holds[self._number]:
                self.disk.read_into(buffer[begin : begin + piece.length], piece.start)
            begin += piece.length

    def _reads(self, pieces: Sequence[PiecePair]) -> Iterator[tuple[int, int, int, int]]:
        """Yield where in a buffer, how many bytes, and from which place: pieces that go on are read at once."""
        begin = end = offset = 0
        key = NOTHING
        for piece in pieces:
            found = piece.places[self._number]
            if found != (key, offset + end - begin):
                if key != NOTHING:
                    yield begin, end - begin, key, offset
                begin, (key, offset) = end, found
            end += piece.length
        if key != NOTHING:
            yield begin, end - begin, key, offset


def pairs(
    first: Iterator[Segment], second: Iterator[Segment], start: int
) -> Iterator[tuple[int, int, Segment, Segment]]:
    """Yield start and end of what is one run in both disks, and these runs, of runs without gaps from a byte on."""
    one, other = next(first, None), next(second, None)
    at = start
    while one is not None and other is not None:
        ends = one[0] + one[1], other[0] + other[1]
        stop = min(ends)
        yield at, stop, one, other
        at = stop
        if ends[0] == stop:
            one = next(first, None)
        if ends[1] == stop:
            other = next(second, None)
