"""Faults have the places of what was counted: over the whole corpus they add up to the counts of the check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import Qcow2Error, Span
from qcow2c.references.full_check import MAX_LISTED
from tests.building import L1_COPIED, L2_COPIED, Builder
from tests.corpus.case import HostileCase
from tests.corpus.hostile import CASES, make_case

LIGHT = [case for case in CASES if not case.heavy]


@pytest.mark.parametrize("case", LIGHT, ids=lambda case: case.name)
def test_faults_of_the_corpus_add_up_to_the_counts(case: HostileCase, tmp_path: Path) -> None:
    try:
        found = qcow2c.check(make_case(case, tmp_path))
    except Qcow2Error:
        return
    listed: Counter[str] = Counter()
    for fault in found.faults:
        assert fault.message.startswith("ERROR"), fault
        listed[fault.rule] += fault.times
    if len(found.faults) < MAX_LISTED:
        assert listed == Counter(found.broken) - Counter(overlap=found.broken.get("overlap", 0))
    assert sum(not mismatch.is_leak for mismatch in found.mismatches) <= found.corruptions


def test_a_wrong_copied_bit_is_named_as_qemu_names_it() -> None:
    builder = Builder(1 << 20, cluster_bits=12)
    host = builder.data(5, b"x")
    builder.l2[0][5] = host
    builder.l1[0] &= ~L1_COPIED
    found = qcow2c.check(builder.build())
    table = builder.l1[0]
    assert list(found.messages) == [
        f"ERROR OFLAG_COPIED L2 cluster: l1_index=0 l1_entry={table:x} refcount=1",
        f"ERROR OFLAG_COPIED data cluster: l2_entry={host:x} refcount=1",
    ]
    assert found.faults[1].where == Span(table + 5 * 8, 8)


def test_what_leads_past_the_end_says_which_entry_and_where_to() -> None:
    builder = Builder(1 << 20, cluster_bits=12)
    builder.entry(3, 1 << 40 | L2_COPIED)
    table = builder.l1[0] & ~L1_COPIED
    fault = next(fault for fault in qcow2c.check(builder.build()).faults if fault.rule == "past_end")
    assert f"offset {1 << 40:#x} size 0x1000 (L2 entry 3 at {table + 24:#x})" in fault.message


def test_an_entry_of_a_table_that_several_states_have_is_one_fault() -> None:
    builder = Builder(1 << 20, cluster_bits=12)
    builder.entry(3, 1 << 57)
    builder.build()
    builder.snapshot(b"a", l1_table_offset=builder.fields["l1_table_offset"], l1_size=len(builder.l1))
    found = qcow2c.check(builder.build())
    mine = [fault for fault in found.faults if fault.rule == "l2.reserved"]
    assert [fault.times for fault in mine] == [found.broken["l2.reserved"]] == [2]


def test_refcounts_of_64_bits_are_shown_whole() -> None:
    builder = Builder(1 << 20, cluster_bits=12, refcount_order=6)
    leaked = builder.allocate(4096) // 4096
    builder.refcounts[leaked] = (1 << 63) + 5
    found = qcow2c.check(builder.build())
    assert f"Leaked cluster {leaked} refcount={(1 << 63) + 5} reference=0" in list(found.messages)
