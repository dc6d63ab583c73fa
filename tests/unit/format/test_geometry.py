"""Geometry: sizes that follow from a header, against the specification's own arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.format.geometry import Geometry

geometries = st.builds(Geometry, st.integers(14, 21), st.integers(0, 6), st.booleans(), st.booleans())


@pytest.mark.parametrize(
    ("cluster_bits", "extended", "entries", "coverage"),
    [
        (9, False, 64, 32 << 10),
        (16, False, 8192, 512 << 20),
        (21, False, 1 << 18, 512 << 30),
        (16, True, 4096, 256 << 20),
    ],
)
def test_an_l2_table_is_one_cluster_of_entries(
    cluster_bits: int, *, extended: bool, entries: int, coverage: int
) -> None:
    geometry = Geometry(cluster_bits, 4, extended_l2=extended)
    assert geometry.l2_entries == entries
    assert 1 << geometry.l2_coverage_bits == coverage
    assert geometry.l2_entries * geometry.l2_entry_words * 8 == geometry.cluster_size


@given(geometries)
def test_sizes_agree_with_each_other(geometry: Geometry) -> None:
    assert geometry.subcluster_size * geometry.subclusters == geometry.cluster_size
    assert geometry.words_per_cluster * 8 == geometry.cluster_size
    assert geometry.refcount_max.bit_length() == geometry.refcount_bits
    assert (1 << geometry.refcount_block_bits) * geometry.refcount_bits == geometry.cluster_size * 8


@given(geometries, st.integers(0, 1 << 60))
def test_clusters_and_l1_entries_are_as_few_as_hold_it_all(geometry: Geometry, size: int) -> None:
    clusters, entries = geometry.clusters(size), geometry.l1_entries(size)
    assert (clusters - 1) * geometry.cluster_size < size <= clusters * geometry.cluster_size
    coverage = geometry.l2_entries * geometry.cluster_size
    assert (entries - 1) * coverage < size <= entries * coverage


def test_only_standard_entries_of_version_3_have_a_zero_bit() -> None:
    assert Geometry(16, 4).has_zero_bit
    assert not Geometry(16, 4, version=2).has_zero_bit
    assert not Geometry(16, 4, extended_l2=True).has_zero_bit


@given(st.integers(0, 1 << 40), st.integers(0, 200))
def test_compressed_data_ends_with_its_last_sector(host_offset: int, additional_sectors: int) -> None:
    end = host_offset + Geometry(16, 4).compressed_length(host_offset, additional_sectors)
    assert end % 512 == 0 and end // 512 == host_offset // 512 + additional_sectors + 1
