"""`Node`: one place of the forensic tree, and how field values become words. Knows no structure by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from qcow2c.errors import Span
from qcow2c.format import layout
from qcow2c.format.findings import Finding
from qcow2c.format.layout import Bits, Field, Layout
from qcow2c.schema import Doc
from qcow2c.storage.sources import Store

NodeValue = int | str | bool | None
Children = Callable[[], Iterable["Node"]]

RAW_BYTES = 64
"""Bytes of a node that are shown raw where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class Node:
    """A structure, a field, or a run of equal entries.

    `value` is the decoded value, `text` says it in words; a `count` above 1 makes the node a run of entries, of
    which each is `step` more than the one before. `hex` holds the exact bytes of a name that is no clean text.
    Children are made when they are asked for.
    """

    name: str
    span: Span | None = None
    value: NodeValue = None
    text: str = ""
    doc: str = ""
    unit: str = ""
    spec: str = ""
    count: int = 1
    step: int = 0
    hex: str = ""
    guest: int | None = None
    """Where on the virtual disk an entry begins; of a table that several states have, in the first of them."""
    is_stock: bool = False
    """Whether it is as every writer has it: the text leaves it out unless all is asked for."""
    findings: tuple[Finding, ...] = ()
    make_children: Children | None = field(default=None, repr=False, compare=False)

    @property
    def children(self) -> Iterator[Node]:
        """The nodes below this one; each call walks anew."""
        return iter(self.make_children() if self.make_children is not None else ())

    def raw(self, store: Store, limit: int | None = RAW_BYTES) -> bytes:
        """Return the node's bytes in the file, at most `limit` of them."""
        if self.span is None:
            return b""
        length = self.span.length if limit is None else min(self.span.length, limit)
        return store.pread(length, self.span.offset)


class Findings:
    """The findings of a header or a record, handed out to the nodes that they concern; the rest goes to the parent."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        # By place: an image may have as many findings as it has extensions, and each node asks for its own.
        self._left: dict[Span | None, list[Finding]] = {}
        for finding in findings:
            self._left.setdefault(finding.where, []).append(finding)

    def at(self, span: Span) -> tuple[Finding, ...]:
        """Take the findings whose place is exactly this one."""
        return tuple(self._left.pop(span, ()))

    def rest(self) -> tuple[Finding, ...]:
        """Take all that was not taken yet."""
        left, self._left = self._left, {}
        return tuple(finding for found in left.values() for finding in found)


def described(doc: Doc | str) -> dict[str, Any]:
    """Return what a schema says of a field, as arguments of a Node."""
    return {"doc": str(doc), "unit": getattr(doc, "unit", ""), "spec": getattr(doc, "spec", "")}


def field_nodes(
    structure: Layout, data: bytes, base: int, findings: Findings | None = None, words: dict[str, str] | None = None
) -> Iterator[Node]:
    """Yield a node for each field of a structure at byte `base`; a field that `data` does not reach is missing."""
    for member in structure.fields:
        span = Span(base + member.offset, member.size)
        raw = data[member.offset : member.offset + member.size]
        found = findings.at(span) if findings is not None else ()
        if len(raw) < member.size:
            yield Node(
                member.name, span, None, "missing: the file ends before", findings=found, **described(member.doc)
            )
        elif member.parts is None:
            yield field_node(member, raw, span, found, (words or {}).get(member.name, ""))


def field_node(member: Field, raw: bytes, span: Span, findings: tuple[Finding, ...] = (), words: str = "") -> Node:
    """Return the node of one integer, enumeration, set of flags, or byte string."""
    facts = described(member.doc)
    if not member.is_integer:
        shown, exact = text_of(raw.rstrip(b"\0")) if not _is_opaque(raw) else (raw.hex(), "")
        return Node(member.name, span, shown, words, hex=exact, findings=findings, **facts)
    value = layout.integer(raw)
    if member.flags is not None:
        flags = member.flags
        return Node(
            member.name, span, value, words or flag_names(flags, value), findings=findings,
            make_children=lambda: _flag_nodes(flags, value, span), **facts,
        )  # fmt: skip
    if member.names:
        words = words or member.names.get(value, "unknown")
    return Node(member.name, span, value, words or in_words(value, member.doc.unit), findings=findings, **facts)


def _flag_nodes(flags: Bits, value: int, span: Span) -> Iterator[Node]:
    for bit in reversed(flags.members):
        if bit.of(value):
            yield Node(
                bit.name, span, bit.of(value), f"bit {bit.shift}" if bit.width == 1 else "", **described(bit.doc)
            )


def flag_names(flags: Bits, value: int) -> str:
    """Return the names of the set flags, and the unknown ones as a number."""
    names = [bit.name for bit in reversed(flags.members) if bit.of(value) and not bit.doc.reserved]
    unknown = value & flags.reserved
    return ", ".join([*names, *([f"unknown {unknown:#x}"] if unknown else [])]) or "none"


def in_words(value: int, unit: str) -> str:
    """Return a size or an offset the way one reads it; nothing where the number says all."""
    if unit == "bytes" and value >= 1024:
        return f"{value:#x}, {size_text(value)}"
    return f"{value} {unit}" if unit and unit != "bytes" else ""


def size_text(size: int) -> str:
    """Return a size in the largest binary unit that leaves a number above 1."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} EiB"


def text_of(name: bytes) -> tuple[str, str]:
    """Return a name from the image as text without any control character, and its bytes in hex where that differs."""
    try:
        decoded = name.decode("utf-8")
    except UnicodeDecodeError:
        decoded = name.decode("utf-8", "backslashreplace")
        return printable(decoded), name.hex()
    shown = printable(decoded)
    return shown, "" if shown == decoded else name.hex()


def printable(text: str) -> str:
    """Return text with everything escaped that a terminal might act on."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _is_opaque(raw: bytes) -> bool:
    """Whether bytes are a digest or a salt rather than a name."""
    text = raw.rstrip(b"\0")
    return not text.isascii() or any(byte < 32 for byte in text)
