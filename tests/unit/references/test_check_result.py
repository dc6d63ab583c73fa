"""What a check found: its exit status, and its messages, most general first."""

from __future__ import annotations

import pytest

from qcow2c.references.check_result import CheckResult, Mismatch
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


def test_rules_come_before_clusters() -> None:
    found = CheckResult("x", broken={"l2.reserved": 3})
    found.mismatches = [Mismatch(7, 1, 0), Mismatch(8, 0, 1)]
    found.overlaps = [Overlap(1, Owner.L1_TABLE, 2)]
    assert list(found.messages) == [
        "ERROR l2.reserved: 3",
        "ERROR cluster 1 of the l1 table has 2 references",
        "Leaked cluster 7 refcount=1 reference=0",
        "ERROR cluster 8 refcount=0 reference=1",
    ]
