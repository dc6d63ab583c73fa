"""A set of host clusters: runs that overlap, single ones, and what lies within a range."""

from __future__ import annotations

from qcow2c.references.cluster_set import ClusterSet


def test_a_set_of_clusters() -> None:
    clusters = ClusterSet([(5, 7), (1, 3), (2, 4), (20, 30)])
    clusters.add(40)
    assert [cluster for cluster in range(50) if cluster in clusters] == [1, 2, 3, 5, 6, *range(20, 30), 40]
    assert list(clusters.within(0, 6)) == [(1, 4), (5, 6)]
    assert list(clusters.within(25, 45)) == [(25, 30), (40, 41)]
    assert list(clusters.within(8, 20)) == []
