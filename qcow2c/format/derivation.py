"""From a Construct schema to what it implies, as `derived.py` has it; and traced parsers, the schema's own reading.

Nothing here names a structure of the format. What reads images does without this module, because Construct is slow to
import: only `formats/derive.py`, and what compares or draws whole structures, asks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from construct import (
    Adapter,
    Array,
    Bytes,
    Container,
    Enum,
    FormatField,
    Renamed,
    SizeofError,
    Struct,
    Tell,
    Transformed,
)
from construct import Construct as Schema

from qcow2c.format.layout import BitField, Bits, Field, Layout, RecordLayout, RecordPart

# --- structures -----------------------------------------------------------------------------------------------------


@cache
def layout_of(schema: Schema) -> Layout:
    """Return the fields of a Struct of fixed size, in the order of the file."""
    return Layout(schema.sizeof(), tuple(_fields(schema)))


def _fields(schema: Schema) -> Iterator[Field]:
    offset = 0
    for named in members(schema):
        kind, size, doc = unnamed(named), named.sizeof(), named.docs
        yield Field(
            named.name,
            offset,
            size,
            doc,
            is_integer=isinstance(kind, Enum | FormatField),
            names={int(value): str(name) for value, name in kind.decmapping.items()} if isinstance(kind, Enum) else {},
            flags=bits_of(doc.bits) if doc.bits is not None else None,
            parts=_parts(kind),
        )
        offset += size


def _parts(kind: Schema) -> Layout | Bits | None:
    element = unnamed(kind.subcon) if isinstance(kind, Array) else kind
    if is_bits(element):
        return bits_of(element)
    return layout_of(element) if isinstance(element, Struct) else None


@cache
def bits_of(schema: Schema) -> Bits:
    """Return shift, width, mask and doc of each field of a BitStruct."""
    parts = list(members(schema))
    width = sum(member.sizeof() for member in parts)
    remaining = width
    found = []
    for member in parts:
        size = member.sizeof()
        remaining -= size
        kind = unnamed(member)
        mask = ((1 << size) - 1) << remaining
        found.append(BitField(member.name, remaining, size, mask, unit_of(kind, size), member.docs))
    return Bits(width, tuple(found))


@cache
def record_of(schema: Schema) -> RecordLayout:
    """Return the header and the parts of a Struct of variable length, whose lengths are fields of its header."""
    header, parts = None, []
    known = Container()
    for named in members(schema):
        kind = unnamed(named)
        if isinstance(kind, Struct):
            header = layout_of(kind)
            known[named.name] = Container({field.name: field.name for field in header.fields})
        else:
            # What computes the length from fields is given their names instead: it returns the one that it reads.
            parts.append(RecordPart(named.name, kind.length(known) if isinstance(kind, Bytes) else None, named.docs))
    return RecordLayout(header, tuple(parts))


def derived(schema: Schema) -> Bits | Layout | RecordLayout:
    """Return what follows from a schema of any kind."""
    if is_bits(schema):
        return bits_of(schema)
    try:
        schema.sizeof()
    except SizeofError:
        return record_of(schema)
    return layout_of(schema)


def unit_of(kind: Schema, width: int) -> int:
    """Return what one step of a bit field of `width` bits stands for, as where an offset is stored in sectors."""
    return int(kind.parse((1).to_bytes(width))) if isinstance(kind, Adapter) else 1


def is_bits(schema: Schema) -> bool:
    """Tell a BitStruct, whose fields are bits of one word, from a Struct of bytes."""
    return isinstance(unnamed(schema), Transformed)


# --- exact spans of records of variable length ----------------------------------------------------------------------

_START = "@"


@cache
def traced(schema: Schema) -> Schema:
    """Return the same Struct with a Tell before each field and one at the end, under names that no field has."""
    spaced: list[Schema] = []
    for member in members(schema):
        inner = unnamed(member)
        body = member.name / traced(inner) if isinstance(inner, Struct) else member
        spaced += [(_START + member.name) / Tell, body]
    return Struct(*spaced, _START / Tell)


class Traced(NamedTuple):
    """A parsed field with its byte range, from the start of the record, and the fields in it."""

    name: str
    offset: int
    size: int
    value: Any
    doc: Any
    children: tuple[Traced, ...]


def trace(schema: Schema, data: bytes) -> tuple[Traced, ...]:
    """Parse `data` and return each field with its exact span; raises construct.ConstructError on too few bytes."""
    return tuple(_trace(schema, traced(schema).parse(data)))


def _trace(schema: Schema, parsed: Any) -> Iterator[Traced]:
    parts = list(members(schema))
    starts = [parsed[_START + member.name] for member in parts] + [parsed[_START]]
    for member, start, end in zip(parts, starts, starts[1:], strict=False):
        inner, value = unnamed(member), parsed[member.name]
        children = tuple(_trace(inner, value)) if isinstance(inner, Struct) else ()
        yield Traced(member.name, start, end - start, value, member.docs, children)


# --- under the hood of Construct ------------------------------------------------------------------------------------


def unnamed(schema: Schema) -> Schema:
    """Return a schema without its name and documentation."""
    while isinstance(schema, Renamed):
        schema = schema.subcon
    return schema


def members(schema: Schema) -> list[Any]:
    """Return the named parts of a Struct or BitStruct, in order."""
    schema = unnamed(schema)
    if isinstance(schema, Transformed):
        schema = schema.subcon
    return list(schema.subcons)
