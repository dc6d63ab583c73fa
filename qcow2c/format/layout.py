"""What a schema implies, without Construct: field positions, bit masks, plain values, numpy dtypes; and words.

For each schema, `derived.py` has a `Layout`, `Bits` or `RecordLayout`; nothing here names a structure of the format.
Together with `structs.py`, `constants.py` and `derived.py` this is the only place where a mask, a shift or a binary
format string may come into being.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from qcow2c.errors import Span
from qcow2c.light import TYPE_CHECKING, NamedTuple
from qcow2c.schema import Doc

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

Value = int | bytes


# --- bit fields of a word -------------------------------------------------------------------------------------------


class BitField(NamedTuple):
    """A field of a word: `mask` lies in place; `unit` is what one step of the stored value stands for."""

    name: str
    shift: int
    width: int
    mask: int
    unit: int
    doc: Doc

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

    @property
    def size(self) -> int:
        """Bytes of the word."""
        return self.width // 8

    @cached_property
    def reserved(self) -> int:
        """The mask of all bits that the schema declares reserved."""
        return sum(member.mask for member in self.members if member.doc.reserved)

    def flags(self, **set_bits: bool) -> int:
        """Return a word with the named flags set."""
        return sum(self[name].mask for name, is_set in set_bits.items() if is_set)


# --- fields of a structure of fixed size ----------------------------------------------------------------------------


class Field(NamedTuple):
    """One field: `offset` and `size` in bytes from the start of its structure.

    `names` maps the values of an enumeration to their names; `flags` are the bits of a field that is a set of them;
    `parts` is set where the field is a structure itself, or an array of it.
    """

    name: str
    offset: int
    size: int
    doc: Doc
    is_integer: bool = True
    names: Mapping[int, str] = {}
    flags: Bits | None = None
    parts: Layout | Bits | None = None

    @property
    def all_ones(self) -> int:
        """The largest value that the field can hold."""
        return (1 << 8 * self.size) - 1

    @property
    def valid(self) -> Sequence[int]:
        """The values that an integer may have, the least first: all that it can hold where the schema names none."""
        known = self.doc.valid
        if known is None:
            return range(self.all_ones + 1)
        return known if isinstance(known, range) else [choice for choice in known if isinstance(choice, int)]


class Layout:
    """A structure of fixed size, `size` bytes: its fields, in the order of the file."""

    def __init__(self, size: int, fields: tuple[Field, ...]) -> None:
        self.size = size
        self.fields = fields
        self.by_name = {field.name: field for field in fields}

    def __getitem__(self, name: str) -> Field:
        return self.by_name[name]

    @cached_property
    def _codec(self) -> tuple[struct.Struct, tuple[str, ...]]:
        """The binary format, big-endian integers and byte strings, and the names of the fields."""
        codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
        layout = "".join(codes[field.size] if field.is_integer else f"{field.size}s" for field in self.fields)
        return struct.Struct(">" + layout), tuple(field.name for field in self.fields)

    def values(self, data: bytes | memoryview, offset: int = 0) -> dict[str, Any]:
        """Return the fields at `offset` of `data`, as integers and bytes: enumerations undecoded, structures as bytes.

        The same values as the schema's own `parse`, twenty times faster; raises struct.error on too few bytes.
        """
        codec, names = self._codec
        return dict(zip(names, codec.unpack_from(data, offset), strict=True))

    def packed(self, values: Mapping[str, Value]) -> bytes:
        """Return the structure as stored; fields that are not given are zero. The inverse of `values`."""
        codec, names = self._codec
        empty = {field.name: 0 if field.is_integer else bytes(field.size) for field in self.fields}
        return codec.pack(*(values.get(name, empty[name]) for name in names))

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of one such structure: named big-endian fields."""
        import numpy as np

        return np.dtype([(field.name, _field_type(field)) for field in self.fields])


def _field_type(field: Field) -> Any:
    if isinstance(field.parts, Layout):
        return field.parts.dtype
    is_word = field.is_integer or isinstance(field.parts, Bits)
    return f">u{field.size}" if is_word else f"V{field.size}"


# --- records of variable length -------------------------------------------------------------------------------------


class RecordPart(NamedTuple):
    """A byte string of a record. `length` names the field of the record's header that says how long it is; None: it
    reaches to the end.
    """

    name: str
    length: str | None
    doc: Doc


class RecordLayout:
    """A structure of variable length: a header of fixed size, unless it has none, and the parts behind it."""

    def __init__(self, header: Layout | None, parts: tuple[RecordPart, ...]) -> None:
        self.header = header
        self.parts = parts

    def spans(self, data: bytes) -> Iterator[tuple[RecordPart, Span]]:
        """Yield each part with its bytes, from the start of the record, of which `data` has at least the header."""
        lengths = self.header.values(data) if self.header is not None else {}
        at = self.header.size if self.header is not None else 0
        for part in self.parts:
            span = Span(at, len(data) - at if part.length is None else lengths[part.length])
            yield part, span
            at = span.end


# --- integers -------------------------------------------------------------------------------------------------------


def integer(data: bytes | bytearray | memoryview) -> int:
    """Return a big-endian integer of any width."""
    return int.from_bytes(data, "big")


def stored_integer(value: int, size: int) -> bytes:
    """Return an integer as a field of `size` bytes stores it: big-endian."""
    return value.to_bytes(size, "big")


# --- many words -----------------------------------------------------------------------------------------------------


WORD_BYTES = array("Q").itemsize
"""Of the 64-bit words of which all tables consist."""


def zero_words(count: int) -> array[int]:
    """Return words of 0, in native order as those of `words`."""
    return array("Q", bytes(count * WORD_BYTES))


def number_of(native: array[int]) -> int:
    """Return words as one number, of which they are the digits."""
    return int.from_bytes(native.tobytes(), sys.byteorder)


def wide_number(value: int, count: int) -> bytes:
    """Return a number as so many words in native order: the inverse of `number_of`, whose bytes these are."""
    return value.to_bytes(count * WORD_BYTES, sys.byteorder)


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
