"""Where one state of an image lies: the active one, or that of an internal snapshot. It judges nothing.

Spec: "Cluster mapping", "Snapshots".
"""

from __future__ import annotations

from array import array

from qcow2c.constants import ENTRY_BYTES
from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.light import NamedTuple
from qcow2c.storage.store import Store


class LoadedState(NamedTuple):
    """Where one state of an image lies, the active one or a snapshot's."""

    header: Header
    l1_table: array[int]
    """The L1 entries: zeros where the file ends within the last cluster of the table, fewer where it ends before."""
    l1_offset: int
    l1_entries: int
    disk_size: int


def load_state(store: Store, header: Header, l1_offset: int, l1_entries: int, disk_size: int) -> LoadedState:
    """Return the state whose L1 table lies at `l1_offset`. Raises StoreError."""
    length = l1_entries * ENTRY_BYTES
    data = store.pread(length, l1_offset)
    is_whole = len(data) == length or not header.geometry.leaves(l1_offset + length, store.size())
    l1_table = layout.table_words(data, l1_entries) if is_whole else layout.words(data)
    return LoadedState(header, l1_table, l1_offset, l1_entries, disk_size)


def active_state(store: Store, header: Header) -> LoadedState:
    """Return the state that the header names. Raises StoreError."""
    return load_state(store, header, header.l1_table_offset, header.l1_size, header.size)
