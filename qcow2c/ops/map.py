"""`map`: which bytes of the disk hold data or zeros, in which layer of the chain, and where in its file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from qcow2c.disk_map import DATA, OFFSET, PRESENT, ZERO, DiskMap
from qcow2c.image import Image
from qcow2c.layer import Layer


class Extent(NamedTuple):
    """Bytes of the disk of one kind: `offset` in the file of the layer at `depth` (0: the top), None without one."""

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    offset: int | None


def extents(image: Image | Layer, start: int = 0, max_length: int | None = None) -> Iterator[Extent]:
    """Yield the map of an open image, as `qemu-img map --output=json` prints it. Raises as `DiskMap.columns`."""
    layer = image.layer if isinstance(image, Image) else image
    for columns in DiskMap(layer).columns(start, max_length):
        for at, length, depth, flags, offset in zip(*columns, strict=True):
            place = offset if flags & OFFSET else None
            yield Extent(at, length, depth, bool(flags & PRESENT), bool(flags & ZERO), bool(flags & DATA), place)
