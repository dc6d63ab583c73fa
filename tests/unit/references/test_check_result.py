"""What a check found: its exit status, and its messages, most general first."""

from __future__ import annotations

import pytest

from qcow2c.errors import Span
from qcow2c.references.check_result import CheckResult, Fault, Mismatch
from qcow2c.references.overlaps import Overlap
from qcow2c.references.walk import Owner


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({}, 0),
        ({"leaks": 5}, 3),
        ({"corruptions": 1, "leaks": 5}, 2),
        ({"corruptions": 1, "check_errors": 1}, 1),
        ({"failed": "Invalid argument"}, 1),
    ],
)
def test_the_worst_that_was_found_is_the_exit_status(found: dict[str, int], status: int) -> None:
    assert CheckResult("x", **found).exit_code == status  # type: ignore[arg-type]


def found_things() -> CheckResult:
    found = CheckResult("x", broken={"l2.reserved": 3, "copied": 1}, corruptions=5, leaks=1)
    found.faults = [
        Fault("copied", "ERROR OFLAG_COPIED", Span(8, 8)),
        Fault("l2.reserved", "ERROR found l2 entry", Span(16, 8), times=3),
    ]
    found.mismatches = [Mismatch(7, 1, 0), Mismatch(8, 0, 1)]
    found.overlaps = [Overlap(1, Owner.L1_TABLE, 2)]
    return found


def test_entries_come_before_clusters_and_copied_bits_last() -> None:
    found = found_things()
    assert list(found.messages) == [
        "ERROR found l2 entry, counted 3 times",
        "ERROR cluster 1 of the l1 table has 2 references",
        "Leaked cluster 7 refcount=1 reference=0",
        "ERROR cluster 8 refcount=0 reference=1",
        "ERROR OFLAG_COPIED",
    ]


def test_what_is_not_listed_is_counted_as_more() -> None:
    found = found_things()
    assert found.message_count == len(list(found.messages)) == 5
    found.leaks += 10
    found.faults.pop(0)
    assert found.message_count == 4 + 10 + 1


def test_facts_are_plain_values_with_places() -> None:
    rows = found_things().facts()
    assert rows[0] == {"rule": "copied", "message": "ERROR OFLAG_COPIED", "times": 1, "offset": 8, "length": 8}
    assert [row["rule"] for row in rows] == ["copied", "l2.reserved", "overlap", "refcount.leak", "refcount.low"]
    assert rows[-1]["refcount"] == 0 and rows[-1]["cluster"] == 8
