"""Long lists of rows become a few; nothing that is wrong is folded away, and short lists stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qcow2c.errors import Span
from qcow2c.forensic.folding import FIRST, LAST, MOST, folded
from qcow2c.forensic.nodes import Node
from qcow2c.format.findings import Finding, Severity

WRONG = Finding("r", Severity.ERROR, "is wrong")


def row(number: int, text: str = "data at 0x1000, copied", *, is_wrong: bool = False) -> Node:
    findings = (WRONG,) if is_wrong else ()
    return Node(f"[{number}]", Span(8 * number, 8), number, text, findings=findings)


def test_a_short_list_stays() -> None:
    rows = [row(number) for number in range(MOST)]
    assert [*folded(rows)] == rows


def test_of_a_long_list_the_kinds_are_counted() -> None:
    rows = [
        row(number, f"data at {number:#x}, copied" if number % 3 else f"zeros at {number:#x}") for number in range(999)
    ]
    found = [*folded(rows)]
    assert found[:FIRST] == rows[:FIRST] and found[-LAST:] == rows[-LAST:] and len(found) == FIRST + 1 + LAST
    assert found[FIRST].text == (
        f"{999 - FIRST - LAST} rows more from [{FIRST}] on (--all shows them): 656 data, copied, 329 zeros"
    )


@given(st.lists(st.sampled_from(["plain", "wrong", "parent"]), max_size=300))
def test_the_first_that_are_wrong_and_each_parent_are_shown_and_all_are_counted(kinds: list[str]) -> None:
    rows = [
        Node(f"[{number}]", make_children=lambda: ()) if kind == "parent" else row(number, is_wrong=kind == "wrong")
        for number, kind in enumerate(kinds)
    ]
    found = [*folded(rows)]
    assert [node for node in found if node.make_children] == [node for node in rows if node.make_children]
    wrong = [node for node in rows if node.findings]
    assert [node for node in found if node.findings][:FIRST] == wrong[:FIRST]
    folds = [node.text for node in found if node.name == "..."]
    assert len(found) - len(folds) + sum(int(text.split()[0]) for text in folds) == len(rows)
    told = sum(int(text.split("; ")[1].split()[0]) for text in folds if "; " in text)
    assert told + len([node for node in found if node.findings]) == len(wrong)


def test_a_table_that_is_wrong_from_end_to_end_is_no_wall() -> None:
    found = [*folded(row(number, is_wrong=True) for number in range(9999))]
    assert len(found) < 60
    assert found[-LAST - 1].text.endswith(" of them with findings")
