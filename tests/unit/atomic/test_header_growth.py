"""Growing by the header alone: only where it is all that must change; anything else is left to the whole operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import qcow2c
from qcow2c.atomic.header_growth import grow_by_header
from qcow2c.format.header import Header
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Memory, WritableMemory
from tests.crash.recording import Recorder, crash_states

KIB = 1024


def new(size: int = 100 * KIB, **options: object) -> bytearray:
    data = bytearray()
    qcow2c.create(data, size, **({"cluster_size": 4096} | options))
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"x" * 5000, min(3000, size - 5000))
    return data


def grown(data: bytearray, size: int) -> bool:
    store = WritableMemory(data)
    return grow_by_header(Medium(store), Header.load(store), size)


def test_a_disk_grows_and_reads_as_zeros_behind_its_old_end() -> None:
    data = new(compat="0.10")
    assert grown(data, 300 * KIB)
    with qcow2c.open(bytes(data)) as image:
        assert image.pread(400 * KIB, 0) == (bytes(3000) + b"x" * 5000).ljust(300 * KIB, b"\0")
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_more_entries_of_the_l1_table_count_where_its_clusters_hold_them() -> None:
    data = new(cluster_size=512)
    entries = Header.load(Memory(bytes(data))).l1_size
    assert grown(data, 900 * KIB)
    assert Header.load(Memory(bytes(data))).l1_size > entries
    assert not grown(data, 4096 * KIB)  # 128 entries: another cluster.


def test_a_crash_leaves_the_old_size_or_the_new_one() -> None:
    before = bytes(new())
    recorder = Recorder()
    store = recorder.store(before)
    assert grow_by_header(Medium(store), Header.load(store), 200 * KIB)
    sizes = {Header.load(Memory(state.files[0])).size for state in crash_states(recorder, 1)}
    assert sizes == {100 * KIB, 200 * KIB}


def snapshot(data: bytearray) -> None:
    qcow2c.snapshots.create(data, "one")


def bitmap(data: bytearray) -> None:
    from qcow2c.ops import bitmaps

    bitmaps.add(data, "one")


def vm_state(data: bytearray) -> None:
    """Let the entry behind the disk lead somewhere."""
    at = Header.load(Memory(bytes(data))).l1_table_offset
    data[at + 8 : at + 16] = data[at : at + 8]


def stale_entry(data: bytearray) -> None:
    with qcow2c.open(bytes(data)) as image:
        table = int(image.layer.l1_table[0]) & ~(1 << 63)
    data[table + 26 * 8 : table + 27 * 8] = b"\x80" + bytes(5) + b"\x50\0"


@pytest.mark.parametrize("harm", [bitmap, vm_state, stale_entry])
def test_what_more_is_concerned_is_left_to_the_whole_operation(harm: Callable[[bytearray], None]) -> None:
    data = new()
    harm(data)
    before = bytes(data)
    assert not grown(data, 3000 * KIB)
    assert data == before


def test_an_end_within_a_cluster_and_version_2_with_snapshots_are_not_for_the_header() -> None:
    assert not grown(new(100 * KIB + 512), 200 * KIB)
    data = new(compat="0.10")
    snapshot(data)
    assert not grown(data, 200 * KIB)
    assert not grown(new(), 50 * KIB)
    with_snapshot = new()
    snapshot(with_snapshot)
    assert grown(with_snapshot, 200 * KIB)


def test_an_l1_table_that_would_run_into_another_structure_is_not_for_the_header() -> None:
    data = new()
    header = Header.load(Memory(bytes(data)))
    at = header.l1_table_offset
    data[24:32] = (4096 * 512).to_bytes(8, "big")  # One entry, which the table's cluster...
    other = header.refcount_table_offset
    data[40:48] = (other).to_bytes(8, "big")  # ... shares with the refcount table.
    before = bytes(data)
    assert at != other
    assert not grown(data, 20 << 20)
    assert data == before


def test_a_disk_that_ends_with_a_table_grows_unless_there_is_no_table_or_too_long_a_one() -> None:
    assert grown(new(64 * KIB, cluster_size=512), 96 * KIB)
    assert not grown(new(64 * KIB, cluster_size=512), 1 << 40)
    empty = bytearray()
    qcow2c.create(empty, 0)
    assert not grown(empty, 64 * KIB) or Header.load(Memory(bytes(empty))).l1_size
