"""Rules for the entries of tables: which entry breaks which, and which are passed without a look."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.format.geometry import Geometry
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
from tests.unit.format.drawn import BITMAPS, ENTRIES, GEOMETRIES

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


@given(ENTRIES, st.data(), GEOMETRIES)
def test_rules_of_many_entries_are_the_rules_of_each(words: list[int], data: st.DataObject, geometry: Geometry) -> None:
    bitmaps = data.draw(st.lists(BITMAPS, min_size=len(words), max_size=len(words)))
    many, many_bitmaps = np.array(words, np.uint64), np.array(bitmaps, np.uint64)
    seen = int(np.bitwise_or.reduce(many))
    for rules in (l2_rules(geometry), L1_RULES, REFCOUNT_TABLE_RULES):
        for rule in rules:
            each = [bool(rule.broken(word, bitmap, geometry)) for word, bitmap in zip(words, bitmaps, strict=True)]
            assert np.broadcast_to(rule.broken(many, many_bitmaps, geometry), len(words)).tolist() == each
            if any(each):
                assert rule in suspects(rules, seen, geometry)
