"""The plan of a new image: everything lies together, describes itself, and is no larger than it must be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.builder.plan import ImageLayout, l1_entries_of, plan
from qcow2c.errors import UsageError
from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import refcounts
from qcow2c.format.tables import L1_COPIED, L2_COPIED, native

orders, external = st.integers(0, 6), st.booleans()
geometries = st.builds(Geometry, st.integers(9, 16), orders, external_data=external) | st.builds(
    Geometry, st.integers(14, 16), orders, extended_l2=st.just(value=True), external_data=external
)


def contents(layout: ImageLayout) -> bytes:
    """Return the metadata behind the header, as the parts say."""
    size = layout.geometry.cluster_size
    found = bytearray(size)
    for offset, part in layout.parts():
        assert offset == len(found) and len(part) % size == 0, "without gaps, in whole clusters"
        found += part
    return bytes(found)


@given(geometry=geometries, size=st.integers(0, 3 << 20), allocated=st.booleans())
def test_refcounts_describe_all_that_is_in_use_and_nothing_else(
    geometry: Geometry, size: int, *, allocated: bool
) -> None:
    layout = plan(geometry, size, allocated=allocated)
    data = contents(layout)
    cluster = geometry.cluster_size
    assert len(data) == layout.first_data * cluster
    table = native(data[layout.refcount_table * cluster : layout.first_refcount_block * cluster]).tolist()
    blocks = [offset for offset in table if offset]
    assert len(blocks) == layout.refcount_blocks and not any(table[len(blocks) :])
    counted = [
        int(count) for at in blocks for count in refcounts(data[at : at + cluster], geometry.refcount_order).tolist()
    ]
    assert counted == [1] * layout.end + [0] * (len(counted) - layout.end)


@given(geometry=geometries, size=st.integers(1, 3 << 20), allocated=st.booleans())
def test_every_guest_cluster_has_its_host_cluster_in_order_or_none(
    geometry: Geometry, size: int, *, allocated: bool
) -> None:
    layout = plan(geometry, size, allocated=allocated)
    data, cluster = contents(layout), geometry.cluster_size
    l1 = native(data[layout.l1_table * cluster :][: layout.l1_entries * 8]).tolist()
    hosts = []
    for entry in l1:
        if entry:
            assert entry & L1_COPIED
            at = entry & ~L1_COPIED
            hosts += native(data[at : at + cluster]).tolist()[:: geometry.l2_entry_words]
    first = 0 if geometry.external_data else layout.first_data
    clusters = geometry.clusters(size) if allocated else 0
    assert hosts[:clusters] == [(first + number) * cluster | L2_COPIED for number in range(clusters)]
    assert not any(hosts[clusters:])


@pytest.mark.parametrize(("cluster_bits", "size"), [(9, 129 << 30), (9, 1 << 60)])
def test_a_disk_that_no_l1_table_can_map_is_refused(cluster_bits: int, size: int) -> None:
    with pytest.raises(UsageError, match="too large for file format"):
        plan(Geometry(cluster_bits, 4), size, allocated=False)
    with pytest.raises(UsageError, match="too large for file format"):
        l1_entries_of(Geometry(cluster_bits, 4), size)


def test_a_file_that_no_refcount_table_can_describe_is_refused() -> None:
    with pytest.raises(UsageError, match="too large for file format"):
        plan(Geometry(9, 6), 100 << 30, allocated=True)
