"""Emptying an image: its active disk lets go of every cluster, so that what lies below shows.

Snapshots, bitmaps and all other metadata stay as they are.
"""

from __future__ import annotations

import numpy as np

from qcow2c.storage import Store
from qcow2c.successor import Successor


def empty(image: Successor, data_store: Store | None = None) -> None:
    """Let the active disk show what lies below, and give the space of its clusters back.

    The caller has made durable, below, all that the disk shows: then the guest's view stays the same throughout.
    `data_store` is an external data file whose contents nobody needs then; the caller excludes others.

    Durable order: an empty L1 table and other refcounts in free space; the header that names them; then what was let
    go of is given back, in the data file, too. A crash leaves the image as it was, or empty. Raises StoreError,
    LimitExceeded, CorruptMetadata. Spec: "Cluster mapping".
    """
    entries = image.active_l1()
    image.add_references(entries, -1)
    image.set_active(np.zeros(len(entries), dtype=np.uint64))
    image.switch(discard=True)
    if data_store is not None:
        data_store.punch(0, data_store.size())
