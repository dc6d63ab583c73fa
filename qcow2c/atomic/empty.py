"""Emptying an image: its active disk releases every cluster, so that what lies below shows.

Snapshots, bitmaps and all other metadata stay as they are.
"""

from __future__ import annotations

import numpy as np

from qcow2c.atomic.successor import Successor, changing, freeing, stored_words
from qcow2c.errors import Span, StoreError
from qcow2c.references.batches import SCAN_CLUSTERS
from qcow2c.storage.sources import Store
from qcow2c.storage.store import lacks_room


def empty(image: Successor, data_store: Store | None = None, *, drop_trailing: bool = False) -> None:
    """Let the active disk show what lies below, and give the space of its clusters back.

    The caller has made durable, below, all that the disk shows: then the guest's view stays the same throughout.
    `data_store` is an external data file whose contents are not needed then; the caller excludes others. What lies in
    the file behind the image stays there, unless `drop_trailing`.

    Durable order: an empty L1 table and other refcounts in free space; the header that names them; then what was let
    go of is given back, in the data file, too; finally the file is made short in the same way. A crash leaves the image
    as it was, or empty. Raises StoreError, LimitExceeded, CorruptMetadata. Spec: "Cluster mapping".
    """
    trailing = None if drop_trailing else image.trailing_data()

    def change(successor: Successor) -> None:
        successor.keep(trailing)
        entries = successor.active_l1()
        successor.add_references(entries, -1)
        successor.set_active(np.zeros(len(entries), dtype=np.uint64))
        successor.renew_refcounts()
        # Else nothing is left behind the front of the file, and its end is cut off.
        successor.switch(discard=bool(image.header.nb_snapshots or image.header.bitmaps or successor.in_place))

    freeing(image, change)
    if data_store is not None:
        data_store.punch(0, data_store.size())
    store = image.medium.store
    try:
        _move_to_front(store, trailing)
    except StoreError as exc:
        if not lacks_room(exc):  # Else only the file is longer than it could be.
            raise
    _cut_off(store, trailing)


def _move_to_front(store: Store, trailing: Span | None) -> None:
    """Let the L1 table and the refcounts lie at the front of the file."""
    with changing(store) as image:
        image.keep(trailing)
        entries, size = image.active_l1(), image.active_l1().nbytes
        if size:
            image.count(image.header.l1_table_offset, size, -1)
            image.set_fields(l1_table_offset=image.place(stored_words(entries)))
        image.renew_refcounts()
        image.switch()


def _cut_off(store: Store, trailing: Span | None) -> None:
    """Let the file end behind the last cluster in use, or what is to be kept."""
    with changing(store) as image:
        end, used = image.geometry.clusters(store.size()), np.zeros(0, dtype=np.int64)
        while not len(used):  # The header is in use.
            first = max(0, end - SCAN_CLUSTERS)
            used = np.flatnonzero(image.refcounts(first, end - first))
            end = first
        file_end = end + int(used[-1]) + 1 << image.geometry.cluster_bits
        if trailing is not None:
            file_end = max(file_end, trailing.end)
        if file_end < store.size():
            store.truncate(file_end)
