"""A dump as JSON: one document, written while the tree is walked, or one object a line. See docs/dump-schema.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from qcow2c.forensic.nodes import Node, printable
from qcow2c.storage.sources import Store

SCHEMA = "qcow2c-dump/1"

_encode = json.JSONEncoder(ensure_ascii=True, separators=(", ", ": ")).encode


def document(root: Node, store: Store, *, raw: bool = False, doc: bool = False) -> Iterator[str]:
    """Yield one JSON document piece by piece; no more of the tree than one path is ever in memory."""
    yield f'{{"schema": "{SCHEMA}", "file": '
    yield from _object(root, store, raw=raw, doc=doc)
    yield "}\n"


def json_lines(root: Node, store: Store, *, raw: bool = False, doc: bool = False) -> Iterator[str]:
    """Yield one JSON object a line for each node, parents first, each with the path of names that leads to it."""
    yield _encode({"schema": SCHEMA}) + "\n"
    yield from _lines(root, [], store, raw=raw, doc=doc)


def facts(node: Node, store: Store, *, raw: bool = False, doc: bool = False) -> dict[str, Any]:
    """Return what a node says, without its children. Absent members are empty ones."""
    found: dict[str, Any] = {"name": printable(node.name)}
    if node.span is not None:
        found["offset"], found["length"] = node.span.offset, node.span.length
    if node.value is not None:
        found["value"] = printable(node.value) if isinstance(node.value, str) else node.value
    if node.text:
        found["text"] = printable(node.text)
    if node.hex:
        found["hex"] = node.hex
    if node.count > 1:
        found["count"], found["step"] = node.count, node.step
    if node.guest is not None:
        found["guest"] = node.guest
    if node.unit:
        found["unit"] = node.unit
    found |= _explained(node, doc=doc)
    if raw and node.span is not None:
        found["raw"] = node.raw(store).hex()
    if node.findings:
        found["findings"] = [
            {"rule": finding.rule, "severity": finding.severity.name.lower(), "message": printable(finding.message)}
            for finding in node.findings
        ]
    return found


def _explained(node: Node, *, doc: bool) -> dict[str, str]:
    """Return what the schema says of a node, and where the specification does; the latter with findings, too."""
    found = {}
    if doc and node.doc:
        found["doc"] = node.doc
    if node.spec and (doc or node.findings):
        found["spec"] = node.spec
    return found


def _object(node: Node, store: Store, **options: bool) -> Iterator[str]:
    own = _encode(facts(node, store, **options))
    if node.make_children is None:
        yield own
        return
    yield own[:-1] + ', "children": ['
    separator = "\n"
    for child in node.children:
        yield separator
        yield from _object(child, store, **options)
        separator = ",\n"
    yield "]}"


def _lines(node: Node, path: list[str], store: Store, **options: bool) -> Iterator[str]:
    here = [*path, printable(node.name)]
    yield _encode({"path": here} | facts(node, store, **options)) + "\n"
    for child in node.children:
        yield from _lines(child, here, store, **options)
