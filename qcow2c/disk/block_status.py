"""The runs of a disk as QEMU's block status has them: one by one, not merged, with a flag that only QEMU sees.

What must answer as QEMU does, where the answer hangs on how it looks (`compare`, strictly), asks here; the map is
`map.py`. It reads no guest data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qcow2c.disk.map_layers import BELOW, OFFSET, PRESENT, ZERO, MappedLayer, Segment
from qcow2c.format.tables import Kind
from qcow2c.layers.layer import Layer, file_runs

END = BELOW << 1
"""A flag beside those of the map: the run ends with the disk."""

_L2_CACHE_BYTES, _SMALL_SLICE_BYTES = 32 << 20, 4096
"""QEMU's cache of L2 tables; where it cannot hold them all, it holds parts of them, of this size."""


def segments(layers: Sequence[MappedLayer], start: int, end: int) -> Iterator[Segment]:
    """Yield what QEMU finds in a range; `start` is where it begins to look, else the first one is its rest.

    Raises as `DiskMap.columns`.
    """
    units = [slice_bytes(mapped.layer) for mapped in layers]
    while start < end:
        _, length, depth, flags, offset = _segment(layers, units, start)
        yield start, min(length, end - start), depth, flags, offset
        start += length


def slice_bytes(layer: Layer) -> int:
    """Return the guest bytes of the part of an L2 table that QEMU looks through at once: none of its runs go over.

    It is 0 where there are no tables.
    """
    if layer.header is None:
        return 0
    geometry = layer.header.geometry
    entry_bytes = geometry.l2_entry_bytes
    table_bytes = geometry.clusters(geometry.clusters(layer.disk_size) * entry_bytes) * geometry.cluster_size
    cached = geometry.cluster_size
    if table_bytes > _L2_CACHE_BYTES:
        cached = min(cached, _SMALL_SLICE_BYTES)
    return cached // entry_bytes << geometry.cluster_bits


def _segment(layers: Sequence[MappedLayer], units: Sequence[int], at: int) -> Segment:
    size = layers[0].size
    stop, flags, offset = _status(layers[0], units[0], at, size)
    depth, end_of_top, is_end = 0, stop if stop == size else -1, False
    while flags & BELOW:
        depth += 1
        layer = layers[depth]
        if at >= layer.size:  # Zeros that count as if this layer held them.
            flags, is_end = ZERO | PRESENT, False
            break
        stop, flags, offset = _status(layer, units[depth], at, stop)
        # The end of a shorter disk is not forgotten, unless that disk decides anything.
        is_end = stop == layer.size and not flags & PRESENT
    if is_end or stop == end_of_top:
        flags |= END
    return at, stop - at, depth, flags, offset if flags & OFFSET else 0


def _status(mapped: MappedLayer, unit: int, at: int, end: int) -> tuple[int, int, int]:
    """Return what one layer, looked through `unit` bytes at once, says of a byte: up to where, flags, and its place."""
    layer, end = mapped.layer, min(end, mapped.size)
    if unit:
        end = min(end, at - at % unit + unit)
    run = layer.run_at(at, end - at)
    stop, flags = at + run.length, mapped.flags[run.kind]
    if mapped.preallocated and run.kind is Kind.DATA and flags & OFFSET:
        store, host_end = layer.data_store, run.host_offset + run.length
        part = next(file_runs(store, run.host_offset, run.length))
        if part.kind is not Kind.DATA:
            flags |= ZERO
        # A hole at the end of the file goes on behind it.
        if part.kind is Kind.DATA or run.host_offset + part.length < min(host_end, store.size()):
            stop = at + part.length
    return stop, flags, run.host_offset
