"""Where a state of an image lies: its L1 table as far as the file holds it."""

from __future__ import annotations

from qcow2c.format.header import Header
from qcow2c.layers.state import active_state, load_state
from qcow2c.storage.sources import Memory
from tests.building import Builder


def test_the_active_state_is_the_one_that_the_header_names() -> None:
    builder = Builder(1 << 24)
    builder.data(0, b"x")
    builder.data(3000, b"y")
    store = Memory(builder.build())
    header = Header.load(store)
    state = active_state(store, header)
    assert state.l1_table.tolist() == builder.l1
    assert (state.l1_offset, state.l1_entries, state.disk_size) == (header.l1_table_offset, len(builder.l1), 1 << 24)


def test_a_table_that_the_file_cuts_off_is_as_long_as_the_file() -> None:
    builder = Builder()
    store = Memory(builder.build())
    header = Header.load(store)
    assert len(load_state(store, header, store.size() - 20, 9, 512).l1_table) == 2
    assert len(load_state(store, header, 1 << 40, 9, 512).l1_table) == 0
