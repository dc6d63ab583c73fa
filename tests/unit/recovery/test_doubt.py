"""Doubt: each sign of a lost table is seen, and leaks as killed programs leave them give no reason for any."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qcow2c.format.header import Header
from qcow2c.recovery.doubt import Doubt, broken_tables
from qcow2c.recovery.survey import Survey
from qcow2c.storage.sources import Memory
from tests.building import L2_COPIED, Builder

SIZE = 4096


def filled() -> Builder:
    builder = Builder(1 << 22)
    for guest in range(0, 40, 2):
        builder.data(guest, b"x" * SIZE)
    return builder


def doubt(builder: Builder, *, rebuild: bool = False, damaged: list[str] | None = None) -> Doubt:
    store = Memory(builder.build())
    return Doubt(Survey(store, Header.load(store)), rebuild=rebuild, damaged=damaged or [], lost=[])


def leak(builder: Builder, content: bytes = b"leaked" * 600) -> int:
    return builder.put(content) // SIZE


def test_leaks_without_any_sign_give_no_reason() -> None:
    builder = filled()
    places = [leak(builder), leak(builder)]
    found = doubt(builder)
    assert found.reasons == []
    assert found.held[places].all() and found.held.sum() == 2


def test_a_leak_of_zeros_holds_nothing() -> None:
    builder = filled()
    place = leak(builder, bytes(SIZE))
    assert not doubt(builder).held[place]


def test_without_leaks_no_sign_is_a_reason() -> None:
    builder = filled()
    builder.entry(101, 1 << 57 | L2_COPIED)
    assert doubt(builder, damaged=["something is broken"]).reasons == []


def reserved_bit(builder: Builder) -> None:
    builder.entry(101, 1 << 57 | L2_COPIED)


def past_the_end(builder: Builder) -> None:
    builder.entry(101, 1 << 40 | L2_COPIED)


def one_host_for_two(builder: Builder) -> None:
    shared = builder.data(101, b"two" * 1000)
    builder.entry(103, shared)
    builder.refcounts[shared // SIZE] = 2


def one_table_for_two(builder: Builder) -> None:
    builder.l1[1] = builder.l1[0]


def empty_table(builder: Builder) -> None:
    builder.table(1)


def empty_snapshot(builder: Builder) -> None:
    builder.snapshot(b"empty", l1_table_offset=builder.put(bytes(16)))


def lost_table(builder: Builder) -> None:
    named = leak(builder)
    words = [0] * 512
    words[3] = named * SIZE | L2_COPIED
    builder.put(b"".join(word.to_bytes(8, "big") for word in words))


def gap(builder: Builder) -> None:
    """Guest clusters 200 and 202 have neighbours of a cluster that nothing refers to."""
    first = builder.data(200, b"l" * SIZE)
    leak(builder)
    last = builder.data(202, b"r" * SIZE)
    assert last - first == 2 * SIZE


SIGNS: dict[Callable[[Builder], None], str] = {
    reserved_bit: "1 table entries break the rule l2.reserved",
    past_the_end: "1 references lead past the end of the file",
    one_host_for_two: "1 host clusters are named for several guest clusters",
    one_table_for_two: "1 L2 tables are named by several L1 entries",
    empty_table: "1 L2 tables hold nothing but zeros",
    empty_snapshot: "the L1 table of snapshot 0 holds nothing but zeros",
    lost_table: "what nothing refers to looks like L2 tables that were lost",
    gap: "1 gaps in L2 tables are as long as what nothing refers to",
}


@pytest.mark.parametrize(("change", "reason"), SIGNS.items(), ids=[change.__name__ for change in SIGNS])
def test_each_sign_of_a_lost_table_is_a_reason(change: Callable[[Builder], None], reason: str) -> None:
    builder = filled()
    leak(builder)
    change(builder)
    assert reason in doubt(builder).reasons


def test_what_a_check_has_found_is_a_reason_too() -> None:
    builder = filled()
    leak(builder)
    assert doubt(builder, damaged=["the check says so"]).reasons == ["the check says so"]


def test_without_refcounts_to_believe_all_that_holds_anything_is_held() -> None:
    builder = filled()
    builder.refcounts[place := leak(builder)] = 0
    image = bytearray(builder.build())
    table = Header.load(Memory(bytes(image))).refcount_table_offset
    block = int.from_bytes(image[table : table + 8], "big")
    image[block : block + SIZE] = bytes(SIZE)
    store = Memory(bytes(image))
    survey = Survey(store, Header.load(store))
    assert not Doubt(survey, rebuild=False, damaged=[], lost=[]).held.any()
    assert Doubt(survey, rebuild=True, damaged=[], lost=[]).held[place]


def test_broken_rules_are_counted_over_all_tables() -> None:
    builder = filled()
    builder.entry(101, 1 << 57 | L2_COPIED)
    builder.entry(103, 1 << 57 | L2_COPIED)
    image = bytearray(builder.build())
    image[Header.load(Memory(bytes(image))).l1_table_offset + 7] |= 1
    store = Memory(bytes(image))
    assert sorted(broken_tables(Survey(store, Header.load(store)))) == [
        "1 table entries break the rule l1.reserved",
        "2 table entries break the rule l2.reserved",
    ]
