"""Where refcount blocks are, and that no L2 table is read there."""

from __future__ import annotations

import pytest

import qcow2c
from qcow2c.errors import CorruptMetadata
from qcow2c.format.header import Header
from qcow2c.format.refcounts import BLOCK_OFFSET
from qcow2c.format.tables import L1_COPIED
from qcow2c.layers.refcount_places import refcount_places
from qcow2c.storage.sources import Memory

MIB = 1 << 20


def image(cluster_size: int = 4096) -> bytearray:
    data = bytearray()
    qcow2c.create(data, 4 * MIB, cluster_size=cluster_size)
    with qcow2c.open(data, "r+") as opened:
        opened.pwrite(b"x" * 3 * MIB, 0)
    return data


def header_of(data: bytearray) -> Header:
    return Header.load(Memory(bytes(data)))


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
def test_they_are_those_of_the_table(cluster_size: int) -> None:
    data = image(cluster_size)
    header = header_of(data)
    table = data[header.refcount_table_offset :][: header.refcount_table_clusters * cluster_size]
    words = {int.from_bytes(table[at : at + 8]) & BLOCK_OFFSET for at in range(0, len(table), 8)} - {0}
    assert refcount_places(Memory(bytes(data)), header) == words


@pytest.mark.parametrize("which", ["a refcount block", "refcount table"])
def test_an_l2_table_on_refcounts_is_an_error(which: str) -> None:
    data = image()
    header = header_of(data)
    block = min(refcount_places(Memory(bytes(data)), header))
    at = block if which == "a refcount block" else header.refcount_table_offset
    data[header.l1_table_offset : header.l1_table_offset + 8] = (at | L1_COPIED).to_bytes(8)
    with qcow2c.open(bytes(data)) as opened:
        with pytest.raises(CorruptMetadata, match=f"overlaps .*{which}"):
            opened.pread(512, 0)
        assert opened.pread(512, 2 * MIB) == b"x" * 512
    with qcow2c.open(bytes(data), on_error="zero") as opened:
        assert opened.pread(512, 0) == bytes(512)
        assert opened.salvaged
    with pytest.raises(CorruptMetadata, match="overlaps"):
        list(qcow2c.map(bytes(data)))
