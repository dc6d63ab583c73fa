"""A dump as text: aligned columns of offset, length, name, value and meaning, indented as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qcow2c.forensic.nodes import Node, printable
from qcow2c.format.findings import Severity
from qcow2c.storage.sources import Store

_COLOURS = {Severity.NOTE: "36", Severity.WARNING: "33", Severity.ERROR: "31", Severity.FATAL: "31;1"}
_DIM, _BOLD = "2", "1"
_NAME_WIDTH = 30
_HEX_LINE = 32


@dataclass(frozen=True, slots=True)
class Style:
    """What the text shows beside offset, length, name, value and meaning."""

    colour: bool = False
    raw: bool = False
    doc: bool = False
    zeros: bool = False
    """Also the entries of tables that are zero."""

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


def lines(root: Node, store: Store, style: Style) -> Iterator[str]:
    """Yield the lines of a tree, each with its newline."""
    yield f"{printable(str(root.value))}: {root.text}\n"
    for section in root.children:
        yield "\n" + style.paint(section.name, _BOLD) + "\n"
        empty = True
        for node in section.children:
            empty = False
            yield from _node_lines(node, 0, store, style)
        if empty:
            yield style.paint("  none\n", _DIM)


def _node_lines(node: Node, depth: int, store: Store, style: Style) -> Iterator[str]:
    if node.count > 1 and node.value == 0 and not style.zeros and not node.findings:
        return
    yield _line(node, depth, style)
    indent = " " * 27 + "  " * depth
    if style.doc and node.doc:
        unit = f" [{node.unit}]" if node.unit else ""
        yield style.paint(f"{indent}  {printable(node.doc)}{unit} ({printable(node.spec)})", _DIM) + "\n"
    if style.raw and node.span is not None and node.make_children is None:
        raw = node.raw(store)
        for start in range(0, len(raw), _HEX_LINE):
            yield style.paint(f"{indent}  {raw[start : start + _HEX_LINE].hex(' ', 4)}", _DIM) + "\n"
    for finding in node.findings:
        label = finding.severity.name.lower()
        yield style.paint(f"{indent}  {label}: {printable(finding.message)}", _COLOURS[finding.severity]) + "\n"
    for child in node.children:
        yield from _node_lines(child, depth + 1, store, style)


def _line(node: Node, depth: int, style: Style) -> str:
    place = f"{node.span.offset:#14x} {node.span.length:>10}" if node.span is not None else " " * 25
    name = "  " * depth + printable(node.name)
    value = _value(node)
    meaning = printable(node.text)
    words = "  ".join(part for part in (value, meaning) if part)
    return f"{style.paint(place, _DIM)}  {name:<{_NAME_WIDTH}} {words}".rstrip() + "\n"


def _value(node: Node) -> str:
    if node.value is None or node.value is True:
        return ""
    if isinstance(node.value, int):
        wide = node.span is not None and node.name.endswith("]")
        step = f" +{node.step:#x}" if node.step else ""
        return f"{node.value:#018x}{step}" if wide else str(node.value)
    shown = printable(str(node.value))
    return f'"{shown}"' if node.hex or not node.text else shown
