"""Overlaps: host clusters of metadata to which something else refers as well. Finds, and judges nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.references.sweep import Window
from qcow2c.references.walk import Owner, References

if TYPE_CHECKING:
    from qcow2c.format.array_types import U64Array

_CHUNK = 1 << 18

_DEPTH = 4096
"""How many clusters of one table, from its start, are looked at: all, but of the largest L1 tables."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """A host cluster of metadata that something else refers to as well."""

    cluster: int
    owner: Owner
    references: int

    def __str__(self) -> str:
        owner = self.owner.name.lower().replace("_", " ")
        return f"ERROR cluster {self.cluster} of the {owner} has {self.references} references"


def overlaps(metadata: Iterable[References], window: Window, cluster_bits: int, file_size: int) -> Iterator[Overlap]:
    """Yield metadata clusters of a window with more references than their own structure has, some of them twice.

    Clusters of bitmaps are left out: nothing but the bitmap depends on them.
    """
    for part in metadata:
        if part.owner is Owner.BITMAP_DATA:
            continue
        for start in range(0, len(part.offsets), _CHUNK):
            rows = slice(start, start + _CHUNK)
            inside = (part.lengths[rows] > 0) & (part.offsets[rows] < np.uint64(file_size))
            offsets, lengths = part.offsets[rows][inside], part.lengths[rows][inside]
            if len(offsets):
                yield from _shared(part.owner, offsets, lengths, part.weights[rows][inside], window, cluster_bits)


def _shared(
    owner: Owner, offsets: U64Array, lengths: U64Array, weights: U64Array, window: Window, cluster_bits: int
) -> Iterator[Overlap]:
    bits = np.uint64(cluster_bits)
    first = (offsets >> bits).view(np.int64)
    last = np.minimum((offsets + lengths - np.uint64(1)) >> bits, np.uint64(window.end)).view(np.int64)
    for step in range(min(int((last - first).max()) + 1, _DEPTH)):
        clusters = first + step
        rows = np.flatnonzero((clusters <= last) & (clusters >= window.first) & (clusters < window.end))
        counts = window.references[clusters[rows] - window.first]
        for row in np.flatnonzero(counts > weights[rows]).tolist():
            yield Overlap(int(clusters[rows[row]]), owner, int(counts[row]))
