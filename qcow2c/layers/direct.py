"""Where small reads go: straight to the file, if that is all there is to it. Everything else is the reader's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qcow2c.format.header import Header
from qcow2c.format.tables import L2_COPIED, L2_OFFSET, Table

IN_NO_FILE = -2
"""Where the zeros of a cluster are that is not allocated."""

NOT_SIMPLE = -1


def locator(
    l1_table: Sequence[int], l2_tables: Mapping[int, Table], header: Header, *, lies_on_nothing: bool
) -> Callable[[int, int], int]:
    """Return `locate(guest_offset, length)`: where bytes within one plain data cluster are in the file.

    It has everything at hand, makes no object, and waits for no turn; the caller has seen that the range lies on the
    disk. It returns IN_NO_FILE where the cluster is not allocated and nothing lies below, and NOT_SIMPLE for a table
    that is not loaded, an entry with any unusual bit, a range over the cluster's end.
    """
    geometry = header.geometry
    if geometry.extended_l2 or geometry.external_data or header.encrypted:
        return lambda _guest_offset, _length: NOT_SIMPLE
    cached = l2_tables.get
    cluster_bits, coverage_bits, l2_mask = geometry.cluster_bits, geometry.l2_coverage_bits, geometry.l2_entries - 1
    cluster_size, cluster_mask = geometry.cluster_size, geometry.cluster_size - 1
    plain_offset = L2_OFFSET & ~cluster_mask
    special = ~(plain_offset | L2_COPIED)
    l1_entries = len(l1_table)
    nowhere = IN_NO_FILE if lies_on_nothing else NOT_SIMPLE

    def locate(guest_offset: int, length: int) -> int:
        table = cached(guest_offset >> coverage_bits)
        if table is None:
            l1_index = guest_offset >> coverage_bits
            if l1_index >= l1_entries or l1_table[l1_index] or guest_offset + length > l1_index + 1 << coverage_bits:
                return NOT_SIMPLE  # The next table may hold something.
            return nowhere
        entry = table.words[guest_offset >> cluster_bits & l2_mask]
        inside = guest_offset & cluster_mask
        if entry & special or inside + length > cluster_size:
            return NOT_SIMPLE
        host_offset = entry & plain_offset
        return host_offset + inside if host_offset else nowhere

    return locate


def run_start(locate: Callable[[int, int], int], guest_offset: int, length: int, cluster_size: int) -> int:
    """Return where bytes are in the file that lie in one run there, in plain clusters; NOT_SIMPLE for all others."""
    first = min(length, cluster_size - guest_offset % cluster_size)
    start = locate(guest_offset, first)
    if start < 0:
        return NOT_SIMPLE
    for done in range(first, length, cluster_size):
        if locate(guest_offset + done, min(cluster_size, length - done)) != start + done:
            return NOT_SIMPLE
    return start
