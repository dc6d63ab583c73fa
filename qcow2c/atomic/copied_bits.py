"""Copied bits of L2 entries: which are wrong, given which clusters have refcount 1. Writes nothing.

Spec: "L2 table entry".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.format import tables
from qcow2c.references.walk import L2Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import I64Array, U64Array


def corrected(batch: L2Batch, once: NDArray[np.bool_], cluster_bits: int) -> tuple[I64Array, U64Array]:
    """Return the rows of the tables of a batch with a wrong copied bit, and their words as they should be.

    `once` says of each cluster of the file whether its refcount is 1. The words have shape (rows, words of a table).
    """
    entries = batch.entries
    hosts = entries & np.uint64(tables.L2_OFFSET)
    has_cluster = (hosts != 0) & ((entries & np.uint64(tables.L2_COMPRESSED)) == 0)
    clusters = hosts >> np.uint64(cluster_bits)
    inside = clusters < np.uint64(len(once))  # Always, but for damaged images that are opened with trust.
    right = has_cluster & inside & once[np.where(inside, clusters, np.uint64(0)).view(np.int64)]
    wrong = has_cluster & (((entries & np.uint64(tables.L2_COPIED)) != 0) != right)
    changed = np.flatnonzero(wrong.any(axis=1))
    fixed = entries[changed] ^ np.where(wrong[changed], np.uint64(tables.L2_COPIED), np.uint64(0))
    if batch.bitmaps is not None and len(changed):
        fixed = np.stack((fixed, batch.bitmaps[changed]), axis=2).reshape(len(changed), -1)
    return changed, fixed
