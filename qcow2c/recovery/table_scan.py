"""One pass over a damaged file: which sectors look like a part of a table, and which begin a snapshot record.

It believes no pointer, so that it finds what nothing names any more. Memory: eight bytes for each sector that looks
like a table, two bits for each sector that holds data. Holes of the file are skipped. Reads only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import ENTRY_BYTES, MAGIC, SECTOR_SIZE, UINT32, Limit
from qcow2c.format import layout
from qcow2c.format.tables import (
    L2_COMPRESSED,
    L2_COPIED,
    L2_OFFSET,
    L2_RESERVED,
    L2_ZERO,
    SUBCLUSTERS_ALLOCATED,
    SUBCLUSTERS_ZERO_SHIFT,
    native,
)
from qcow2c.storage.store import Progress, Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import I64Array, U64Array

WORDS_PER_SECTOR = SECTOR_SIZE // ENTRY_BYTES
_PIECE = 1 << 20
_LEAST_REACH = 1 << 30
_REACH_FACTOR = 16
_FAR_REACH = 1 << 48
"""Of a data file: a refcount block of 16 bits each would look like entries that name more."""
_PLAIN = np.uint64(L2_OFFSET | L2_COPIED | L2_ZERO)
_RECORD_WORDS = 5


class TableScan:
    """What one pass found. Offsets are in bytes from the start of the store, ascending, int64.

    `tables`: sectors that could be a part of an L1, L2 or refcount table, and are not all zeros.
    `records`: sectors that could begin a snapshot record. `magics`: where the magic value stands, at any byte.
    """

    def __init__(self, store: Store, *, far: bool = False, progress: Progress | None = None) -> None:
        """`far`: guest data is in another file, so that offsets may lie beyond the end of this one.

        Raises StoreError.
        """
        self.size = store.size()
        reach = max(_REACH_FACTOR * self.size, _LEAST_REACH)
        self.reach = _FAR_REACH if far else 1 << (reach - 1).bit_length()
        """Beyond it no offset in a table is believed: some more than the file, which may have been cut off."""
        tables: list[I64Array] = []
        records: list[I64Array] = []
        self.magics: list[int] = []
        self._used: dict[int, bytes] = {}
        for span, is_data in store.extents(0, self.size):
            if not is_data:
                continue
            start = span.offset // _PIECE * _PIECE
            for at in range(start, span.end, _PIECE):
                if at // _PIECE in self._used:
                    continue
                self._piece(store.pread(_PIECE + len(MAGIC) - 1, at), at, tables, records)
                if progress is not None:
                    progress(min(at + _PIECE, self.size), self.size)
        self.tables = _joined(tables)
        self.records = _joined(records)

    def _piece(self, data: bytes, at: int, tables: list[I64Array], records: list[I64Array]) -> None:
        found = data.find(MAGIC)
        while found >= 0:
            self.magics.append(at + found)
            found = data.find(MAGIC, found + 1)
        data = data[:_PIECE]
        whole = data.ljust(-(-len(data) // SECTOR_SIZE) * SECTOR_SIZE, b"\0")
        rows = native(whole).reshape(-1, WORDS_PER_SECTOR)
        used = rows.any(axis=1)
        self._used[at // _PIECE] = np.packbits(used).tobytes() if used.any() else b""
        places = np.flatnonzero(used)
        if not len(places):
            return
        rows = rows[places]
        like = table_like(rows, self.reach)
        rest = np.flatnonzero(~like)
        like[rest] = extended_like(rows[rest], self.reach)
        tables.append(at + places[like] * SECTOR_SIZE)
        is_record = _record_like(rows, self.size)
        records.append(at + places[is_record] * SECTOR_SIZE)

    def used(self, start: int, end: int) -> bool:
        """Return whether some byte between two sector boundaries is not zero."""
        while start < end:
            stop = min(end, (start // _PIECE + 1) * _PIECE)
            bits = self._used.get(start // _PIECE, b"")
            if bits:
                base = start // _PIECE * _PIECE
                mask = np.unpackbits(np.frombuffer(bits, dtype=np.uint8))
                if mask[(start - base) // SECTOR_SIZE : -(-(stop - base) // SECTOR_SIZE)].any():
                    return True
            start = stop
        return False

    def used_clusters(self, cluster_bits: int) -> I64Array:
        """Return the clusters of the file that hold anything but zeros, ascending."""
        found: list[I64Array] = []
        for piece in sorted(self._used):
            if self._used[piece]:
                mask = np.unpackbits(np.frombuffer(self._used[piece], dtype=np.uint8))
                places = piece * _PIECE + np.flatnonzero(mask) * SECTOR_SIZE
                found.append(np.unique(places >> cluster_bits))
        return np.unique(_joined(found))


def table_like(rows: U64Array, reach: int) -> NDArray[np.bool_]:
    """Return which rows of words could be standard entries that name nothing beyond `reach`; shape (n,)."""
    beyond = np.uint64(L2_OFFSET & ~(reach - 1))
    plain = (rows & (~_PLAIN | beyond)) == 0
    plain &= ((rows & np.uint64(L2_OFFSET)) != 0) | (rows <= np.uint64(L2_ZERO))
    packed = packed_like(rows, reach)
    found: NDArray[np.bool_] = (plain | packed).all(axis=1)
    return found


def packed_like(words: U64Array, reach: int) -> NDArray[np.bool_]:
    """Return which words could name compressed data, whatever the cluster size; same shape."""
    lowest_width = 62 - (Limit.CLUSTER_BITS.stop - 1 - 8)
    beyond = ((1 << lowest_width) - 1) & ~(reach - 1)
    mask = np.uint64(L2_COPIED | L2_COMPRESSED | beyond)
    offset = np.uint64((1 << lowest_width) - 1)
    found: NDArray[np.bool_] = (words & mask) == np.uint64(L2_COMPRESSED)
    found &= (words & offset) >= np.uint64(SECTOR_SIZE)
    return found


def extended_like(rows: U64Array, reach: int) -> NDArray[np.bool_]:
    """Return which rows could be extended entries, each with a bitmap that does not contradict it; shape (n,)."""
    entries, bitmaps = rows[:, ::2], rows[:, 1::2]
    beyond = np.uint64(L2_OFFSET & ~(reach - 1))
    offset = (entries & np.uint64(L2_OFFSET)) != 0
    allocated = bitmaps & np.uint64(SUBCLUSTERS_ALLOCATED)
    zeros = bitmaps >> np.uint64(SUBCLUSTERS_ZERO_SHIFT)
    plain = (entries & (np.uint64(L2_COMPRESSED | L2_RESERVED | L2_ZERO) | beyond)) == 0
    external = entries == np.uint64(L2_COPIED)
    plain &= np.where(offset | external, (allocated & zeros) == 0, (allocated == 0) & (entries == 0))
    plain |= packed_like(entries, reach) & (bitmaps == 0)
    return np.asarray(plain.all(axis=1))


def _record_like(rows: U64Array, size: int) -> NDArray[np.bool_]:
    """Return which sectors could begin a snapshot record: its numbers are such as programs write."""
    first, second, _clock, _rest, last = (rows[:, index] for index in range(_RECORD_WORDS))
    found = (first != 0) & (first % np.uint64(SECTOR_SIZE) == 0) & (first < np.uint64(max(size, 1)))
    entries = second >> np.uint64(32)
    found &= (entries > 0) & (entries <= np.uint64(Limit.L1_ENTRIES))
    id_size = (second >> np.uint64(16)) & np.uint64(0xFFFF)
    found &= (id_size > 0) & (id_size <= np.uint64(64)) & ((second & np.uint64(0xFFFF)) <= np.uint64(1024))
    found &= (last & np.uint64(UINT32.stop - 1)) <= np.uint64(Limit.SNAPSHOT_EXTRA_BYTES)
    return np.asarray(found)


def _joined(parts: list[I64Array]) -> I64Array:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def read_words(store: Store, offset: int, count: int) -> U64Array:
    """Return words of a table; what the file does not have is zeros. Raises StoreError."""
    length = count * layout.WORD_BYTES
    return native(store.pread(length, offset).ljust(length, b"\0"))
