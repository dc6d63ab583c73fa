"""Where one state of an image lies: the active one, or that of an internal snapshot. It judges nothing.

Spec: "Cluster mapping", "Snapshots".
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.storage.store import Store


class State(NamedTuple):
    """Where one state of an image lies, the active one or a snapshot's, with the part of its L1 table in the file."""

    header: Header
    l1_table: array[int]
    l1_offset: int
    l1_entries: int
    disk_size: int


def load_state(store: Store, header: Header, l1_offset: int, l1_entries: int, disk_size: int) -> State:
    """Return the state whose L1 table lies at `l1_offset`. Raises StoreError."""
    l1_table = layout.words(store.pread(l1_entries * 8, l1_offset))
    return State(header, l1_table, l1_offset, l1_entries, disk_size)


def active_state(store: Store, header: Header) -> State:
    """Return the state that the header names. Raises StoreError."""
    return load_state(store, header, header.l1_table_offset, header.l1_size, header.size)
