"""Refcount table and blocks of 1 to 64 bits: decoding of one refcount and of whole blocks. It never writes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from qcow2c import layout
from qcow2c.structs import REFCOUNT_TABLE_ENTRY, refcount_group

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
    """Return all refcounts of adjacent blocks, in order, in the least unsigned dtype that holds them; shape (n,)."""
    import numpy as np

    shifts, mask = _sub_byte(refcount_order)
    if not shifts:
        width = refcount_group(refcount_order).sizeof()
        return np.frombuffer(blocks, dtype=f">u{width}").astype(f"=u{width}")
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
