"""The VM state of a snapshot as a file: what its L1 table maps beyond the disk."""

from __future__ import annotations

import pytest

import qcow2c
from qcow2c.errors import LimitExceeded
from qcow2c.layers.vm_state import VmState
from tests.building import L1_COPIED, L2_COPIED, Builder, packed_words

SIZE = 4096
STATE = b"state of the machine" * 500


def with_vm_state(length: int = len(STATE), *, tables: int = 1) -> Builder:
    """An image of one L2 table, with a snapshot that has another one for the VM state."""
    builder = Builder(512 * SIZE)
    builder.data(0, b"disk")
    clusters = -(-len(STATE) // SIZE)
    at = builder.put(STATE.ljust(clusters * SIZE, b"\0"))
    table = builder.put(packed_words([(at + number * SIZE) | L2_COPIED for number in range(clusters)]))
    l1 = builder.put(packed_words([0, *[table | L1_COPIED] * tables]))
    builder.snapshot(b"one", vm_state_size=length, l1_table_offset=l1, l1_size=1 + tables)
    return builder


def test_it_reads_as_a_file_up_to_its_size() -> None:
    with qcow2c.open(with_vm_state().build()) as image:
        snapshot = image.snapshots["one"]
        with snapshot.vm_state() as buffered:
            assert buffered.read() == STATE
            buffered.seek(5000)
            assert buffered.read(20) == STATE[5000:5020]
        state = VmState(snapshot.open().layer, snapshot.record)
        assert state.size() == len(STATE)
        buffer = bytearray(b"?" * 100)
        assert state.readinto_at(buffer, len(STATE) - 30) == 30
        assert buffer == STATE[-30:] + b"?" * 70
        assert state.readinto_at(buffer, len(STATE) + 1) == 0


def test_a_snapshot_without_one_has_an_empty_file() -> None:
    builder = Builder()
    builder.snapshot(b"one")
    with qcow2c.open(builder.build()) as image:
        assert image.snapshots["one"].vm_state().read() == b""


@pytest.mark.parametrize(("length", "tables"), [(512 * SIZE + 1, 1), (1, 0)])
def test_more_than_the_table_can_map_is_refused(length: int, tables: int) -> None:
    refused = pytest.raises(LimitExceeded, match=f"VM state of {length} bytes")
    with qcow2c.open(with_vm_state(length, tables=tables).build()) as image, refused:
        image.snapshots["one"].vm_state()
