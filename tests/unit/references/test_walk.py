"""The walk: every owner of clusters is named, and tables in holes are not read."""

from __future__ import annotations

from pathlib import Path

from qcow2c.format.header import Header
from qcow2c.references.walk import ACTIVE, Owner, Walk
from qcow2c.storage.sources import LocalFile, Memory
from tests.building import Builder, deflate


def test_the_walk_names_every_owner() -> None:
    builder = Builder(1 << 22, cluster_bits=12)
    builder.data(0, b"x")
    builder.compressed(9, deflate(bytes(4096)))
    builder.one_bitmap(0)
    builder.snapshot(b"a")
    builder.data(100, b"new")
    store = Memory(builder.build())
    walk = Walk(store, Header.load(store))
    owners = {references.owner for references in walk if len(references.offsets)}
    assert owners == {
        Owner.HEADER,
        Owner.L1_TABLE,
        Owner.SNAPSHOT_L1_TABLE,
        Owner.SNAPSHOT_TABLE,
        Owner.REFCOUNT_TABLE,
        Owner.REFCOUNT_BLOCK,
        Owner.BITMAP_DIRECTORY,
        Owner.BITMAP_TABLE,
        Owner.L2_TABLE,
        Owner.SNAPSHOT_L2_TABLE,
        Owner.DATA,
        Owner.COMPRESSED,
        Owner.SNAPSHOT_DATA,
        Owner.SNAPSHOT_COMPRESSED,
    }
    assert [state.index for state in walk.states()] == [ACTIVE, 0]


def test_l2_tables_in_holes_of_the_file_are_not_read(tmp_path: Path) -> None:
    builder = Builder(1 << 40, cluster_bits=16)
    builder.data(0, b"x")
    base = builder.end + (100 << 16)
    for index in range(1, 500):
        builder.l1[index] = base + index * 65536
    path = tmp_path / "sparse"
    path.write_bytes(builder.build())
    with path.open("r+b") as file:
        file.truncate(base + 600 * 65536)
    store = LocalFile(path)
    walk = Walk(store, Header.load(store))
    assert len(walk.l2_tables().offsets) == 500
    assert len(walk.stored_tables().offsets) == 1
    store.close()
