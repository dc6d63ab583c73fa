"""A dump as text: columns, what is shown besides on request, and nothing that a terminal would obey."""

from __future__ import annotations

from typing import Any

from qcow2c.errors import Span
from qcow2c.forensic.nodes import Node
from qcow2c.forensic.render_text import Style, lines
from qcow2c.format.findings import Finding, Severity
from qcow2c.storage.sources import Memory

STORE = Memory(bytes(range(100)))


def text(*nodes: Node, **style: Any) -> list[str]:
    root = Node("image", None, "disk.qcow2", "100 bytes", make_children=lambda: [section])
    section = Node("header", make_children=lambda: nodes)
    return "".join(lines(root, STORE, Style(**style))).splitlines()


def test_offset_length_name_value_and_meaning_are_columns() -> None:
    found = text(Node("size", Span(24, 8), 4096, "4 KiB"))
    assert found[:3] == ["disk.qcow2: 100 bytes", "", "header"]
    assert found[3] == f"{0x18:#14x} {8:>10}  {'size':<30} 4096  4 KiB"


def test_children_are_indented_and_an_empty_section_says_so() -> None:
    parent = Node("record", make_children=lambda: [Node("child", None, 1)])
    assert [line.strip() for line in text(parent)[3:]] == ["record", "child                        1"]
    assert text()[3] == "  none"


def test_runs_of_zeros_are_left_out_unless_asked_for_or_something_is_wrong_with_them() -> None:
    zeros = Node("[0..9]", Span(0, 80), 0, count=10)
    assert text(zeros)[3:] == []
    assert "[0..9]" in text(zeros, zeros=True)[3]
    wrong = Node("[0..9]", Span(0, 80), 0, count=10, findings=(Finding("r", Severity.ERROR, "is wrong"),))
    assert text(wrong)[4].strip() == "error: is wrong"


def test_documentation_and_raw_bytes_are_shown_on_request() -> None:
    node = Node("field", Span(10, 40), 7, doc="What it is.", unit="bytes", spec="Header")
    found = text(node, doc=True, raw=True)
    assert found[4].strip() == "What it is. [bytes] (Header)"
    assert found[5].strip() == f"{bytes(range(10, 26)).hex(' ', 4)}  {'.' * 16}"
    assert found[7].strip() == f"{bytes(range(42, 50)).hex(' ', 4):<35}  *+,-./01"
    assert len(text(node)) == 4


def test_names_out_of_an_image_are_escaped() -> None:
    found = text(Node("na\x1b[31mme", None, "val\nue", "te\u202ext"))
    assert all(line.isprintable() for line in found)
    assert all(escaped in found[3] for escaped in ("na\\x1b[31mme", "val\\nue", "te\\u202ext"))


def test_colours_are_only_for_those_who_ask() -> None:
    node = Node("field", Span(0, 1), 1, findings=(Finding("r", Severity.WARNING, "odd"),))
    assert "\x1b" not in "".join(text(node))
    assert "\x1b[33m" in "".join(text(node, colour=True))


def test_lines_are_broken_into_the_width_of_a_terminal() -> None:
    wrong = Finding("r", Severity.ERROR, "something is wrong here, " * 8)
    node = Node("[0]", Span(0x1000, 8), 5, "a long meaning of an entry " * 4, guest=0x20000, findings=(wrong,))
    for width in (60, 80, 120):
        found = text(node, width=width, heads=False)[3:]
        assert max(map(len, found)) <= width and len(found) > 3
        assert " ".join("".join(found).split()).count("meaning") == 4
    assert len(text(node)[3:]) == 2
    assert text(node)[3].endswith("guest 0x20000")


def test_heads_name_the_columns() -> None:
    found = text(Node("size", Span(24, 8), 4096, "4 KiB"), heads=True)
    assert found[2].split() == ["offset", "length", "name", "value", "meaning"]
    assert found[2].index("name") == found[5].index("size") and found[2].index("value") == found[5].index("4096")


def test_what_every_image_has_is_folded_on_request() -> None:
    stock = Node("feature", None, "dirty bit", "incompatible feature, bit 0", is_stock=True)
    assert len(text(stock)[3:]) == 1
    assert text(stock, stock, folds=True)[3].split("...")[1].strip() == "2 more that every image has (--all shows them)"
