"""How far a dump is: it only ever grows, and ends at the end."""

from __future__ import annotations

from qcow2c.errors import Span
from qcow2c.forensic.nodes import Node
from qcow2c.forensic.steps import Steps


def test_each_section_is_as_long_as_the_file() -> None:
    told: list[tuple[int, int]] = []
    steps = Steps(lambda done, size: told.append((done, size)), 1000, ["l2", "map", "findings"])
    steps.begin()
    steps.of_check(5, 10)
    steps.of_check(10, 10)
    nodes = [Node("one", Span(250, 4)), Node("none"), Node("back", Span(100, 4)), Node("past the end", Span(5000, 4))]
    assert list(steps.along("l2", lambda: iter(nodes))) == nodes
    steps.end()
    steps.end()
    assert [done for done, _ in told] == [0, 500, 1000, 1250, 2000, 3000]
    assert {size for _, size in told} == {3000}


def test_nobody_need_be_told() -> None:
    steps = Steps(None, 0, ["header"])
    steps.begin()
    steps.of_check(0, 0)
    steps.end()
