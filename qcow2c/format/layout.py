"""What any schema implies: field positions, bit masks, plain values, numpy dtypes and exact byte spans.

Everything is derived from a Construct schema and cached; nothing here names a structure of the format. This is the
only place, beside `structs.py`, where a mask, a shift or a binary format string may come into being.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from construct import Adapter, Enum, FormatField, Renamed, Struct, Tell, Transformed
from construct import Construct as Schema

from qcow2c.errors import Span

if TYPE_CHECKING:
    import numpy as np

Value = int | bytes


# --- fields of a structure of fixed size ----------------------------------------------------------------------------


class Field(NamedTuple):
    """One field: `offset` and `size` in bytes from the start of its structure.

    `names` maps the values of an enumeration to their names; `schema` is set where the field is a structure or an
    array itself. `doc` is a `schema.Doc`.
    """

    name: str
    offset: int
    size: int
    doc: Any
    names: Mapping[int, str]
    schema: Schema | None
    is_integer: bool

    @property
    def all_ones(self) -> int:
        """The largest value that the field can hold."""
        return (1 << 8 * self.size) - 1


@cache
def fields(schema: Schema) -> tuple[Field, ...]:
    """Return the fields of a Struct of fixed size, in the order of the file."""
    return tuple(_fields(schema))


def _fields(schema: Schema) -> Iterator[Field]:
    offset = 0
    for named in members(schema):
        kind = unnamed(named)
        size = named.sizeof()
        names = {int(value): str(name) for value, name in kind.decmapping.items()} if isinstance(kind, Enum) else {}
        is_integer = isinstance(kind, Enum | FormatField)
        compound = hasattr(kind, "subcons") or hasattr(kind, "count") or isinstance(kind, Transformed)
        yield Field(named.name, offset, size, named.docs, names, kind if compound else None, is_integer)
        offset += size


def field(schema: Schema, name: str) -> Field:
    """Return the field called `name`."""
    return next(found for found in fields(schema) if found.name == name)


@cache
def _codec(schema: Schema) -> tuple[struct.Struct, tuple[str, ...]]:
    """Derive the binary format of a flat Struct: big-endian integers and byte strings."""
    codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
    members = fields(schema)
    layout = "".join(codes[member.size] if member.is_integer else f"{member.size}s" for member in members)
    return struct.Struct(">" + layout), tuple(member.name for member in members)


def values(schema: Schema, data: bytes | memoryview, offset: int = 0) -> dict[str, Any]:
    """Return the fields of a flat Struct at `offset` of `data`, as integers and bytes: enumerations undecoded.

    The same values as the schema's own `parse`, twenty times faster; raises struct.error on too few bytes.
    """
    codec, names = _codec(schema)
    return dict(zip(names, codec.unpack_from(data, offset), strict=True))


def packed(schema: Schema, values: Mapping[str, Value]) -> bytes:
    """Return a flat Struct as stored; fields that are not given are zero. The inverse of `values`."""
    codec, names = _codec(schema)
    empty = {member.name: 0 if member.is_integer else bytes(member.size) for member in fields(schema)}
    return codec.pack(*(values.get(name, empty[name]) for name in names))


def integer(data: bytes | bytearray | memoryview) -> int:
    """Return a big-endian integer of any width."""
    return int.from_bytes(data, "big")


def stored_integer(value: int, size: int) -> bytes:
    """Return an integer as a field of `size` bytes stores it: big-endian."""
    return value.to_bytes(size, "big")


# --- bit fields of a word -------------------------------------------------------------------------------------------


class BitField(NamedTuple):
    """A field of a word: `mask` lies in place; `unit` is what one step of the stored value stands for."""

    name: str
    shift: int
    width: int
    mask: int
    unit: int
    doc: Any

    def of(self, word: int) -> int:
        """Return the field's value in `word`, as the schema decodes it."""
        return ((word & self.mask) >> self.shift) * self.unit


class Bits:
    """The bit fields of a word of `width` bits, the most significant first."""

    def __init__(self, width: int, members: tuple[BitField, ...]) -> None:
        self.width = width
        self.members = members
        self.by_name = {member.name: member for member in members}

    def __getitem__(self, name: str) -> BitField:
        return self.by_name[name]

    @cached_property
    def reserved(self) -> int:
        """The mask of all bits that the schema declares reserved."""
        return sum(member.mask for member in self.members if member.doc.reserved)


@cache
def bits(schema: Schema) -> Bits:
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


def unit_of(kind: Schema, width: int) -> int:
    """Return what one step of a bit field of `width` bits stands for, as where an offset is stored in sectors."""
    return int(kind.parse((1).to_bytes(width))) if isinstance(kind, Adapter) else 1


def flags(schema: Schema, **set_bits: bool) -> int:
    """Return a word with the named flags of a BitStruct set."""
    return sum(bits(schema)[name].mask for name, is_set in set_bits.items() if is_set)


# --- many words: array and numpy ------------------------------------------------------------------------------------


WORD_BYTES = array("Q").itemsize
"""Of the 64-bit words of which all tables consist."""


def zero_words(count: int) -> array[int]:
    """Return words of 0, in native order as those of `words`."""
    return array("Q", bytes(count * WORD_BYTES))


def word_span(table_offset: int, index: int) -> Span:
    """Return the bytes of one word of a table."""
    return Span(table_offset + index * WORD_BYTES, WORD_BYTES)


def words(data: bytes | memoryview) -> array[int]:
    """Return big-endian 64-bit words in native order; a torn last word is left out."""
    decoded = array("Q")
    decoded.frombytes(memoryview(data)[: len(data) // WORD_BYTES * WORD_BYTES])
    if sys.byteorder == "little":
        decoded.byteswap()
    return decoded


def table_words(data: bytes, entries: int) -> array[int]:
    """Return a table of `entries` words of which the file holds `data`: what it lacks is zeros."""
    return words(data.ljust(entries * 8, b"\0"))


def stored(native: array[int]) -> bytes:
    """Return words, of the width of the array's items, as they are stored: big-endian."""
    if sys.byteorder == "little" and native.itemsize > 1:
        native = native[:]
        native.byteswap()
    return native.tobytes()


@cache
def dtype(schema: Schema) -> np.dtype[Any]:
    """Return the numpy dtype of one entry: a word for a BitStruct, named big-endian fields for a Struct."""
    import numpy as np

    if is_bits(schema):
        return np.dtype(f">u{schema.sizeof()}")
    return np.dtype(
        [
            (member.name, dtype(member.schema) if member.schema is not None else _scalar(member))
            for member in fields(schema)
        ]
    )


def _scalar(member: Field) -> str:
    return f">u{member.size}" if member.is_integer else f"V{member.size}"


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
