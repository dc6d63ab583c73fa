"""Table entries and geometries drawn by Hypothesis: every bit that means anything, alone and with others."""

from __future__ import annotations

from hypothesis import strategies as st

from qcow2c.format.geometry import Geometry

BITS = st.sampled_from([0, 1 << 63, 1 << 62, 1, 1 << 57, 1 << 5, 3 << 62, (1 << 63) | 1])
OFFSETS = st.sampled_from([0, 1 << 14, 3 << 14, 512, 1 << 55, 5 << 21])
ENTRIES = st.lists(st.builds(lambda bits, offset: bits | offset, BITS, OFFSETS), min_size=1, max_size=12)
HALVES = st.sampled_from([0, 1, 0xFFFFFFFF, 0x80000000, 0b1010, 0x0FF0])
BITMAPS = st.builds(lambda zeros, allocated: zeros << 32 | allocated, HALVES, HALVES)
GEOMETRIES = st.builds(
    Geometry,
    cluster_bits=st.integers(14, 21),
    refcount_order=st.just(4),
    extended_l2=st.booleans(),
    external_data=st.booleans(),
    version=st.sampled_from([2, 3]),
)
