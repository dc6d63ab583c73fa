"""A dump and a check say the same of an image: over the whole corpus, with places and exit status."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import NotQcow2, Qcow2Error, Span, StoreError
from qcow2c.forensic.nodes import Node
from qcow2c.forensic.summary import MAX_FINDINGS
from tests.building import L1_COPIED, Builder
from tests.corpus.case import HostileCase
from tests.corpus.hostile import CASES, make_case

LIGHT = [case for case in CASES if not case.heavy]
STATUS_OF_A_DUMP = {0: 0, 1: 2, 2: 2, 3: 3}
"""What a check cannot finish is an error for a dump, which shows it."""


def findings(tree: qcow2c.Dump) -> list[Node]:
    return [node for section in tree.root.children if section.name == "findings" for node in section.children]


@pytest.mark.parametrize("case", LIGHT, ids=lambda case: case.name)
def test_dump_and_check_agree_on_the_corpus(case: HostileCase, tmp_path: Path) -> None:
    path = make_case(case, tmp_path)
    try:
        checked, status = qcow2c.check(path), 0
        status = checked.exit_code
    except (NotQcow2, StoreError):
        return
    except Qcow2Error:
        checked, status = None, 1
    with qcow2c.dump(path, ["findings"]) as tree:
        nodes = findings(tree)
        assert tree.exit_code == STATUS_OF_A_DUMP[status], [(node.name, node.text) for node in nodes]
    if checked is None:
        return
    shown = {(node.name, node.span) for node in nodes}
    seen: Counter[str] = Counter()
    for finding in checked.findings(1 << 16):
        seen[finding.rule] += 1
        if seen[finding.rule] <= MAX_FINDINGS and not finding.rule.startswith(("refcount.", "overlap")):
            assert (finding.rule, finding.where) in shown
    assert {*seen} <= {name for name, _ in shown}


def test_a_wrong_refcount_and_a_leak_are_listed_at_their_clusters() -> None:
    builder = Builder(1 << 20, cluster_bits=12)
    low = builder.data(3, b"x")
    leaked = builder.allocate(4096)
    builder.refcounts[low // 4096] = 0
    with qcow2c.dump(builder.build(), ["findings"]) as tree:
        shown = {(node.name, node.span): node.text for node in findings(tree)}
        assert tree.exit_code == 2
    assert shown["refcount.low", Span(low, 4096)] == f"cluster {low // 4096} refcount=0 reference=1"
    assert ("refcount.leak", Span(leaked, 4096)) in shown


def test_leaks_alone_have_the_status_of_a_check() -> None:
    builder = Builder(1 << 20, cluster_bits=12)
    builder.allocate(4096)
    data = builder.build()
    with qcow2c.dump(data, ["findings"]) as tree:
        findings(tree)
        assert tree.exit_code == qcow2c.check(data).exit_code == 3


def test_a_traced_byte_shows_what_is_wrong_on_its_way() -> None:
    builder = Builder(1 << 20, cluster_bits=12)
    host = builder.data(3, b"x")
    builder.l1[0] &= ~L1_COPIED
    builder.refcounts[host // 4096] = 2
    with qcow2c.dump(builder.build()) as tree:
        (question,) = tree.question(guest_offset=3 * 4096).children
        (state,) = question.children
        rules = [finding.rule for step in state.children for finding in step.findings]
        assert rules == ["copied", "copied", "refcount.leak"]
    with qcow2c.dump(builder.build()) as tree:
        (question,) = tree.question(host_offset=host).children
        found = [finding.rule for node in question.children for finding in node.findings]
        assert "refcount.leak" in found and tree.exit_code == 2


def test_findings_of_tables_are_there_where_the_check_gives_up() -> None:
    builder = Builder(1 << 20, cluster_bits=12)
    builder.entry(0, 1 << 57)
    builder.one_bitmap(512)
    with qcow2c.dump(builder.build(), ["findings"]) as tree:
        names = [node.name for node in findings(tree)]
    assert "l2.reserved" in names and "check.failed" in names
