"""Refcount table and blocks of 1 to 64 bits: decoding and encoding of refcounts. It allocates and writes nothing."""

from __future__ import annotations

import sys
from array import array
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from qcow2c import layout
from qcow2c.geometry import Geometry
from qcow2c.storage import Store
from qcow2c.structs import REFCOUNT_TABLE_ENTRY, Limit, refcount_group

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TABLE = layout.bits(REFCOUNT_TABLE_ENTRY)
BLOCK_OFFSET = _TABLE["refcount_block_offset"].mask
TABLE_RESERVED = _TABLE.reserved


def refcount(block: bytes, index: int, refcount_order: int) -> int:
    """Return refcount `index` of a block."""
    shifts, mask = _sub_byte(refcount_order)
    if shifts:
        byte = block[index // len(shifts)]
        return byte >> shifts[index % len(shifts)] & mask
    width = refcount_group(refcount_order).sizeof()
    return layout.integer(block[index * width : (index + 1) * width])


def refcounts(blocks: bytes | bytearray | memoryview, refcount_order: int) -> NDArray[np.unsignedinteger[Any]]:
    """Return all refcounts of adjacent blocks, in order, in their own width and byte order; shape (n,)."""
    import numpy as np

    shifts, mask = _sub_byte(refcount_order)
    if not shifts:
        width = refcount_group(refcount_order).sizeof()
        return np.frombuffer(blocks, dtype=f">u{width}")
    packed = np.frombuffer(blocks, dtype=np.uint8)
    unpacked = packed[:, None] >> np.array(shifts, dtype=np.uint8)
    unpacked &= np.uint8(mask)
    return unpacked.reshape(-1)


@cache
def _sub_byte(refcount_order: int) -> tuple[tuple[int, ...], int]:
    """Return the shifts of the refcounts in a byte, in cluster order, and the mask of one; empty for whole bytes."""
    group = refcount_group(refcount_order)
    if not layout.is_bits(group):
        return (), 0
    bits = layout.bits(group)
    ordered = [bits[f"refcount_{index}"] for index in range(len(bits.members))]
    return tuple(member.shift for member in ordered), (1 << ordered[0].width) - 1


def native_block(data: bytes, refcount_order: int) -> array[int]:
    """Return the refcounts of stored blocks in native order, each in one word however narrow it is."""
    shifts, mask = _sub_byte(refcount_order)
    if shifts:
        found = array("B", bytes(len(data) * len(shifts)))
        # All bytes are one big integer: what a shift brings in from the next byte, the mask takes away.
        whole, masks = layout.integer(data), layout.integer(bytes((mask,)) * len(data))
        for position, shift in enumerate(shifts):
            found[position :: len(shifts)] = array("B", layout.stored_integer(whole >> shift & masks, len(data)))
        return found
    words = array(word_code(refcount_order), data)
    if sys.byteorder == "little" and words.itemsize > 1:
        words.byteswap()
    return words


def stored_block(words: array[int], refcount_order: int) -> bytes:
    """Return refcounts, as many as fill whole bytes, as they are stored: the inverse of `native_block`."""
    shifts, _mask = _sub_byte(refcount_order)
    if not shifts:
        return layout.stored(words)
    packed = 0
    for position, shift in enumerate(shifts):
        packed |= layout.integer(words[position :: len(shifts)].tobytes()) << shift
    return layout.stored_integer(packed, len(words) // len(shifts))


def stored_ones(count: int, refcount_order: int) -> bytes:
    """Return `count` refcounts of 1 as they are stored, with refcounts of 0 up to the next whole byte."""
    shifts, _mask = _sub_byte(refcount_order)
    if not shifts:
        return layout.stored_integer(1, refcount_group(refcount_order).sizeof()) * count
    whole, rest = divmod(count, len(shifts))
    data = bytes([sum(1 << shift for shift in shifts)]) * whole
    return data + bytes([sum(1 << shift for shift in shifts[:rest])]) if rest else data


@cache
def word_code(refcount_order: int) -> str:
    """Return the type code of an array that holds refcounts in native order, each in one word."""
    size = 1 if _sub_byte(refcount_order)[0] else refcount_group(refcount_order).sizeof()
    return next(code for code in "BHILQ" if array(code).itemsize == size)


class Refcounts:
    """The refcounts of an image by arrays, read through its refcount table; shape of `table` (entries,), uint64.

    Blocks that cannot be (misaligned) are told apart from blocks that are not (all refcounts 0). What a block has past
    the end of the file is zeros.
    """

    def __init__(self, store: Store, geometry: Geometry, table: NDArray[np.uint64]) -> None:
        import numpy as np

        self._store = store
        self._geometry = geometry
        self._offsets = table & np.uint64(BLOCK_OFFSET)
        self.dtype = (
            np.dtype(np.uint32)
            if geometry.refcount_bits > 32
            else refcounts(b"", geometry.refcount_order).dtype.newbyteorder("=")
        )
        """Wider refcounts are cut off at the largest value of 32 bits, which stands for itself and all above."""

    @property
    def covered(self) -> int:
        """How many clusters, from the first, the refcount table can describe."""
        return len(self._offsets) << self._geometry.refcount_block_bits

    def describes(self, cluster: int) -> bool:
        """Tell whether a cluster has a refcount block."""
        index = cluster >> self._geometry.refcount_block_bits
        return index < len(self._offsets) and bool(self._offsets[index])

    def described_clusters(self) -> NDArray[np.int64]:
        """Return the first cluster that each refcount block describes, ascending."""
        import numpy as np

        return np.flatnonzero(self._offsets) << self._geometry.refcount_block_bits

    def window(self, first: int, count: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return the refcounts of clusters `first` to `first + count`, both multiples of a block; shape (count,)."""
        import numpy as np

        bits = self._geometry.refcount_block_bits
        found = np.zeros(count, dtype=self.dtype)
        offsets = self._offsets[first >> bits : -(-(first + count) >> bits)]
        for index in np.flatnonzero(offsets).tolist():
            block = self._block(int(offsets[index]))
            start = index << bits
            if block is not None:
                found[start : start + len(block)] = block[: max(0, count - start)]
        return found

    def unreadable(self, first: int, count: int) -> NDArray[np.bool_]:
        """Return which clusters have an impossible refcount block: misaligned, or beyond any file; shape (count,)."""
        import numpy as np

        bits = self._geometry.refcount_block_bits
        offsets = self._offsets[first >> bits : -(-(first + count) >> bits)]
        broken = np.zeros(count, dtype=bool)
        impossible = offsets % np.uint64(self._geometry.cluster_size) != 0
        impossible |= offsets >= np.uint64(Limit.SIGNED_OFFSET_END)
        for index in np.flatnonzero(impossible).tolist():
            broken[index << bits : (index + 1) << bits] = True
        return broken

    def at(self, clusters: NDArray[np.uint64]) -> NDArray[np.unsignedinteger[Any]]:
        """Return the refcounts of any clusters, in the order given; shape (n,). Each block is read once."""
        import numpy as np

        bits = np.uint64(self._geometry.refcount_block_bits)
        found = np.zeros(len(clusters), dtype=self.dtype)
        known = np.flatnonzero(clusters >> bits < np.uint64(len(self._offsets)))
        offsets = self._offsets[clusters[known] >> bits]
        order = np.argsort(offsets, kind="stable")
        edges = [0, *(np.flatnonzero(np.diff(offsets[order])) + 1).tolist(), len(order)]
        for start, end in pairwise(edges):
            if start == end or not offsets[order[start]]:
                continue
            block = self._block(int(offsets[order[start]]))
            rows = known[order[start:end]]
            if block is not None:
                found[rows] = block[clusters[rows] & np.uint64((1 << int(bits)) - 1)]
        return found

    def _block(self, offset: int) -> NDArray[np.unsignedinteger[Any]] | None:
        import numpy as np

        size = self._geometry.cluster_size
        if offset % size or offset >= Limit.SIGNED_OFFSET_END:
            return None
        decoded = refcounts(self._store.pread(size, offset).ljust(size, b"\0"), self._geometry.refcount_order)
        if self._geometry.refcount_bits > 32:
            decoded = np.minimum(decoded, np.iinfo(np.uint32).max).astype(np.uint32)
        return decoded
