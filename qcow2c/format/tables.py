"""L1, L2, extended L2 and bitmap tables: one entry as integers, many entries as arrays.

Owns what an entry *means*; a Hypothesis property holds the two forms equal. It allocates nothing and writes nothing.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterator
from functools import cache, lru_cache

from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE, Limit
from qcow2c.errors import LimitExceeded
from qcow2c.format import layout
from qcow2c.format.derived import (
    BITMAP_TABLE_ENTRY,
    COMPRESSED_DESCRIPTOR,
    L1_ENTRY,
    STANDARD_L2_ENTRY,
    SUBCLUSTER_BITMAP,
)
from qcow2c.format.geometry import Geometry
from qcow2c.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

    U8Array = NDArray[np.uint8]


_WORDS_PER_SECTOR_BITS = (SECTOR_SIZE // ENTRY_BYTES).bit_length() - 1

L1_OFFSET = L1_ENTRY["l2_table_offset"].mask
L1_COPIED = L1_ENTRY["copied"].mask
L1_RESERVED = L1_ENTRY.reserved
L2_OFFSET = STANDARD_L2_ENTRY["host_cluster_offset"].mask
L2_COPIED = STANDARD_L2_ENTRY["copied"].mask
L2_COMPRESSED = STANDARD_L2_ENTRY["compressed"].mask
L2_ZERO = STANDARD_L2_ENTRY["zero"].mask
L2_RESERVED = STANDARD_L2_ENTRY.reserved
BITMAP_OFFSET = BITMAP_TABLE_ENTRY["host_cluster_offset"].mask
BITMAP_ALL_ONES = BITMAP_TABLE_ENTRY["all_ones"].mask
BITMAP_RESERVED = BITMAP_TABLE_ENTRY.reserved
SUBCLUSTERS_ALLOCATED = SUBCLUSTER_BITMAP["allocated"].mask
SUBCLUSTERS_ZERO_SHIFT = SUBCLUSTER_BITMAP["reads_as_zeros"].shift

_FIRST_COMPARED, _MOST_COMPARED = 8, 4096
"""Entries that are compared at once."""


class Kind(enum.IntEnum):
    """What a cluster, or a subcluster, of the virtual disk is. The order carries no meaning."""

    UNALLOCATED = 0
    """Read from the backing file."""
    UNALLOCATED_IN_CLUSTER = 1
    """The same, but a host cluster is reserved for it (extended L2 only)."""
    ZERO = 2
    ZERO_ALLOCATED = 3
    """Zero, with a host cluster reserved for it."""
    DATA = 4
    COMPRESSED = 5
    INVALID = 6
    """The subcluster bitmap contradicts itself or the descriptor."""


HAS_HOST_CLUSTER = (Kind.UNALLOCATED_IN_CLUSTER, Kind.ZERO_ALLOCATED, Kind.DATA)
"""The kinds whose descriptor holds a host cluster offset."""


class CompressedExtent(NamedTuple):
    """Where compressed data is: `length` bytes at most, up to the end of the last sector."""

    host_offset: int
    length: int


class Table:
    """A table in memory: `words` in native order, and the sectors of it that the file does not have yet.

    L1, L2 and refcount tables hold 64-bit words (two for an extended L2 entry); a refcount block holds its refcounts,
    one in each word whatever its width in the file.
    """

    __slots__ = ("dirty", "host_offset", "reachable", "sector_bits", "words")

    def __init__(
        self, words: array[int], host_offset: int, *, sector_bits: int = _WORDS_PER_SECTOR_BITS, reachable: bool = True
    ) -> None:
        """`sector_bits`: log2 of the words in a sector of the file. `reachable`: something in the file may refer to
        the table; until then it may be written in any order.
        """
        self.words = words
        self.host_offset = host_offset
        self.sector_bits = sector_bits
        self.reachable = reachable
        self.dirty: set[int] = set() if reachable else set(range(self._sector(len(words) - 1) + 1))

    def _sector(self, index: int) -> int:
        return index >> self.sector_bits

    def set(self, index: int, word: int) -> None:
        """Change one word."""
        self.words[index] = word
        self.dirty.add(index >> self.sector_bits)

    def set_many(self, index: int, words: array[int]) -> None:
        """Change words from `index` on."""
        self.words[index : index + len(words)] = words
        self.dirty.update(range(self._sector(index), self._sector(index + len(words) - 1) + 1))

    def dirty_runs(self) -> Iterator[tuple[int, int]]:
        """Yield first and end index of words in adjacent dirty sectors, in order."""
        sectors = sorted(self.dirty)
        first = 0
        for position, sector in enumerate(sectors):
            if position + 1 == len(sectors) or sectors[position + 1] != sector + 1:
                end = (sector + 1) << self.sector_bits
                yield sectors[first] << self.sector_bits, min(end, len(self.words))
                first = position + 1


# --- one entry ------------------------------------------------------------------------------------------------------


def kind_of(entry: int, bitmap: int, subcluster: int, geometry: Geometry) -> Kind:
    """Return what one subcluster is; without extended L2 entries `bitmap` and `subcluster` are 0."""
    if entry & L2_COMPRESSED:
        return Kind.COMPRESSED
    has_offset = bool(entry & L2_OFFSET) or (geometry.external_data and bool(entry & L2_COPIED))
    if not geometry.extended_l2:
        if entry & L2_ZERO:
            return Kind.ZERO_ALLOCATED if entry & L2_OFFSET else Kind.ZERO
        return Kind.DATA if has_offset else Kind.UNALLOCATED
    allocated = bitmap & SUBCLUSTERS_ALLOCATED
    zeros = bitmap >> SUBCLUSTERS_ZERO_SHIFT
    if allocated & zeros if has_offset else allocated:
        return Kind.INVALID
    if zeros >> subcluster & 1:
        return Kind.ZERO_ALLOCATED if has_offset else Kind.ZERO
    if allocated >> subcluster & 1:
        return Kind.DATA
    return Kind.UNALLOCATED_IN_CLUSTER if has_offset else Kind.UNALLOCATED


def equal_subclusters(bitmap: int, first: int, kind: Kind) -> int:
    """Return how many subclusters from `first` on are of the same valid kind, given an extended entry's bitmap."""
    allocated = bitmap & SUBCLUSTERS_ALLOCATED
    zeros = bitmap >> SUBCLUSTERS_ZERO_SHIFT
    if kind is Kind.DATA:
        different = ~allocated
    elif kind in (Kind.ZERO, Kind.ZERO_ALLOCATED):
        different = ~zeros
    else:
        different = allocated | zeros
    different = (different & SUBCLUSTERS_ALLOCATED) >> first
    end = SUBCLUSTER_BITMAP["allocated"].width - first
    return min((different & -different).bit_length() - 1, end) if different else end


