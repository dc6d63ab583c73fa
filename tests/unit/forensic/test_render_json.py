"""A dump as JSON: one document, or one object a line, with the same facts."""

from __future__ import annotations

import json

from qcow2c.errors import Span
from qcow2c.forensic.nodes import Node
from qcow2c.forensic.render_json import SCHEMA, document, facts, json_lines
from qcow2c.format.findings import Finding, Severity
from qcow2c.storage.sources import Memory

STORE = Memory(bytes(range(100)))
LEAF = Node("size", Span(24, 8), 4096, "4 KiB", doc="Size.", unit="bytes", spec="Header")
TREE = Node("image", None, "disk\x1b", make_children=lambda: [Node("header", make_children=lambda: [LEAF, LEAF])])


def test_empty_members_are_absent() -> None:
    assert facts(Node("x"), STORE) == {"name": "x"}
    assert facts(LEAF, STORE) == {
        "name": "size",
        "offset": 24,
        "length": 8,
        "value": 4096,
        "text": "4 KiB",
        "unit": "bytes",
    }
    assert facts(Node("[0..1]", Span(0, 16), 0, count=2, step=512), STORE)["step"] == 512


def test_documentation_and_raw_bytes_are_there_on_request() -> None:
    found = facts(LEAF, STORE, raw=True, doc=True)
    assert (found["doc"], found["spec"], found["raw"]) == ("Size.", "Header", bytes(range(24, 32)).hex())


def test_findings_have_rule_severity_and_message_and_the_place_in_the_specification() -> None:
    node = Node("x", spec="Header", findings=(Finding("header.size", Severity.ERROR, "too\x1bbig"),))
    found = facts(node, STORE)
    assert found["findings"] == [{"rule": "header.size", "severity": "error", "message": "too\\x1bbig"}]
    assert found["spec"] == "Header"


def test_a_document_is_the_whole_tree() -> None:
    found = json.loads("".join(document(TREE, STORE)))
    assert found["schema"] == SCHEMA and found["file"]["value"] == "disk\\x1b"
    [header] = found["file"]["children"]
    assert [child["name"] for child in header["children"]] == ["size", "size"] and "children" not in header["children"][
        0
    ]


def test_lines_have_the_path_that_leads_to_each_node() -> None:
    schema, *rows = [json.loads(line) for line in json_lines(TREE, STORE)]
    assert schema == {"schema": SCHEMA}
    assert [row["path"] for row in rows] == [["image"], ["image", "header"], *[["image", "header", "size"]] * 2]
