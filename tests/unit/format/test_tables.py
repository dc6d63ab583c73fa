"""What a descriptor of compressed data can name."""

from __future__ import annotations

import pytest

from qcow2c.errors import LimitExceeded
from qcow2c.format.geometry import Geometry
from qcow2c.format.tables import compressed_entry, compressed_extent, require_nameable

LAST_SECTOR = (1 << 56) - 512


@pytest.mark.parametrize(
    ("geometry", "end"),
    [
        (Geometry(9, 4), LAST_SECTOR),
        (Geometry(16, 4), (1 << 54) - 1),  # The more bits a cluster has, the fewer are left for its offset.
        (Geometry(21, 4), (1 << 49) - 1),
    ],
)
def test_compressed_data_ends_where_a_descriptor_can_name_it(geometry: Geometry, end: int) -> None:
    require_nameable(end - 700, 700, geometry)
    found = compressed_extent(compressed_entry(end - 700, 700, geometry), geometry)
    assert found.host_offset == end - 700
    with pytest.raises(LimitExceeded, match=f"no entry can name compressed data at {end - 699:#x}"):
        require_nameable(end - 699, 700, geometry)
