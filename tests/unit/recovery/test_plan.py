"""A plan of a repair: which refcounts are to be, why, and what is kept; it lists so much, and counts all."""

from __future__ import annotations

import pytest

from qcow2c.errors import Span
from qcow2c.format.header import Header
from qcow2c.recovery.doubt import Doubt
from qcow2c.recovery.plan import Plan, PlannedRefcounts, RepairAction, RepairKind
from qcow2c.recovery.survey import Survey
from qcow2c.storage.sources import Memory
from tests.building import L2_COPIED, Builder

SIZE = 4096


def damaged() -> tuple[Builder, dict[str, int]]:
    """An image with a leak, a refcount too low and one too high; their clusters by name."""
    builder = Builder(1 << 22)
    places = {name: builder.data(number, b"x" * SIZE) // SIZE for number, name in enumerate(("low", "high", "right"))}
    places["leak"] = builder.put(b"leaked" * 100) // SIZE
    builder.refcounts[places["low"]] = 0
    builder.refcounts[places["high"]] = 5
    return builder, places


def planned(builder: Builder, **how: bool) -> tuple[PlannedRefcounts, Plan]:
    store = Memory(builder.build())
    survey = Survey(store, Header.load(store))
    options = {"rebuild": False, "lower_only": False, "allow_data_loss": False} | how
    refcounts = PlannedRefcounts(survey, Doubt(survey, rebuild=options["rebuild"], damaged=[], lost=[]), **options)
    plan = Plan()
    refcounts.add_to(plan)
    return refcounts, plan


def kinds(plan: Plan) -> dict[int, RepairKind]:
    return {action.host.offset // SIZE: action.kind for action in plan.actions}


def test_without_doubt_every_refcount_becomes_that_of_its_references() -> None:
    builder, places = damaged()
    refcounts, plan = planned(builder)
    old, new = refcounts.of(0, 64)
    assert old[[*places.values()]].tolist() == [0, 5, 1, 1]
    assert new[[*places.values()]].tolist() == [1, 1, 1, 0]
    assert kinds(plan) == {
        places["low"]: RepairKind.RAISE,
        places["high"]: RepairKind.LOWER,
        places["leak"]: RepairKind.FREE,
    }
    assert (plan.lowered, plan.raised, plan.kept, plan.count) == (2, 1, 0, 3)
    assert not any(action.may_lose_data for action in plan.actions)


def test_only_what_is_too_high_is_lowered_if_that_was_asked_for() -> None:
    builder, places = damaged()
    _, plan = planned(builder, lower_only=True)
    assert kinds(plan) == {places["high"]: RepairKind.LOWER, places["leak"]: RepairKind.FREE}


def with_doubt() -> tuple[Builder, dict[str, int]]:
    builder, places = damaged()
    builder.entry(101, 1 << 40 | L2_COPIED)
    return builder, places


def test_with_doubt_nothing_is_lowered_and_all_that_is_kept_is_told() -> None:
    builder, places = with_doubt()
    refcounts, plan = planned(builder)
    assert refcounts.has_doubt and refcounts.keeps
    assert kinds(plan) == {
        places["low"]: RepairKind.RAISE,
        places["high"]: RepairKind.KEEP,
        places["leak"]: RepairKind.KEEP,
    }
    assert (plan.lowered, plan.raised, plan.kept) == (0, 1, 2)


def test_with_leave_to_lose_data_it_is_lowered_and_said_to_be_a_risk() -> None:
    builder, places = with_doubt()
    _, plan = planned(builder, allow_data_loss=True)
    risks = {action.host.offset // SIZE: action.may_lose_data for action in plan.actions}
    assert risks == {places["low"]: False, places["high"]: True, places["leak"]: True}


def test_a_refcount_of_1_to_be_is_known_for_each_cluster() -> None:
    builder, places = damaged()
    once = planned(builder)[0].once()
    assert [bool(once[places[name]]) for name in ("low", "high", "right", "leak")] == [True, True, True, False]


def test_no_refcount_is_wider_than_it_can_be() -> None:
    builder = Builder(1 << 20, refcount_order=1)
    shared = builder.put(b"x" * SIZE)
    for guest in range(9):
        builder.entry(guest, shared)
    builder.refcounts[shared // SIZE] = 0
    refcounts, _ = planned(builder)
    assert int(refcounts.of(0, 64)[1][shared // SIZE]) == 3


def test_neighbours_with_the_same_fate_are_one_action() -> None:
    builder = Builder(1 << 22)
    builder.data(0, b"x")
    first = builder.allocate(5 * SIZE)
    _, plan = planned(builder)
    assert [action.host for action in plan.actions] == [Span(first, 5 * SIZE)]
    assert plan.lowered == 5 and plan.count == 1


@pytest.mark.parametrize("most", [0, 2])
def test_a_plan_counts_all_and_lists_so_many(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcow2c.recovery.plan.MAX_ACTIONS", most)
    plan = Plan()
    for number in range(5):
        plan.add(RepairAction(RepairKind.FREE, Span(number, 1), 1, 0, "why"))
    assert (plan.count, len(plan.actions)) == (5, most)


def test_what_was_planned_of_a_kind_can_be_taken_back() -> None:
    plan = Plan()
    plan.add(
        RepairAction(RepairKind.HEADER, Span(0, 8), 1, 0, "mark"),
        RepairAction(RepairKind.FREE, Span(9, 1), 1, 0, "why"),
    )
    plan.drop(RepairKind.HEADER)
    assert plan.count == 1 and [action.kind for action in plan.actions] == [RepairKind.FREE]


def test_an_action_reads_as_a_line_and_as_plain_values() -> None:
    action = RepairAction(RepairKind.ENTRY, Span(4096, 8), 17, 16, "reserved bits", Span(0, 4096), may_lose_data=True)
    line = str(action)
    assert line.startswith("entry ") and "0x11 -> 0x10 (reserved bits; DATA MAY BE LOST)" in line and "guest" in line
    assert "2 -> 1 (why)" in str(RepairAction(RepairKind.LOWER, Span(0, 4096), 2, 1, "why"))
    assert action.facts() == {
        "kind": "entry",
        "host-offset": 4096,
        "host-length": 8,
        "guest-offset": 0,
        "guest-length": 4096,
        "old": 17,
        "new": 16,
        "reason": "reserved bits",
        "may-lose-data": True,
    }


def test_refcounts_of_64_bits_are_planned_whole() -> None:
    """Neither said to be less than they are, nor lowered to 32 bits where they are to be kept."""
    builder = Builder(1 << 20, refcount_order=6)
    high, leak = builder.data(0, b"x" * SIZE) // SIZE, builder.put(b"leaked") // SIZE
    builder.refcounts[high], builder.refcounts[leak] = 0x123456789A, 1 << 63
    _, plan = planned(builder)
    assert [(action.old, action.new) for action in plan.actions] == [(0x123456789A, 1), (1 << 63, 0)]
    builder.entry(101, 1 << 40 | L2_COPIED)
    refcounts, plan = planned(builder, rebuild=True)
    assert refcounts.keeps
    assert [int(count) for count in refcounts.of(0, refcounts.survey.clusters)[1][[high, leak]]] == [
        0x123456789A,
        1 << 63,
    ]
