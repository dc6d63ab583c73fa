"""Nodes: words for sizes and names, children that are made late, findings where they belong."""

from __future__ import annotations

from qcow2c.errors import Span
from qcow2c.forensic.nodes import Findings, Node, flag_names, in_words, printable, size_text, text_of
from qcow2c.format import derived
from qcow2c.format.findings import Finding, Severity


def test_words_for_sizes_and_names() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 1 << 60)] == ["0 B", "1023 B", "1.5 KiB", "1 EiB"]
    assert in_words(100, "bytes") == "" and in_words(3, "entries") == "3 entries"
    assert printable("a\x1b\u202e") == "a\\x1b\\u202e"
    assert text_of(b"plain") == ("plain", "")
    assert text_of(b"\xff") == ("\\xff", "ff")


def test_children_are_made_anew_each_time_they_are_asked_for() -> None:
    made: list[int] = []

    def children() -> list[Node]:
        made.append(1)
        return [Node("child")]

    node = Node("parent", make_children=children)
    assert made == []
    assert list(node.children) == list(node.children) == [Node("child")] and len(made) == 2
    assert list(Node("leaf").children) == []


def test_findings_go_to_the_node_that_they_concern_and_the_rest_to_the_parent() -> None:
    found = [
        Finding("a", Severity.NOTE, "a", Span(0, 8)),
        Finding("b", Severity.NOTE, "b", Span(16, 4)),
        Finding("c", Severity.NOTE, "c"),
    ]
    findings = Findings(found)
    assert findings.at(Span(16, 4)) == (found[1],)
    assert findings.rest() == (found[0], found[2])


def test_flags_are_called_by_their_names_and_unknown_ones_by_their_number() -> None:
    flags = derived.INCOMPATIBLE_FEATURES
    assert flag_names(flags, 0) == "none"
    assert flag_names(flags, 1) == "dirty"
    assert flag_names(flags, 1 << 40) == "unknown 0x10000000000"
