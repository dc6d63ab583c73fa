"""What an image must be before it can have another version: without zero clusters, with complete snapshot records.

It says so to a `Successor`, which lets it become the image: see there for the order, and for what a crash leaves. The
version itself is changed afterwards, in the header alone. Spec: "Header", "Cluster mapping", "Snapshots".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.atomic.snapshots import set_table, stored_records
from qcow2c.atomic.successor import Successor, stored_words
from qcow2c.constants import ENTRY_BYTES, Limit
from qcow2c.format import layout, tables
from qcow2c.format.derived import SNAPSHOT_EXTRA_DATA, SNAPSHOT_HEADER
from qcow2c.references.batches import batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import I64Array, U64Array


_RECORD_L1 = SNAPSHOT_HEADER["l1_table_offset"]
_RECORD_EXTRA = SNAPSHOT_HEADER["extra_data_size"]


def expand_zero_clusters(image: Successor) -> bool:
    """Let no state have zero clusters, and read as before; return whether there were any.

    Over a backing file each becomes a cluster of zeros, else none; one that has a host cluster of its own keeps it, for
    what it holds can be overwritten at once: it is not visible. The image has no subclusters and no external data file.
    Raises StoreError, LimitExceeded.
    """
    walk = image.walk
    found = walk.l2_tables()
    offsets, times = found.offsets, found.active + found.snapshot
    moved = offsets.copy()
    for row, batch in batches(walk, found):
        special = batch.entries & np.uint64(tables.L2_ZERO | tables.L2_COMPRESSED)
        is_zero = special == np.uint64(tables.L2_ZERO)
        for number in np.flatnonzero(is_zero.any(axis=1)).tolist():
            words, references = batch.entries[number].copy(), int(times[row + number])
            _expand(image, words, np.flatnonzero(is_zero[number]), references)
            image.count(int(offsets[row + number]), image.geometry.cluster_size, -references)
            moved[row + number] = image.place(stored_words(words), references)
    if np.array_equal(moved, offsets):
        return False
    image.set_active(_renamed(image.active_l1(), offsets, moved))
    records = stored_records(image, image.snapshots.records)
    for position, record in enumerate(image.snapshots.records):
        old = walk.words(record.l1_table_offset, record.l1_size)
        new = _renamed(old, offsets, moved)
        if not np.array_equal(old, new):
            image.count(record.l1_table_offset, record.l1_size * ENTRY_BYTES, -1)
            records[position] = _with_field(records[position], _RECORD_L1, image.place(stored_words(new)))
    if records != stored_records(image, image.snapshots.records):
        set_table(image, records)
    return True


def _renamed(words: U64Array, offsets: U64Array, moved: U64Array) -> U64Array:
    """Return L1 entries with the new places of L2 tables."""
    found = words.copy()
    named = np.flatnonzero(words & np.uint64(tables.L1_OFFSET))
    at = words[named] & np.uint64(tables.L1_OFFSET)
    found[named] = moved[np.searchsorted(offsets, at)] | (words[named] & np.uint64(tables.L1_COPIED))
    return found


def _expand(image: Successor, words: U64Array, rows: I64Array, references: int) -> None:
    """Replace the zero clusters of an L2 table, which so many L1 entries name."""
    size = image.geometry.cluster_size
    copied = np.uint64(tables.L2_COPIED if references == 1 else 0)
    hosts = words[rows] & np.uint64(tables.L2_OFFSET)
    words[rows] = 0
    own = _own(image, hosts, references)
    for host in hosts[own].tolist():
        image.medium.write_zeroes(host, size)
    words[rows[own]] = hosts[own] | copied
    for host in hosts[~own & (hosts != 0)].tolist():
        image.count(host, size, -references)
    if image.header.backing_file is None:
        return
    rows = rows[~own]
    if len(rows):
        length = len(rows) * size
        at = image.append(length)
        image.count(at, length, references)
        image.medium.write_zeroes(at, length)
        words[rows] = (np.arange(len(rows), dtype=np.uint64) * np.uint64(size) + np.uint64(at)) | copied


def _own(image: Successor, hosts: U64Array, references: int) -> NDArray[np.bool_]:
    """Tell which host clusters, 0 for none, only these entries refer to, each once."""
    clusters = (hosts >> np.uint64(image.geometry.cluster_bits)).view(np.int64)
    own: NDArray[np.bool_] = hosts != 0
    _, inverse, times = np.unique(clusters, return_inverse=True, return_counts=True)
    own &= times[inverse] == 1
    for block in np.unique(clusters[own] >> image.geometry.refcount_block_bits).tolist():
        first = block << image.geometry.refcount_block_bits
        rows = np.flatnonzero(own & (clusters >> image.geometry.refcount_block_bits == block))
        counts = image.refcounts(first, 1 << image.geometry.refcount_block_bits)
        own[rows] = counts[clusters[rows] - first] == np.uint64(references)
    return own


def has_compressed_clusters(image: Successor) -> bool:
    """Return whether any state has compressed clusters."""
    walk = image.walk
    found = (batch.entries & np.uint64(tables.L2_COMPRESSED) for _, batch in batches(walk, walk.l2_tables()))
    return any(packed.any() for packed in found)


def has_zero_clusters(image: Successor) -> bool:
    """Return whether any state has clusters that are marked as zeros."""
    walk, mask = image.walk, np.uint64(tables.L2_ZERO | tables.L2_COMPRESSED)
    return any(
        (batch.entries & mask == np.uint64(tables.L2_ZERO)).any() for _, batch in batches(walk, walk.l2_tables())
    )


def widest_refcount(image: Successor, most: int) -> tuple[int, int] | None:
    """Return host offset and refcount of the first cluster whose refcount exceeds `most`, None without one."""
    bits = image.geometry.refcount_block_bits
    for block in np.flatnonzero(image.walk.refcount_table()).tolist():
        counts = image.refcounts(block << bits, 1 << bits)
        over = np.flatnonzero(counts > np.uint64(most))
        if len(over):
            cluster = int(over[0]) + (block << bits)
            return cluster << image.geometry.cluster_bits, int(counts[over[0]])
    return None


# --- snapshot records -----------------------------------------------------------------------------------------------


def complete_records(image: Successor) -> bool:
    """Give each snapshot record the extra data that version 3 demands; return whether any lacked it."""
    records = stored_records(image, image.snapshots.records)
    complete = Limit.V3_SNAPSHOT_EXTRA_BYTES
    changed = False
    for position, record in enumerate(image.snapshots.records):
        known = len(record.extra_data)
        if known < complete:
            extra = {"vm_state_size_large": record.vm_state_size, "disk_size": record.disk_size}
            added = SNAPSHOT_EXTRA_DATA.packed(extra)[known:complete]
            start = SNAPSHOT_HEADER.size + known
            stored = _with_field(records[position], _RECORD_EXTRA, complete)
            records[position] = stored[:start] + added + stored[start:]
            changed = True
    if changed:
        set_table(image, records)
    return changed


def _with_field(record: bytes, field: layout.Field, value: int) -> bytes:
    return record[: field.offset] + layout.stored_integer(value, field.size) + record[field.offset + field.size :]
