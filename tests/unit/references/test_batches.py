"""Batches of L2 tables read ahead, and big arrays that lie in files."""

from __future__ import annotations

import os

import numpy as np
import pytest

from qcow2c.format.header import Header
from qcow2c.references import batches as module
from qcow2c.references.batches import batches, flat
from qcow2c.references.walk import BATCH_BYTES, Walk
from qcow2c.storage.sources import Memory
from tests.building import Builder


def test_batches_come_in_order_with_the_row_of_their_first_table() -> None:
    builder = Builder(1 << 33, cluster_bits=21)
    builder.l1 = [builder.allocate(1 << 21) for _ in range(7)]
    builder.fields["l1_size"] = 7
    store = Memory(builder.build())
    walk = Walk(store, Header.load(store))
    found = walk.l2_tables()
    rows, offsets = [], []
    for row, batch in batches(walk, found):
        rows.append(row)
        offsets += batch.offsets.tolist()
    assert rows == list(range(0, 7, max(1, BATCH_BYTES >> 21)))
    assert offsets == found.offsets.tolist()


@pytest.mark.parametrize("bound", [1 << 20, 1000])
def test_an_array_is_zeros_wherever_it_lies(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY_BYTES", bound)
    before = set(os.listdir("/proc/self/fd"))
    found = flat(1000, np.uint64)
    assert isinstance(found, np.memmap) == (bound < 8000)
    assert found.shape == (1000,) and found.dtype == np.uint64 and not found.any()
    found[-1] = 7
    assert found.sum() == 7
    del found
    assert set(os.listdir("/proc/self/fd")) == before, "the file goes away with the array"
