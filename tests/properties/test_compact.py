"""Any image, compact: each state the same, no leak, never larger than it need be; and packing against a naive model."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

import qcow2c
from qcow2c.builder.census import PackedPlan
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header
from qcow2c.format.tables import compressed_entry, compressed_extents
from qcow2c.ops import snapshots
from qcow2c.ops.compact import compact
from qcow2c.storage.sources import Memory
from qcow2c.structs import SECTOR_SIZE
from qcow2c.testing import images, operations
from qcow2c.testing.histories import Action
from qcow2c.testing.images import apply
from tests.profile import DEEP

ACTIONS = tuple(action for action in Action if action is not Action.REOPEN)


def states(image: bytes) -> list[Any]:
    with qcow2c.open(image) as active:
        return [active.readall(), *((found.name, found.open().readall()) for found in active.snapshots.list())]


@settings(max_examples=500 if DEEP else 20)
@given(images(), st.data())
def test_each_state_is_the_same_and_nothing_is_left_over(image: bytes, data: DataObject) -> None:
    file = bytearray(image)
    may_share = Header.load(Memory(image)).refcount_order > 1
    for number in range(data.draw(st.integers(0, 3)) if may_share else 0):
        snapshots.create(file, f"s{number}")
        with qcow2c.open(file, "r+") as written:
            for operation in data.draw(
                st.lists(operations(written.size(), written.geometry.cluster_size, ACTIONS), max_size=4)
            ):
                apply(written, operation)
    before = bytes(file)
    for how in ({}, {"compress": True}):
        copy = bytearray()
        found = compact(before, copy, **how)
        assert states(bytes(copy)) == states(before)
        checked = qcow2c.check(bytes(copy))
        assert (checked.exit_code, checked.leaks) == (0, 0), list(checked.messages)
        assert found.compacted_length == len(copy)
        again = compact(bytes(copy), **how)
        assert again.zero_clusters == 0 and again.data_clusters == found.data_clusters


@settings(max_examples=1000 if DEEP else 60)
@given(st.integers(0, 1 << 32), st.integers(9, 14), st.integers(0, 6))
def test_packed_data_keeps_its_bytes_and_shares_them_as_before(seed: int, cluster_bits: int, order: int) -> None:
    chooser = random.Random(seed)
    geometry = Geometry(cluster_bits, order)
    size = geometry.cluster_size
    file = chooser.randbytes(40 * size)
    words, at = set(), 0
    room = {cluster: geometry.refcount_max for cluster in range(41)}
    while at < 35 * size:
        at += chooser.choice((0, 0, 0, 1, 100, 512, size, 3 * size))
        length = chooser.randint(1, size - 1)
        last = (at + length - 1) // SECTOR_SIZE * SECTOR_SIZE // size
        if all(room[cluster] for cluster in range(at // size, last + 1)):
            words.add(compressed_entry(at, length, geometry))
            for cluster in range(at // size, last + 1):
                room[cluster] -= 1
        at += length
    old = np.array(sorted(words), dtype=np.uint64)
    plan = PackedPlan(old, np.ones(len(old), dtype=np.uint64), geometry)
    area = b"".join(file[start:end].ljust(end - start, b"\0") for start, end in plan.runs)
    assert len(area) == plan.length <= len(file)
    starts, lengths = compressed_extents(plan.words, geometry)
    counts = [0] * len(plan.counts)
    for start, length, new in zip(starts.tolist(), lengths.tolist(), plan.offsets.tolist(), strict=True):
        assert area[new : new + length] == file[start : start + length]
        assert new % SECTOR_SIZE == start % SECTOR_SIZE
        for cluster in range(new // size, (new + length - 1) // size + 1):
            counts[cluster] += 1
    assert counts == plan.counts.tolist() and max(counts) <= geometry.refcount_max
