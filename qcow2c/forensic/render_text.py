"""A dump as text: aligned columns of offset, length, name, value and meaning, indented as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from textwrap import wrap

from qcow2c.forensic.folding import folded
from qcow2c.forensic.nodes import Node, printable
from qcow2c.format.findings import Severity
from qcow2c.storage.sources import Store

_COLOURS = {Severity.NOTE: "36", Severity.WARNING: "33", Severity.ERROR: "31", Severity.FATAL: "31;1"}
_DIM, _BOLD = "2", "1"
_NAME_WIDTH = 30
_HEX_LINE = 16
_PLACE_WIDTH = 25
_LEAST_ROOM = 24
"""Columns for values and meanings, at least: below that they begin a line of their own."""

HEADS = f"{'offset':>14} {'length':>10}  {'name':<{_NAME_WIDTH}} value  meaning"


@dataclass(frozen=True, slots=True)
class Style:
    """What the text shows beside offset, length, name, value and meaning."""

    colour: bool = False
    raw: bool = False
    doc: bool = False
    zeros: bool = False
    """Also the entries of tables that are zero."""
    heads: bool = False
    """A line above all that names the columns."""
    folds: bool = False
    """Leave out what every image has, and the middle of long lists."""
    width: int | None = None
    """Columns of the terminal, into which lines are broken."""

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


def lines(root: Node, store: Store, style: Style, first: Iterable[str] = ()) -> Iterator[str]:
    """Yield the lines of a tree, each with its newline; `first` are lines below the one about the file."""
    yield f"{printable(str(root.value))}: {root.text}\n"
    yield from first
    if style.heads:
        yield "\n" + style.paint(HEADS, _DIM) + "\n"
    for section in root.children:
        yield "\n" + style.paint(section.name, _BOLD) + "\n"
        children = section.children
        head = next(children, None)
        if head is None:
            yield style.paint("  none\n", _DIM)
        else:
            for node in _rows(chain([head], children), style):
                yield from _node_lines(node, 0, store, style)


def _rows(nodes: Iterable[Node], style: Style) -> Iterator[Node]:
    """Yield the nodes that are shown, with words in the place of what is folded."""
    shown = (node for node in nodes if style.zeros or not _is_empty(node))
    if not style.folds:
        yield from shown
        return
    stock = 0

    def unusual() -> Iterator[Node]:
        nonlocal stock
        for node in shown:
            if node.is_stock and not node.findings:
                stock += 1
            else:
                yield node

    yield from folded(unusual())
    if stock:
        yield Node("...", None, None, f"{stock} more that every image has (--all shows them)")


def _is_empty(node: Node) -> bool:
    return node.count > 1 and node.value == 0 and not node.findings


def _node_lines(node: Node, depth: int, store: Store, style: Style) -> Iterator[str]:
    yield from _line(node, depth, style)
    indent = " " * (_PLACE_WIDTH + 4) + "  " * depth
    if style.doc and node.doc:
        unit = f" [{node.unit}]" if node.unit else ""
        yield from _broken(f"{printable(node.doc)}{unit} ({printable(node.spec)})", indent, style, _DIM)
    if style.raw and node.span is not None and node.make_children is None:
        raw = node.raw(store)
        for start in range(0, len(raw), _HEX_LINE):
            part = raw[start : start + _HEX_LINE]
            gutter = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
            yield style.paint(f"{indent}{part.hex(' ', 4):<{_HEX_LINE * 2 + 3}}  {gutter}", _DIM) + "\n"
    for finding in node.findings:
        words = f"{finding.severity.name.lower()}: {printable(finding.message)}"
        yield from _broken(words, indent, style, _COLOURS[finding.severity])
    for child in _rows(node.children, style):
        yield from _node_lines(child, depth + 1, store, style)


def _broken(words: str, indent: str, style: Style, code: str) -> Iterator[str]:
    """Yield text below a node, in as many lines as it takes."""
    for line in _pieces(words, len(indent), style):
        yield style.paint(indent + line, code) + "\n"


def _pieces(words: str, used: int, style: Style) -> list[str]:
    if style.width is None or used + len(words) <= style.width:
        return [words]
    return wrap(words, max(_LEAST_ROOM, style.width - used))


def _line(node: Node, depth: int, style: Style) -> Iterator[str]:
    place = f"{node.span.offset:#14x} {node.span.length:>10}" if node.span is not None else " " * _PLACE_WIDTH
    name = "  " * depth + printable(node.name)
    meaning = printable(node.text)
    guest = "" if node.guest is None else f"guest {node.guest:#x}"
    words = "  ".join(part for part in (_value(node), meaning, guest) if part)
    front = f"{style.paint(place, _DIM)}  {name:<{_NAME_WIDTH}} "
    used = _PLACE_WIDTH + 2 + max(len(name), _NAME_WIDTH) + 1
    if style.width is not None and used + len(words) > style.width and style.width - used < _LEAST_ROOM:
        yield front.rstrip() + "\n"
        front, used = " " * (_PLACE_WIDTH + 4), _PLACE_WIDTH + 4
    first, *more = _pieces(words, used, style) or [""]
    yield (front + first).rstrip() + "\n"
    for line in more:
        yield " " * used + line + "\n"


def _value(node: Node) -> str:
    if node.value is None or node.value is True:
        return ""
    if isinstance(node.value, int):
        wide = node.span is not None and node.name.endswith("]")
        step = f" +{node.step:#x}" if node.step else ""
        return f"{node.value:#018x}{step}" if wide else str(node.value)
    shown = printable(str(node.value))
    return f'"{shown}"' if node.hex or not node.text else shown
