"""The geometry of an image whose header cannot be believed, scored from the tables that are there.

The cluster size is the smallest alignment of what tables name; where they name compressed data, a trial must give just
one cluster; extended entries show by bitmaps that no standard entry could be. It reads only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import SECTOR_SIZE, CompressionType, Limit, Version
from qcow2c.format.codecs import DecompressionError, decompressor
from qcow2c.format.geometry import Geometry
from qcow2c.format.tables import (
    L2_COMPRESSED,
    L2_COPIED,
    L2_OFFSET,
    L2_ZERO,
    compressed_extent,
)
from qcow2c.light import NamedTuple
from qcow2c.recovery.table_scan import TableScan, extended_like, packed_like, read_words, table_like
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

_SAMPLE = 4096
"""Sectors that are looked at."""
_TRIALS = 24
"""Compressed clusters that are tried, for each size."""
_STRAY = 50
"""One entry in so many may be aligned worse than all others, and is then no table's."""
_MANY = 8
"""Entries from which on it is no chance that all of them are aligned to more than a cluster."""


class Shape(NamedTuple):
    """What tables say of the geometry. `votes` are the entries that speak for each cluster size, by its logarithm."""

    cluster_bits: int | None
    extended_l2: bool
    zero_bit: bool
    """Whether standard entries use the zero bit, which version 2 does not have."""
    compression_type: int | None
    external_data: bool
    """Whether entries name offset 0, which only an external data file has data at."""
    votes: dict[int, int]
    certain: bool
    """Whether so many entries speak for the cluster size that it is no chance."""

    def geometry(self, refcount_order: int, version: int) -> Geometry | None:
        """Return the geometry, None where nothing speaks for a cluster size."""
        if self.cluster_bits is None:
            return None
        return Geometry(self.cluster_bits, refcount_order, self.extended_l2, self.external_data, version)


def shape_of(store: Store, scan: TableScan) -> Shape:
    """Return what the tables of a file say of its geometry. Raises StoreError."""
    rows = _sample(store, scan)
    standard = table_like(rows, scan.reach)
    extended = ~standard & extended_like(rows, scan.reach)
    named = rows[standard] & np.uint64(L2_OFFSET)
    packed = packed_like(rows[standard], scan.reach)
    named = named[(named != 0) & ~packed]
    is_extended = _is_extended(scan, named, int(extended.sum()), int(standard.sum()), rows, extended)
    words = rows[standard].ravel()
    if is_extended:
        words = np.concatenate((words, rows[extended][:, ::2].ravel()))
    plain = words[(words & np.uint64(L2_COMPRESSED)) == 0]
    votes = _votes(plain)
    bits, count = _least_alignment(votes)
    descriptors = rows[extended][:, ::2].ravel() if is_extended else rows[standard].ravel()
    compressed = descriptors[packed_like(descriptors, scan.reach)]
    method = None
    certain = bits is not None and count >= _MANY
    if len(compressed):
        tried = _by_trial(store, compressed, bits)
        if tried is not None:
            bits, method = tried
            certain = True
    if is_extended and bits is not None:
        bits = max(bits, Limit.EXTENDED_L2_CLUSTER_BITS.start)
    zero_bit = bool(((plain & np.uint64(L2_ZERO)) != 0).any()) and not is_extended
    external = bool((plain == np.uint64(L2_COPIED)).any())
    return Shape(bits, is_extended, zero_bit, method, external, votes, certain)


def _sample(store: Store, scan: TableScan) -> U64Array:
    step = max(1, len(scan.tables) // _SAMPLE)
    chosen = scan.tables[::step][:_SAMPLE].tolist()
    rows = [read_words(store, offset, SECTOR_SIZE // 8) for offset in chosen]
    return np.array(rows, dtype=np.uint64).reshape(-1, SECTOR_SIZE // 8)


def _is_extended(
    scan: TableScan,
    named: U64Array,
    extended: int,
    standard: int,
    rows: U64Array,
    which: NDArray[np.bool_],
) -> bool:
    """Return whether tables that tables name are of extended entries rather than of standard ones."""
    if not extended:
        return False
    targets = np.unique(named.astype(np.int64))
    reached = np.isin(scan.tables, targets)
    step = max(1, len(scan.tables) // _SAMPLE)
    sampled = reached[::step][:_SAMPLE]
    of_extended = int((sampled & which).sum())
    of_standard = int((sampled & ~which & table_like(rows, scan.reach)).sum())
    if of_extended or of_standard:
        return of_extended >= of_standard
    return extended > standard


def _votes(words: U64Array) -> dict[int, int]:
    """Return how many distinct offsets are aligned to just so many bits."""
    offsets = np.unique(words & np.uint64(L2_OFFSET))
    offsets = offsets[offsets != 0]
    if not len(offsets):
        return {}
    low = offsets & (~offsets + np.uint64(1))
    bits = np.log2(low.astype(np.float64)).astype(np.int64)
    bits = np.minimum(bits, Limit.CLUSTER_BITS.stop - 1)
    values, counts = np.unique(bits, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _least_alignment(votes: dict[int, int]) -> tuple[int | None, int]:
    """Return the smallest alignment that is no stray, and how many entries there are."""
    total = sum(votes.values())
    for bits in sorted(votes):
        if votes[bits] * _STRAY >= total:
            return bits, total
    return None, 0


def _by_trial(store: Store, words: U64Array, most: int | None) -> tuple[int, int] | None:
    """Return the cluster size, and the method, with which compressed data becomes whole clusters; None: with none."""
    step = max(1, len(words) // _TRIALS)
    chosen = [int(word) for word in words[::step][:_TRIALS]]
    best: tuple[int, int, int] | None = None
    for method in CompressionType:
        unpack = decompressor(method)
        for bits in Limit.CLUSTER_BITS:
            geometry = Geometry(bits, 4, version=Version.V3)
            good = 0
            for word in chosen:
                where = compressed_extent(word, geometry)
                if where.host_offset + where.length > store.size() + SECTOR_SIZE or where.length > 2 << bits:
                    continue
                data = store.pread(where.length, where.host_offset)
                good += _gives_just_one(unpack, data, bits)
            if good and (best is None or (good, bits == most) > (best[0], best[1] == most)):
                best = good, bits, int(method)
    return None if best is None else best[1:]


def _gives_just_one(unpack: object, data: bytes, bits: int) -> bool:
    """Return whether data decompresses to one cluster, and to no more."""
    size = 1 << bits
    try:
        if len(unpack(data, size)) != size:  # type: ignore[operator]
            return False
    except (DecompressionError, ValueError):
        return False
    try:
        return len(unpack(data, 2 * size)) != 2 * size  # type: ignore[operator]
    except (DecompressionError, ValueError):
        return True
