"""Differences of two disks: what lies in one place is not read, and what is read is compared in whole sectors."""

from __future__ import annotations

import pytest

from qcow2c.disk import differences as differing
from qcow2c.disk.differences import Difference, differences
from qcow2c.disk.disk import open_disk
from qcow2c.ops.diff import diff, open_states
from qcow2c.storage.sources import Memory
from tests.building import Builder, deflate
from tests.two_states import CHANGED, SIZE, Counting, noise, two_states


def test_what_lies_in_one_place_is_not_read() -> None:
    store = Counting(two_states())
    with open_states(store, from_snapshot="one") as (before, after):
        list(differences(before, after, exact=False))  # Tables are loaded now.
        store.read = 0
        assert list(differences(before, after)) == CHANGED
        assert store.read == 3 * SIZE
        store.read = 0
        fast = list(differences(before, after, exact=False))
        assert fast == [Difference(2 * SIZE, SIZE, zero=False), Difference(3 * SIZE, SIZE, zero=True)]
        assert store.read == 0


def test_a_compressed_cluster_that_is_another_one_is_read() -> None:
    builder = Builder(64 * SIZE)
    for guest in range(4):
        builder.compressed(guest, deflate(noise(guest, 500).ljust(SIZE, b"x")))
    builder.snapshot(b"one")
    builder.compressed(1, deflate(noise(1, 500).ljust(SIZE, b"x")))
    builder.compressed(2, deflate(noise(2, 500).ljust(SIZE, b"y")))
    image = builder.build()
    assert list(diff(image, from_snapshot="one")) == [Difference(2 * SIZE, SIZE, zero=False)]
    with open_states(Memory(image), Memory(image), from_snapshot="one") as disks:
        assert list(differences(*disks, exact=False)) == [Difference(0, 4 * SIZE, zero=False)]
    store = Memory(image)
    with open_states(store, store, from_snapshot="one") as disks:
        assert list(differences(*disks, exact=False)) == [Difference(SIZE, 2 * SIZE, zero=False)]


def test_compressed_clusters_of_two_files_are_read() -> None:
    image = two_states()
    other = Builder(64 * SIZE)
    other.compressed(8, deflate(noise(8, 500).ljust(SIZE, b"x")))
    with open_disk(image, snapshot="one") as before, open_disk(other.build()) as after:
        assert list(differences(before, after)) == [
            Difference(0, 8 * SIZE, zero=True),
            Difference(9 * SIZE, 3 * SIZE, zero=True),
        ]


def test_much_is_compared_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differing, "SLAB_BYTES", 1024)
    before, after = bytearray(noise(1, 10_240)), bytearray(noise(1, 10_240))
    after[2048:2050] = b"??"
    after[5000:9000] = noise(3, 4000)
    found = list(diff(bytes(before), bytes(after), from_format="raw", to_format="raw"))
    assert found == [Difference(2048, 512, zero=False), Difference(4608, 4608, zero=False)]
