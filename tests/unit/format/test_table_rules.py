"""Rules for the entries of tables: which entry breaks which, and which are passed without a look."""

from __future__ import annotations

import pytest

from qcow2c.format.header import Header
from qcow2c.format.table_rules import (
    BITMAP_TABLE_RULES,
    L1_RULES,
    REFCOUNT_TABLE_RULES,
    broken_rules,
    l2_rules,
    suspects,
)
from qcow2c.storage.sources import Memory
from tests.building import Builder

HEADER = Header.load(Memory(Builder(cluster_bits=12).build()))


@pytest.mark.parametrize("table", [L1_RULES, REFCOUNT_TABLE_RULES, BITMAP_TABLE_RULES, l2_rules(HEADER.geometry)])
def test_a_table_is_passed_at_a_glance_where_no_rule_can_be_broken(table: tuple[object, ...]) -> None:
    assert suspects(table, 1 << 12, HEADER.geometry) == ()  # type: ignore[arg-type]
    assert list(broken_rules(table, 1 << 12, 0, HEADER.geometry)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "entry", "rule"),
    [
        (L1_RULES, 1, "l1.reserved"),
        (L1_RULES, 512, "l1.misaligned"),
        (REFCOUNT_TABLE_RULES, 1, "refcount_table.reserved"),
        (REFCOUNT_TABLE_RULES, 512, "refcount_table.misaligned"),
        (BITMAP_TABLE_RULES, 2, "bitmap_table.reserved"),
        (BITMAP_TABLE_RULES, 4097, "bitmap_table.reserved"),
        (BITMAP_TABLE_RULES, 512, "bitmap_table.misaligned"),
    ],
)
def test_each_entry_rule_is_broken_by_its_entry(table: tuple[object, ...], entry: int, rule: str) -> None:
    assert [found.rule for found in broken_rules(table, entry, 0, HEADER.geometry)] == [rule]  # type: ignore[arg-type]
    assert rule in [found.rule for found in suspects(table, entry, HEADER.geometry)]  # type: ignore[arg-type]
