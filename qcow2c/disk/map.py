"""The map of a disk: which bytes hold data or zeros, in which layer of the chain, and where in its file.

The answers are those of `qemu-img map`. Images with few table entries are mapped one run at a time, big ones by
arrays (`map_arrays.py`, and only then is numpy imported); a property holds the two equal. It reads no guest data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from operator import index

from qcow2c.disk.map_layers import (
    BELOW,
    COMPRESSED,
    DATA,
    OFFSET,
    PRESENT,
    ZERO,
    Columns,
    MappedLayer,
    Segment,
    mapped_layers,
)
from qcow2c.errors import CorruptMetadata
from qcow2c.format.tables import Kind
from qcow2c.layers.layer import Extent, Layer, file_runs

ARRAYS_FROM = 1 << 21
"""Entries of L2 tables, subclusters counted, from which on arrays are worth the import of numpy, however few runs."""

ARRAYS_FROM_RUNS, ARRAYS_FROM_RUNS_OF = 1 << 14, 1 << 17
"""Runs after which they are, if there are so many entries left."""

__all__ = [
    "COMPRESSED",
    "DATA",
    "OFFSET",
    "PRESENT",
    "ZERO",
    "Columns",
    "DiskMap",
    "Extent",
    "entries",
    "extents",
    "plain_columns",
]

_BATCH = 4096
"""Runs in one batch of the plain way."""


class DiskMap:
    """The map of a disk: its size in whole sectors, and the names of the files below."""

    def __init__(self, top: Layer) -> None:
        self._layers = mapped_layers(top)
        self.size = self._layers[0].size

    def file_names(self) -> list[str]:
        """Return the name of the file that holds the data of each layer, by depth."""
        stores = [(mapped.layer.header, mapped.layer.data_store) for mapped in self._layers]
        return [store.file_name if header is None else store.name for header, store in stores]

    def located(self, start: int = 0, max_length: int | None = None) -> Iterator[Columns]:
        """Yield the `columns` with the offsets that raw data has in its file, of which the layer may be a part."""
        starts = [mapped.layer.data_store.start if mapped.layer.header is None else 0 for mapped in self._layers]
        for columns in self.columns(start, max_length):
            if not any(starts):
                yield columns
                continue
            places = zip(columns.offsets, columns.depths, columns.flags, strict=True)
            moved = [offset + starts[depth] if flags & OFFSET else offset for offset, depth, flags in places]
            yield columns._replace(offsets=moved)

    def columns(self, start: int = 0, max_length: int | None = None) -> Iterator[Columns]:
        """Yield the runs from byte `start` on, at most `max_length` bytes, merged, in batches.

        Raises CorruptMetadata at the first entry that breaks a rule, LimitExceeded, StoreError.
        """
        start = index(start)
        end = self.size if max_length is None else min(start + index(max_length), self.size)
        if start >= end:
            return
        if entries(self._layers, start, end) < ARRAYS_FROM:
            runs = 0
            for found in plain_columns(self._layers, start, end):
                yield found
                start = found.starts[-1] + found.lengths[-1]
                runs += len(found.starts)
                if runs >= ARRAYS_FROM_RUNS and entries(self._layers, start, end) >= ARRAYS_FROM_RUNS_OF:
                    break
        if start < end:
            from qcow2c.disk import map_arrays

            yield from map_arrays.columns(self._layers, start, end)


def entries(layers: Sequence[MappedLayer], start: int, end: int) -> int:
    """Return how many L2 entries, subclusters counted, the layers have for a range, and their L1 entries."""
    total = 0
    for mapped in layers:
        end = min(end, mapped.size)
        if start >= end:
            break
        total += mapped.layer.table_entries(start, end)
    return total


# --- one run at a time ----------------------------------------------------------------------------------------------


def plain_columns(layers: Sequence[MappedLayer], start: int, end: int) -> Iterator[Columns]:
    """Yield the runs of a range in batches, without arrays."""
    batch: list[Segment] = []
    broken: CorruptMetadata | None = None
    runs = _merged(_runs(layers, 0, start, end))
    while broken is None:
        try:
            batch.extend(islice(runs, _BATCH - len(batch)))
        except CorruptMetadata as exc:
            broken = exc
        if not batch:
            break
        yield as_columns(batch)
        batch = []
    # What was found before the error was told first.
    if broken is not None:
        raise broken


def as_columns(runs: list[Segment]) -> Columns:
    """Return runs as columns; there is at least one."""
    return Columns(*map(list, zip(*runs, strict=True)))


def _runs(layers: Sequence[MappedLayer], depth: int, start: int, end: int) -> Iterator[Segment]:
    """Yield the runs of a range from a depth on, with those of the layers below where this one says nothing."""
    layer, _, flags_of, preallocated = layers[depth]
    for kind, at, length, host_offset in layer.runs(start, end - start):
        flags = flags_of[kind]
        if flags & BELOW:
            yield from _runs_below(layers, depth, at, at + length, flags & OFFSET, host_offset)
        elif preallocated and kind is Kind.DATA and flags & OFFSET:
            for part in file_runs(layer.data_store, host_offset, length):
                hole = 0 if part.kind is Kind.DATA else ZERO
                yield at + part.host_offset - host_offset, part.length, depth, flags | hole, part.host_offset
        else:
            yield at, length, depth, flags, host_offset if flags & OFFSET else 0


def _runs_below(
    layers: Sequence[MappedLayer], depth: int, start: int, end: int, place: int, host_offset: int
) -> Iterator[Segment]:
    """Yield what lies below a depth; past the end of a short backing file are zeros of the layer above it."""
    within = max(start, min(end, layers[depth + 1].size))
    if within > start:
        yield from _runs(layers, depth + 1, start, within)
    if end > within:
        yield within, end - within, depth, ZERO | place, host_offset + within - start if place else 0


def _merged(runs: Iterator[Segment]) -> Iterator[Segment]:
    """Join runs that go on in the same way, in the file too."""
    start = length = depth = flags = offset = 0
    try:
        for at, part, level, kinds, place in runs:
            if length and level == depth and kinds == flags and (place == offset + length or not flags & OFFSET):
                length += part
                continue
            if length:
                yield start, length, depth, flags, offset
            start, length, depth, flags, offset = at, part, level, kinds, place
    except CorruptMetadata:
        if length:
            yield start, length, depth, flags, offset
        raise
    if length:
        yield start, length, depth, flags, offset


def extents(layer: Layer, start: int = 0, max_length: int | None = None) -> Iterator[Extent]:
    """Yield the map of a disk, as `qemu-img map --output=json` prints it. Raises as `DiskMap.columns`."""
    for columns in DiskMap(layer).located(start, max_length):
        for at, length, depth, flags, offset in zip(*columns, strict=True):
            place = offset if flags & OFFSET else None
            present, zero, data, compressed = (bool(flags & one) for one in (PRESENT, ZERO, DATA, COMPRESSED))
            yield Extent(at, length, depth, present, zero, data, place, compressed)
