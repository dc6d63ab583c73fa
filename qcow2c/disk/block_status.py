"""The runs of a disk as QEMU's block status has them: one by one, not merged, with a flag that only QEMU sees.

Who must answer as QEMU does, where the answer hangs on how it looks (`compare`, strictly), asks here; the map is
`map.py`. It reads no guest data.
"""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.disk.map_layers import BELOW, OFFSET, PRESENT, ZERO, MappedLayer, raw_runs
from qcow2c.format.tables import Kind
from qcow2c.layers.layer import RawLayer
from qcow2c.layers.reader import Reader

END = BELOW << 1
"""A flag beside those of the map: the run ends with the disk."""

_L2_CACHE_BYTES, _SMALL_SLICE_BYTES = 32 << 20, 4096
"""QEMU's cache of L2 tables; where it cannot hold them all, it holds parts of them, of this size."""

Segment = tuple[int, int, int, int, int]
"""Start, length, depth, flags, offset, as in the columns of a map."""


def segments(top: MappedLayer, start: int, end: int) -> Iterator[Segment]:
    """Yield what QEMU finds in a range; `start` is where it begins to look, else the first one is its rest.

    Raises as `DiskMap.columns`.
    """
    while start < end:
        _, length, depth, flags, offset = _segment(top, start)
        yield start, min(length, end - start), depth, flags, offset
        start += length


def slice_bytes(reader: Reader) -> int:
    """Return the guest bytes of the part of an L2 table that QEMU looks through at once: none of its runs go over."""
    geometry = reader.geometry
    entry_bytes = geometry.l2_entry_words * 8
    table_bytes = geometry.clusters(geometry.clusters(reader.disk_size) * entry_bytes) * geometry.cluster_size
    cached = geometry.cluster_size
    if table_bytes > _L2_CACHE_BYTES:
        cached = min(cached, _SMALL_SLICE_BYTES)
    return cached // entry_bytes << geometry.cluster_bits


def _segment(top: MappedLayer, at: int) -> Segment:
    stop, flags, offset = _status(top, at, top.size)
    layer, end_of_top, is_end = top, stop if stop == top.size else -1, False
    while flags & BELOW and layer.below is not None:
        layer = layer.below
        if at >= layer.size:  # Zeros that count as if this layer held them.
            flags, is_end = ZERO | PRESENT, False
            break
        stop, flags, offset = _status(layer, at, stop)
        # The end of a shorter disk is not forgotten, unless that disk decides anything.
        is_end = stop == layer.size and not flags & PRESENT
    if is_end or stop == end_of_top:
        flags |= END
    return at, stop - at, layer.depth, flags, offset if flags & OFFSET else 0


def _status(mapped: MappedLayer, at: int, end: int) -> tuple[int, int, int]:
    """Return what one layer says of a byte: up to where, flags, and the offset in its file."""
    layer, end = mapped.layer, min(end, mapped.size)
    if isinstance(layer, RawLayer):
        _, length, flags = next(raw_runs(layer.store, at, end))
        return at + length, flags, at
    unit, cluster_size = slice_bytes(layer), layer.geometry.cluster_size
    run = layer.run_at(at, min(end, at - at % unit + unit) - at)
    stop, flags = at + run.length, mapped.flags[run.kind]
    if run.kind is Kind.COMPRESSED:  # One by one.
        stop = min(stop, at - at % cluster_size + cluster_size)
    elif run.kind is Kind.DATA and mapped.preallocated and flags & OFFSET:
        store, host_end = layer.data_store, run.host_offset + run.length
        _, length, found = next(raw_runs(store, run.host_offset, host_end))
        flags |= found & ZERO
        # A hole at the end of the file goes on behind it.
        if not found & ZERO or run.host_offset + length < min(host_end, store.size()):
            stop = at + length
    return stop, flags, run.host_offset
