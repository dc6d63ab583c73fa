"""Overlaps: clusters of metadata with more references than their own structure has."""

from __future__ import annotations

import numpy as np

from qcow2c.references.overlaps import Overlap, overlaps
from qcow2c.references.sweep import Window
from qcow2c.references.walk import Owner, References

BITS, END = 9, 100 * 512


def structure(owner: Owner, *places: tuple[int, int], weight: int = 1) -> References:
    """Return references to bytes of the file: offset and length of each."""
    offsets, lengths = np.array(places, dtype=np.uint64).reshape(-1, 2).T
    return References(owner, offsets, lengths, np.full(len(places), weight, np.uint64))


def window(first: int, end: int, **references: int) -> Window:
    counts = np.ones(end - first, dtype=np.uint32)
    for name, count in references.items():
        counts[int(name.removeprefix("c")) - first] = count
    return Window(first, end, counts, counts)


def found(metadata: list[References], seen: Window) -> list[Overlap]:
    return list(overlaps(metadata, seen, BITS, END))


def test_a_cluster_with_the_references_of_its_structure_is_none() -> None:
    metadata = [structure(Owner.L1_TABLE, (512, 1000)), structure(Owner.L2_TABLE, (4096, 512), weight=3)]
    assert found(metadata, window(0, 20, c8=3)) == []


def test_one_reference_more_is_told_with_cluster_and_owner() -> None:
    metadata = [structure(Owner.L1_TABLE, (512, 1000)), structure(Owner.REFCOUNT_TABLE, (4096, 512))]
    assert found(metadata, window(0, 20, c2=2, c8=5)) == [
        Overlap(2, Owner.L1_TABLE, 2),
        Overlap(8, Owner.REFCOUNT_TABLE, 5),
    ]
    assert str(Overlap(8, Owner.REFCOUNT_TABLE, 5)) == "ERROR cluster 8 of the refcount table has 5 references"


def test_only_clusters_of_the_window_are_looked_at() -> None:
    metadata = [structure(Owner.L1_TABLE, (0, 20 * 512))]
    assert [overlap.cluster for overlap in found(metadata, window(5, 10, c5=2, c9=2))] == [5, 9]


def test_bitmaps_and_what_lies_past_the_end_are_left_out() -> None:
    metadata = [
        structure(Owner.BITMAP_DATA, (512, 512)),
        structure(Owner.SNAPSHOT_TABLE, (END, 512)),
        structure(Owner.SNAPSHOT_L1_TABLE, (1024, 0)),
    ]
    assert found(metadata, window(0, 120, c1=9, c2=9, c100=9)) == []
