"""What a walk believes of a header that breaks limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qcow2c.constants import Limit
from qcow2c.forensic.limits import bounded, has_geometry
from qcow2c.format.header import Header
from qcow2c.storage.sources import Memory
from tests.building import Builder

HEADER = Header.load(Memory(Builder().build()))


@pytest.mark.parametrize(("field", "value"), [("cluster_bits", 40), ("cluster_bits", 3), ("refcount_order", 7)])
def test_a_header_without_a_geometry_is_known(field: str, value: int) -> None:
    assert has_geometry(HEADER)
    assert not has_geometry(replace(HEADER, **{field: value}))


def test_what_is_too_much_is_cut() -> None:
    found = bounded(replace(HEADER, l1_size=1 << 31, nb_snapshots=1 << 31, refcount_table_clusters=1 << 31))
    assert (found.l1_size, found.nb_snapshots) == (Limit.L1_ENTRIES, Limit.SNAPSHOTS)
    assert found.refcount_table_clusters << HEADER.cluster_bits == Limit.REFCOUNT_TABLE_BYTES
    assert bounded(HEADER) == HEADER
