"""Refcount table and blocks of 1 to 64 bits: refcounts decoded and encoded, and the room that new ones need.

It decides no place and writes nothing. Spec: "Host cluster management".
"""

from __future__ import annotations

import sys
from array import array
from functools import cache

from qcow2c.constants import ENTRY_BYTES, Limit
from qcow2c.errors import LimitExceeded
from qcow2c.format import layout
from qcow2c.format.derived import REFCOUNT_GROUP, REFCOUNT_TABLE_ENTRY
from qcow2c.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from qcow2c.format.geometry import Geometry

_TABLE = REFCOUNT_TABLE_ENTRY

BLOCK_OFFSET = _TABLE["refcount_block_offset"].mask

TABLE_RESERVED = _TABLE.reserved


def refcount(block: bytes, index: int, refcount_order: int) -> int:
    """Return refcount `index` of a block."""
    shifts, mask = _sub_byte(refcount_order)
    if shifts:
        byte = block[index // len(shifts)]
        return byte >> shifts[index % len(shifts)] & mask
    width = REFCOUNT_GROUP[refcount_order].size
    return layout.integer(block[index * width : (index + 1) * width])


def refcounts(blocks: bytes | bytearray | memoryview, refcount_order: int) -> NDArray[np.unsignedinteger[Any]]:
    """Return all refcounts of adjacent blocks, in order, in their own width and byte order; shape (n,)."""
    import numpy as np

    shifts, mask = _sub_byte(refcount_order)
    if not shifts:
        width = REFCOUNT_GROUP[refcount_order].size
        return np.frombuffer(blocks, dtype=f">u{width}")
    packed = np.frombuffer(blocks, dtype=np.uint8)
    unpacked = packed[:, None] >> np.array(shifts, dtype=np.uint8)
    unpacked &= np.uint8(mask)
    return unpacked.reshape(-1)


@cache
def _sub_byte(refcount_order: int) -> tuple[tuple[int, ...], int]:
    """Return the shifts of the refcounts in a byte, in cluster order, and the mask of one; empty for whole bytes."""
    group = REFCOUNT_GROUP[refcount_order]
    if not isinstance(group, layout.Bits):
        return (), 0
    ordered = [group[f"refcount_{index}"] for index in range(len(group.members))]
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
        return layout.stored_integer(1, REFCOUNT_GROUP[refcount_order].size) * count
    whole, rest = divmod(count, len(shifts))
    data = bytes([sum(1 << shift for shift in shifts)]) * whole
    return data + bytes([sum(1 << shift for shift in shifts[:rest])]) if rest else data


@cache
def word_code(refcount_order: int) -> str:
    """Return the type code of an array that holds refcounts in native order, each in one word."""
    size = 1 if _sub_byte(refcount_order)[0] else REFCOUNT_GROUP[refcount_order].size
    return next(code for code in "BHILQ" if array(code).itemsize == size)


# --- new refcounts --------------------------------------------------------------------------------------------------


class RefcountRoom(NamedTuple):
    """What a new refcount table and new refcount blocks take."""

    entries: int
    """Entries that the table needs, one for each block, new or not."""
    blocks: int
    """New blocks, one cluster each."""
    table_clusters: int

    @property
    def clusters(self) -> int:
        return self.blocks + self.table_clusters


def refcount_room(
    geometry: Geometry, first: int, *, kept: int = 0, reach: int = 0, table_entries: int = 0
) -> RefcountRoom:
    """Return the least room for a refcount table and blocks that describe everything up to their own end.

    The room begins at cluster `first`. Refcounts reach at least to cluster `reach`, and the table has room for at least
    `table_entries`. So many entries as are `kept` need no new block: they have one, or nothing to describe.
    """
    room = RefcountRoom(0, 0, 0)
    while True:
        entries = -(-max(first + room.clusters, reach) >> geometry.refcount_block_bits)
        table_clusters = -(-max(entries, table_entries) // geometry.words_per_cluster)
        wider = RefcountRoom(entries, entries - kept, table_clusters)
        if wider == room:
            return room
        room = wider


def require_table(entries: int, most: int = Limit.REFCOUNT_TABLE_BYTES // ENTRY_BYTES) -> None:
    """Raise LimitExceeded for a refcount table of more entries than an image can have."""
    if entries > most:
        message = f"the image would need a refcount table of more than {Limit.REFCOUNT_TABLE_BYTES} bytes"
        raise LimitExceeded(message, spec="Host cluster management")
