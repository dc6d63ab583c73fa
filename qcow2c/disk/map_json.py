"""The map of a disk as JSON, in the words of qemu-img."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from qcow2c.disk.map import COMPRESSED, DATA, OFFSET, PRESENT, ZERO, DiskMap

_LINE = '{{ "start": %d, "length": %d, "depth": %d, "present": {}, "zero": {}, "data": {}, "compressed": {}{}}}'


def map_json(disk: DiskMap, start: int = 0, max_length: int | None = None) -> Iterator[str]:
    """Yield the text piece by piece: an array, an object a line. Raises as `DiskMap.columns`."""
    # Without an offset its value is there all the same, printed with no characters.
    lines = [
        _LINE.format(
            *("true" if flags & flag else "false" for flag in (PRESENT, ZERO, DATA, COMPRESSED)),
            ', "offset": %d' if flags & OFFSET else "%.0s",
        )
        for flags in range(COMPRESSED << 1)
    ]
    yield "["
    before = ""
    for columns in disk.located(start, max_length):
        values = zip(columns.starts, columns.lengths, columns.depths, columns.offsets, strict=True)
        yield before + ",\n".join(map(lines.__getitem__, columns.flags)) % tuple(chain.from_iterable(values))
        before = ",\n"
    if not before:
        yield lines[0] % (start, 0, 0, 0)
    yield "]\n"
