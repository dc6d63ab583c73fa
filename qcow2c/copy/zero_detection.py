"""Which parts of a buffer hold anything but zeros."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from qcow2c.format.geometry import ByteRange
from qcow2c.format.layout import WORD_BYTES

_ZEROS = bytes(2 << 20)
"""As long as the largest cluster, and so the largest slab."""


def data_ranges(buffer: memoryview, unit: int) -> list[ByteRange]:
    """Return the ranges of whole units that hold anything but zeros; 8 bytes are the least unit.

    The last unit may be cut short, at a multiple of 8 bytes. Looks at one word of most units, and at no more than it
    needs of the others.
    """
    length = len(buffer)
    probes = array("Q", buffer.cast("Q")[:: unit // WORD_BYTES].tobytes())
    suspects = probes.count(0)
    if not suspects:
        return [ByteRange(0, length)]
    found: list[ByteRange] = []
    begin = 0
    index = -1
    while suspects:
        index = probes.index(0, index + 1)
        last = index + 1
        while last < len(probes) and not probes[last]:
            last += 1
        suspects -= last - index
        for start, end in _zero_units(buffer, index * unit, min(length, last * unit), unit):
            if start > begin:
                found.append(ByteRange(begin, start))
            begin = end
        index = last - 1
    if begin < length:
        found.append(ByteRange(begin, length))
    return found


def _zero_units(buffer: memoryview, start: int, end: int, unit: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a row of units that are zeros: all at once where they all are."""
    if _ZEROS.startswith(bytes(buffer[start:end])):
        yield start, end
        return
    if end - start > unit:
        middle = start + (end - start) // unit // 2 * unit
        middle = max(middle, start + unit)
        yield from _zero_units(buffer, start, middle, unit)
        yield from _zero_units(buffer, middle, end, unit)
