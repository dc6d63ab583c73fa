"""What an image is before its version changes: no zero clusters, complete records, and the same disk in every state."""

from __future__ import annotations

import pytest

import qcow2c
from qcow2c.atomic.successor import changing
from qcow2c.atomic.version import complete_records, expand_zero_clusters, has_compressed_clusters, widest_refcount
from qcow2c.format.header import Header
from qcow2c.format.records import read_snapshots
from qcow2c.storage.sources import Memory, WritableMemory
from tests.building import L2_COPIED, L2_ZERO, Builder, deflate

SIZE = 4096
BELOW = b"b" * (64 * SIZE)


def with_zeros(*, backing: bool = False, snapshot: bool = False) -> Builder:
    builder = Builder(64 * SIZE)
    builder.data(0, b"a" * SIZE)
    builder.entry(1, L2_ZERO)
    builder.entry(2, builder.put(b"hidden" * 600) | L2_ZERO | L2_COPIED)
    builder.entry(5, L2_ZERO)
    if backing:
        builder.backing_file = b"below"
    if snapshot:
        builder.snapshot(b"one")
        builder.data(1, b"later")
    return builder


def states(data: bytes) -> list[bytes]:
    with qcow2c.open(data, backing=BELOW if Header.load(Memory(data)).backing_file else False) as image:
        found = [image.readall()]
        for snapshot in image.snapshots.list():
            found.append(snapshot.open().readall())
        return found


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("backing", [False, True])
def test_zero_clusters_go_and_every_state_reads_as_before(*, backing: bool, snapshot: bool) -> None:
    data = bytearray(with_zeros(backing=backing, snapshot=snapshot).build())
    before = states(bytes(data))
    with changing(WritableMemory(data)) as successor:
        assert expand_zero_clusters(successor)
        successor.switch(discard=True)
    assert states(bytes(data)) == before
    assert qcow2c.check(bytes(data)).exit_code == 0
    with qcow2c.open(bytes(data), backing=BELOW if backing else False) as image:
        kinds = {run.kind.name for run in image.layer.runs(0, image.size())}
        assert not kinds & {"ZERO", "ZERO_ALLOCATED"}
    with changing(WritableMemory(data)) as successor:
        assert not expand_zero_clusters(successor), "there are none any more"


def test_without_a_backing_file_zeros_need_no_cluster() -> None:
    data = bytearray(with_zeros().build())
    with changing(WritableMemory(data)) as successor:
        expand_zero_clusters(successor)
        successor.switch()
    with qcow2c.open(bytes(data)) as image:
        held = [(run.guest_offset, run.length) for run in image.layer.runs(0, image.size()) if run.kind.name == "DATA"]
    assert held == [(0, SIZE), (2 * SIZE, SIZE)], "but what it has of its own stays"


def test_records_get_what_version_3_demands() -> None:
    builder = Builder(64 * SIZE, version=2)
    builder.data(0, b"a")
    builder.snapshot(b"one", extra_data=b"")
    builder.snapshot(b"two", id_str=b"2", extra_data=bytes(8))
    builder.snapshot(b"three", id_str=b"3", extra_data=bytes(8) + (64 * SIZE).to_bytes(8, "big") + b"unknown!")
    data = bytearray(builder.build())
    with changing(WritableMemory(data)) as successor:
        assert complete_records(successor)
        successor.switch()
    store = Memory(bytes(data))
    found = read_snapshots(store, Header.load(store)).records
    assert [len(record.extra_data) for record in found] == [16, 16, 24]
    assert [record.disk_size for record in found] == [64 * SIZE] * 3
    assert found[2].extra_data.endswith(b"unknown!")
    with changing(WritableMemory(data)) as successor:
        assert not complete_records(successor)


def test_compressed_clusters_of_any_state_are_found() -> None:
    builder = Builder(64 * SIZE)
    builder.compressed(3, deflate(b"x" * SIZE))
    builder.snapshot(b"one")
    builder.data(3, b"now plain")
    for made, expected in ((builder, True), (with_zeros(), False)):
        with changing(bytearray(made.build())) as successor:
            assert has_compressed_clusters(successor) is expected


def test_the_first_refcount_that_is_too_wide_is_named() -> None:
    builder = Builder(64 * SIZE)
    shared = builder.data(0, b"x")
    builder.refcounts[shared // SIZE] = 300
    with changing(bytearray(builder.build())) as successor:
        assert widest_refcount(successor, 255) == (shared, 300)
        assert widest_refcount(successor, 300) is None
