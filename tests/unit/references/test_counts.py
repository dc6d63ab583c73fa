"""References are counted as a loop in plain Python counts them, in one window or in many."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings

from qcow2c.format.header import Header
from qcow2c.ops.check import check
from qcow2c.references import counts
from qcow2c.references.check_result import CheckResult
from qcow2c.references.walk import Owner, Walk
from qcow2c.storage.sources import Memory
from tests.building import L1_COPIED, Builder
from tests.drawn_images import images
from tests.profile import DEEP


def counted(data: bytes) -> tuple[Counter[int], int]:
    """Count references cluster by cluster, and those past the end, one entry at a time."""
    store = Memory(data)
    header = Header.load(store)
    walk = Walk(store, header)
    size, found, past = header.cluster_size, Counter[int](), 0
    for references in walk:
        for offset, length, weight in zip(
            references.offsets.tolist(), references.lengths.tolist(), references.weights.tolist(), strict=True
        ):
            if references.owner is Owner.REFCOUNT_BLOCK:
                found[offset // size] += weight
            elif offset + length - len(data) >= size:
                past += weight
            else:
                for cluster in range(offset // size, (offset + length - 1) // size + 1):
                    found[cluster] += weight
    return found, past


def test_refcounts_that_agree_are_clean() -> None:
    builder = Builder(cluster_bits=12)
    for cluster in range(40):
        builder.data(cluster, b"x")
    assert check(builder.build()).exit_code == 0


@settings(max_examples=1000 if DEEP else 80)
@given(images())
def test_mismatches_are_those_of_a_count_one_by_one(builder: Builder) -> None:
    data = builder.build()
    header = Header.load(Memory(data))
    found, _past = counted(data)
    result = check(data)
    if result.failed is not None:
        return
    limit = header.geometry.refcount_max
    expected = {}
    clusters = -(-len(data) // header.cluster_size)
    for cluster in range(clusters + bool(found[clusters])):
        references, refcount = min(found[cluster], limit), builder.refcounts[cluster] & limit
        if references != refcount:
            expected[cluster] = (refcount, references)
    got = {item.cluster: (item.refcount, item.references) for item in result.mismatches}
    assert got == expected


@settings(max_examples=1000 if DEEP else 40)
@given(images())
def test_many_windows_find_what_one_window_finds(builder: Builder) -> None:
    data = builder.build()
    whole = check(data)
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(counts, "WINDOW_BYTES", 1)
        parts = check(data)
    assert comparable(parts) == comparable(whole)


def comparable(result: CheckResult) -> dict[str, object]:
    return {key: value for key, value in vars(result).items() if key != "overlaps"}


def test_l1_entries_that_name_one_table_count_it_each_time() -> None:
    builder = Builder(1 << 22, cluster_bits=12)
    builder.data(0, b"x")
    builder.l1[1] = builder.l1[0]
    result = check(builder.build())
    table = (builder.l1[0] & ~L1_COPIED) // 4096
    wrong = {item.cluster: item.references for item in result.mismatches}
    assert wrong[table] == 2 and sorted(wrong.values()) == [2, 2]
    assert result.allocated_clusters == 2