def entries_alike(words: array[int], index: int, most: int, cluster_size: int, special: int) -> int:
    """Return how many standard entries, up to `most`, go on as the one at `index` does, plain or empty: at least.

    Many are compared at once; where it ends among many, the caller looks at one after the other. `special` are the
    bits that no plain entry has.
    """
    entry = words[index]
    if entry & special or (entry and not entry & L2_OFFSET):
        return 0
    size = cluster_size if entry else 0
    most = min(most, len(words) - index - 1)
    if size:
        most = min(most, (L2_OFFSET - (entry & L2_OFFSET)) // size)
    count, step = 0, _FIRST_COMPARED
    while step >= _FIRST_COMPARED:
        first = index + count + 1
        if count + step > most:
            step //= 2
        elif words[first : first + step].tobytes() == _going_on(entry + (count + 1) * size, size, step):
            count += step
            step = min(step * 2, _MOST_COMPARED)
        else:
            step //= 4
    return count


def _going_on(first: int, size: int, count: int) -> bytes:
    """Return words in native order, each greater by `size` than the one before, as one number that is split.

    It takes a sixth of the time of an array of them. No word overflows: the caller sees to that.
    """
    ones, steps = _progression(size, count)
    return layout.wide_number(first * ones + steps, count)


@lru_cache(maxsize=64)
def _progression(size: int, count: int) -> tuple[int, int]:
    """Return words of 1, and multiples of `size` from 0 on, each as one number."""
    steps = array("Q", range(0, count * size, size)) if size else layout.zero_words(count)
    return layout.number_of(array("Q", [1]) * count), layout.number_of(steps)


@cache
def compressed_masks(cluster_bits: int) -> tuple[int, int, int]:
    """Return the mask of the host offset, and mask and shift of the additional sectors."""
    bits = COMPRESSED_DESCRIPTOR[cluster_bits]
    sectors = bits["additional_sectors"]
    return bits["host_offset"].mask, sectors.mask, sectors.shift


def compressed_extent(entry: int, geometry: Geometry) -> CompressedExtent:
    """Return where the compressed data of a descriptor lies."""
    offset_mask, sectors_mask, sectors_shift = compressed_masks(geometry.cluster_bits)
    host_offset = entry & offset_mask
    return CompressedExtent(
        host_offset, geometry.compressed_length(host_offset, (entry & sectors_mask) >> sectors_shift)
    )


def compressed_entry(host_offset: int, length: int, geometry: Geometry) -> int:
    """Return the descriptor of `length` bytes of compressed data."""
    _, _, sectors_shift = compressed_masks(geometry.cluster_bits)
    additional_sectors = (host_offset + length - 1) // SECTOR_SIZE - host_offset // SECTOR_SIZE
    return L2_COMPRESSED | additional_sectors << sectors_shift | host_offset


def require_nameable(host_offset: int, length: int, geometry: Geometry) -> None:
    """Raise LimitExceeded where no descriptor can name compressed data that lies there."""
    if host_offset + length > min(compressed_masks(geometry.cluster_bits)[0], Limit.HOST_OFFSET_END - SECTOR_SIZE):
        raise LimitExceeded(f"no entry can name compressed data at {host_offset:#x}", spec="Cluster mapping")


# --- many entries ---------------------------------------------------------------------------------------------------


def native(data: bytes | bytearray | memoryview) -> U64Array:
    """Return big-endian 64-bit words as an array of native uint64, shape (len(data) // 8,)."""
    import numpy as np

    words = np.frombuffer(data, dtype=">u8", count=len(data) // layout.WORD_BYTES)
    return words.astype(np.uint64)


def kinds(entries: U64Array, bitmaps: U64Array | None, geometry: Geometry) -> U8Array:
    """Return the Kind of each subcluster, dtype uint8, shape (n,) or, with extended L2 entries, (n, 32)."""
    import numpy as np

    offset, copied = np.uint64(L2_OFFSET), np.uint64(L2_COPIED)
    has_offset = (entries & offset) != 0
    compressed = (entries & np.uint64(L2_COMPRESSED)) != 0
    with_data = has_offset | ((entries & copied) != 0) if geometry.external_data else has_offset
    if bitmaps is None:
        zero = (entries & np.uint64(L2_ZERO)) != 0
        found = np.where(with_data, np.uint8(Kind.DATA), np.uint8(Kind.UNALLOCATED))
        found[zero & ~has_offset] = Kind.ZERO
        found[zero & has_offset] = Kind.ZERO_ALLOCATED
        found[compressed] = Kind.COMPRESSED
        return found
    allocated = bitmaps & np.uint64(SUBCLUSTERS_ALLOCATED)
    zeros = bitmaps >> np.uint64(SUBCLUSTERS_ZERO_SHIFT)
    index = np.arange(geometry.subclusters, dtype=np.uint64)
    is_allocated = (allocated[:, None] >> index) & np.uint64(1) != 0
    is_zero = (zeros[:, None] >> index) & np.uint64(1) != 0
    with_offset = with_data[:, None]
    table = np.where(with_offset, np.uint8(Kind.UNALLOCATED_IN_CLUSTER), np.uint8(Kind.UNALLOCATED))
    result: U8Array = np.broadcast_to(table, is_zero.shape).copy()
    result[is_allocated] = Kind.DATA
    result[is_zero & with_offset] = Kind.ZERO_ALLOCATED
    result[is_zero & ~with_offset] = Kind.ZERO
    result[invalid_bitmaps(entries, bitmaps, geometry)] = Kind.INVALID
    result[compressed] = Kind.COMPRESSED
    return result


def invalid_bitmaps(entries: U64Array, bitmaps: U64Array, geometry: Geometry) -> NDArray[np.bool_]:
    """Return for each extended entry whether its bitmap contradicts itself or its descriptor; shape (n,)."""
    import numpy as np

    has_offset = (entries & np.uint64(L2_OFFSET)) != 0
    if geometry.external_data:
        has_offset |= (entries & np.uint64(L2_COPIED)) != 0
    allocated = bitmaps & np.uint64(SUBCLUSTERS_ALLOCATED)
    both = allocated & (bitmaps >> np.uint64(SUBCLUSTERS_ZERO_SHIFT))
    invalid: NDArray[np.bool_] = np.where(has_offset, both, allocated) != 0
    return invalid


def compressed_extents(entries: U64Array, geometry: Geometry) -> tuple[U64Array, U64Array]:
    """Return host offsets and lengths in bytes of compressed descriptors, each of shape (n,)."""
    import numpy as np

    offset_mask, sectors_mask, sectors_shift = compressed_masks(geometry.cluster_bits)
    offsets = entries & np.uint64(offset_mask)
    sectors = (entries & np.uint64(sectors_mask)) >> np.uint64(sectors_shift)
    sector = np.uint64(SECTOR_SIZE)
    return offsets, (sectors + np.uint64(1)) * sector - offsets % sector
