"""What of a header that breaks limits a walk may believe all the same. It judges nothing: that is done by the rules."""

from __future__ import annotations

from dataclasses import replace

from qcow2c.constants import Limit
from qcow2c.format.header import Header


def has_geometry(header: Header) -> bool:
    """Return whether sizes can be computed from the header at all."""
    if not header.has_valid_cluster_bits or header.refcount_order not in Limit.REFCOUNT_ORDER:
        return False
    return not header.extended_l2 or header.cluster_bits in Limit.EXTENDED_L2_CLUSTER_BITS


def bounded(header: Header) -> Header:
    """Return a header that announces no more than a sound one may."""
    return replace(
        header,
        l1_size=min(header.l1_size, Limit.L1_ENTRIES),
        nb_snapshots=min(header.nb_snapshots, Limit.SNAPSHOTS),
        refcount_table_clusters=min(header.refcount_table_clusters, Limit.REFCOUNT_TABLE_BYTES >> header.cluster_bits),
    )
