"""Ownership: every byte of the file belongs to something, and to what."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qcow2c.errors import LimitExceeded
from qcow2c.format.header import Header
from qcow2c.references import ownership
from qcow2c.references.ownership import HostExtent, HostUse, extents
from qcow2c.references.walk import Owner, Walk
from qcow2c.storage.sources import Memory
from qcow2c.structs import Limit
from tests.building import L2_COPIED, Builder, deflate

SIZE = 4096


def owned(builder: Builder) -> list[HostExtent]:
    data = builder.build()
    store = Memory(data)
    found = list(extents(Walk(store, Header.load(store)), 200))
    assert found[0].offset == 0 and found[-1].end == len(data)
    assert all(one.end == other.offset for one, other in pairwise(found))
    return found


def at(found: list[HostExtent], offset: int) -> tuple[HostUse, Owner]:
    [extent] = [extent for extent in found if extent.offset <= offset < extent.end]
    return extent.use, extent.owner


def test_every_byte_belongs_to_something() -> None:
    builder = Builder(1 << 22)
    places = {Owner.DATA: builder.data(0, b"x"), Owner.L2_TABLE: builder.l1[0] & ~(1 << 63)}
    builder.compressed(3, deflate(b"y" * SIZE))
    leaked, free = builder.allocate(SIZE), builder.allocate(SIZE, references=0)
    found = owned(builder)
    assert {owner: at(found, place) for owner, place in places.items()} == {
        owner: (HostUse.OWNED, owner) for owner in places
    }
    assert at(found, leaked) == (HostUse.LEAK, Owner.NONE) and at(found, free) == (HostUse.FREE, Owner.NONE)
    assert at(found, 100) == (HostUse.OWNED, Owner.HEADER) and at(found, 300) == (HostUse.SLACK, Owner.HEADER)


def test_the_rest_of_the_last_cluster_of_a_structure_is_slack() -> None:
    builder = Builder(1 << 22)
    l1 = builder.fields["l1_table_offset"]
    found = owned(builder)
    assert at(found, l1) == (HostUse.OWNED, Owner.L1_TABLE) and at(found, l1 + 16) == (HostUse.SLACK, Owner.L1_TABLE)


def test_what_two_structures_claim_is_an_overlap_of_the_first() -> None:
    builder = Builder(1 << 22)
    builder.entry(9, builder.fields["l1_table_offset"] | L2_COPIED)
    assert at(owned(builder), builder.fields["l1_table_offset"]) == (HostUse.OVERLAP, Owner.L1_TABLE)


def test_what_the_active_state_shares_with_a_snapshot_is_its_own() -> None:
    builder = Builder(1 << 22)
    shared, old = builder.data(0, b"shared"), builder.data(1, b"old")
    builder.snapshot(b"one")
    builder.data(1, b"new")
    found = owned(builder)
    assert at(found, shared)[1] is Owner.DATA and at(found, old)[1] in (Owner.DATA, Owner.SNAPSHOT_DATA)
    assert at(found, shared)[0] is at(found, old)[0] is HostUse.OWNED


def scattered() -> Builder:
    """An image of several refcount blocks, each of which describes 64 clusters."""
    builder = Builder(1 << 20, cluster_bits=9, refcount_order=6)
    for guest in range(0, 300, 3):
        builder.data(guest, b"x")
    builder.allocate(200 * 512, references=0)
    builder.allocate(70 * 512)
    return builder


def test_windows_do_not_show_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = owned(scattered())
    monkeypatch.setattr(ownership, "WINDOW_CLUSTERS", 64)
    assert owned(scattered()) == whole


def test_a_file_of_too_many_clusters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limit, "CHECKED_CLUSTERS", 3)
    with pytest.raises(LimitExceeded, match="more than 3"):
        owned(Builder())
