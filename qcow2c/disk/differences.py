"""What differs between two disks, as ranges of the later one; and what a range of it is, as records for a stream.

What both maps call zeros, what is one place of one file, and what is one compressed cluster of one file is known to be
the same, and never read. The rest is read and compared, unless the maps are to be enough. Read-only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np

from qcow2c.constants import SECTOR_SIZE
from qcow2c.disk.disk import Disk
from qcow2c.disk.map_layers import ZERO, Segment
from qcow2c.disk.pair import BY_LAYER, NOTHING, PiecePair, Side, pairs
from qcow2c.errors import MissingKey
from qcow2c.format.layout import WORD_BYTES
from qcow2c.format.tables import Kind
from qcow2c.layers.chain import layers_of
from qcow2c.storage.sources import Store
from qcow2c.storage.store import Progress

SLAB_BYTES = 512 << 10
"""Bytes that are read of each disk before they are compared."""

_WORDS = SECTOR_SIZE // WORD_BYTES


class Difference(NamedTuple):
    """A range in which a disk differs from an earlier one; `zero`: all of it reads as zeros in the later one."""

    start: int
    length: int
    zero: bool

    @property
    def end(self) -> int:
        return self.start + self.length


def differences(
    before: Disk, after: Disk, *, exact: bool = True, progress: Progress | None = None
) -> Iterator[Difference]:
    """Yield where `after` differs from `before`, in order, in whole sectors; neighbours are of different kinds.

    They are what must be written over a copy of the earlier disk, brought to the size of the later one, to make it the
    later one: beyond its end, the earlier one reads as zeros. If `exact`, each sector in a range differs, and all
    sectors of zeros are told as such. Without, no guest data is read: a range is what the maps do not prove to be the
    same, and data that happens to be zeros counts as data.

    Raises MissingKey at once; CorruptMetadata, CorruptData, LimitExceeded, StoreError where it finds them.
    """
    for disk in before, after:
        require_no_key(disk)
    return _merged(_Search(before, after, progress or (lambda _done, _total: None)).found(exact=exact))


def require_no_key(disk: Disk) -> None:
    """Raise MissingKey for a disk with a layer that is encrypted, and was opened without a key."""
    for layer in layers_of(disk.layer):
        if layer.needs_key:
            raise MissingKey(f"{layer.store.name!r} is encrypted, and no key was given", spec="Data encryption")


def _merged(found: Iterator[Difference]) -> Iterator[Difference]:
    """Join consecutive ranges of one kind."""
    last: Difference | None = None
    for one in found:
        if last is not None and (last.end, last.zero) == (one.start, one.zero):
            last = Difference(last.start, last.length + one.length, last.zero)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last


def _runs(disk: Disk, end: int) -> Iterator[Segment]:
    """Yield the runs of a disk up to a byte, which may be behind its end."""
    for columns in disk.map.columns(0, end):
        yield from zip(*columns, strict=True)
    if end > disk.size:
        yield disk.size, end - disk.size, 0, ZERO, 0


class _Search:
    """The search in one pair of disks."""

    def __init__(self, before: Disk, after: Disk, tell: Progress) -> None:
        stores: list[Store] = []
        self._sides = Side(0, before, stores), Side(1, after, stores)
        self._layers = list(layers_of(before.layer)), list(layers_of(after.layer))
        self._size = after.size
        self._tell = tell

    def found(self, *, exact: bool) -> Iterator[Difference]:
        self._tell(0, self._size)
        if exact:
            for slab in self._slabs():
                yield from self._compared(slab)
                self._tell(slab[-1].start + slab[-1].length, self._size)
        else:
            for piece in self._open():
                yield Difference(piece.start, piece.length, zero=not piece.holds[1])
        self._tell(self._size, self._size)

    # --- by the maps ---

    def _open(self) -> Iterator[PiecePair]:
        """Yield what the maps leave open, in whole sectors."""
        before, after = self._sides
        done = 0
        for at, stop, one, other in pairs(_runs(before.disk, self._size), _runs(after.disk, self._size), 0):
            start, end = at, stop
            first, second = before.place(one, at), after.place(other, at)
            if first == second and first[0] != BY_LAYER:
                continue
            if start % SECTOR_SIZE or end % SECTOR_SIZE:
                # A raw file may end within a sector, which is then in two runs.
                start, end = max(done, start - start % SECTOR_SIZE), end + -end % SECTOR_SIZE
                first = second = BY_LAYER, start
            ranges: Iterable[tuple[int, int]] = [(start, end)] if start < end else []
            if first == second:
                ranges = self._not_one_packed(start, end, one, other)
            for begin, limit in ranges:
                yield PiecePair(begin, limit - begin, (_further(first, begin - start), _further(second, begin - start)))
            done = end

    def _not_one_packed(self, start: int, end: int, one: Segment, other: Segment) -> Iterator[tuple[int, int]]:
        """Yield the ranges of a run, which both disks must read, without what is one compressed cluster of one file."""
        first, second = self._layers[0][one[2]], self._layers[1][other[2]]
        if first.store.identity() != second.store.identity():
            yield start, end
            return
        done = start
        while start < end:
            run, same = first.run_at(start, end - start), second.run_at(start, end - start)
            stop = start + min(run.length, same.length)
            if run.kind is Kind.COMPRESSED and run == same:
                if done < start:
                    yield done, start
                done = stop
            start = stop
        if done < end:
            yield done, end

    # --- by the data ---

    def _slabs(self) -> Iterator[list[PiecePair]]:
        """Yield what must be read, as much as is read at a time."""
        slab: list[PiecePair] = []
        room = SLAB_BYTES
        for piece in self._open():
            at = 0
            while at < piece.length:
                length = min(room, piece.length - at)
                places = _further(piece.places[0], at), _further(piece.places[1], at)
                slab.append(PiecePair(piece.start + at, length, places))
                at, room = at + length, room - length
                if not room:
                    yield slab
                    slab, room = [], SLAB_BYTES
        if slab:
            yield slab

    def _compared(self, slab: list[PiecePair]) -> Iterator[Difference]:
        length = sum(piece.length for piece in slab)
        # What one of the two does not hold is zeros, and is not read.
        one, other = (np.zeros(length // WORD_BYTES, dtype=np.uint64) for _ in self._sides)
        for side, words in zip(self._sides, (one, other), strict=True):
            side.read(slab, memoryview(words.data).cast("B"))
        sectors = other.reshape(-1, _WORDS)
        differs = (one.reshape(-1, _WORDS) != sectors).any(axis=1)
        if not differs.any():
            return
        kinds = np.where(differs, np.where(sectors.any(axis=1), 2, 1), 0)
        begin = 0
        for piece in slab:
            count = piece.length // SECTOR_SIZE
            at = piece.start
            for kind, sames in groupby(kinds[begin : begin + count].tolist()):
                size = len(list(sames)) * SECTOR_SIZE
                if kind:
                    yield Difference(at, size, zero=kind == 1)
                at += size
            begin += count


def _further(place: tuple[int, int], distance: int) -> tuple[int, int]:
    """Return the place of bytes that lie further on."""
    return place if place[0] == NOTHING else (place[0], place[1] + distance)
