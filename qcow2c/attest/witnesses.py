"""Two ways to read one structure: by the schemas of `structs.py`, and by the parser compiled from formats/qcow2.ksy.

Both give the fields as a flat list of dotted names and plain values, so that they can be compared. This is the only
place that touches the compiled parser, which has no types: what it returns is Any here, and nowhere else. It decides
nothing, and knows no structure by name.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from construct import Construct as Schema
from kaitaistruct import KaitaiStream, KaitaiStruct, KaitaiStructError

from qcow2c.attest._kaitai.names import ORIGINAL_NAMES
from qcow2c.constants import Limit
from qcow2c.errors import Span
from qcow2c.format import layout
from qcow2c.format.derivation import Traced, bits_of, trace
from qcow2c.format.layout import Value
from qcow2c.storage.sources import Store

READ_BYTES: Final = 1 << Limit.CLUSTER_BITS[-1]
"""The most that a parser may ask for at once; no structure that is read whole is larger than a cluster."""

WINDOW_BYTES: Final = 8192
"""What is read ahead of the many small reads of the compiled parser."""

UPPER: Final = "_upper"
LOWER: Final = "_lower"
"""The ends of the names of two fields that are one in the specification; an attribute without the end joins them."""

DERIVED: Final = {"length_and_offset": "num_additional_sectors"}
"""Fields of the Kaitai description that hold parts of several values, and the one that no other field leads to."""


# --- by the schemas -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field without fields of its own, as the schema reads it. `name` is dotted, `where` its bytes in the file."""

    name: str
    where: Span
    value: Value


def bit_values(schema: Schema, data: bytes, prefix: str = "") -> dict[str, Value]:
    """Return the bit fields of a word by name."""
    word = layout.integer(data[: schema.sizeof()])
    return {prefix + member.name: member.of(word) for member in bits_of(schema).members}


def leaves(schema: Schema, data: bytes, at: int, prefix: str = "") -> list[Leaf]:
    """Return the fields of a Struct whose bytes lie at byte `at`; lists are left out. Raises ConstructError."""
    return [leaf for traced in trace(schema, data) for leaf in _leaves(traced, data, at, prefix)]


def _leaves(traced: Traced, data: bytes, at: int, prefix: str) -> Iterator[Leaf]:
    name, where = prefix + traced.name, Span(at + traced.offset, traced.size)
    if traced.children:
        for child in traced.children:
            yield from _leaves(child, data, at, f"{name}.")
    elif traced.doc.bits is not None:
        raw = data[traced.offset : traced.offset + traced.size]
        for bit_name, value in bit_values(traced.doc.bits, raw, f"{name}.").items():
            yield Leaf(bit_name, where, value)
    elif not isinstance(traced.value, list):
        yield Leaf(name, where, traced.value if isinstance(traced.value, bytes) else int(traced.value))


# --- by the compiled parser -----------------------------------------------------------------------------------------


class OversizedRead(Exception):
    """The compiled parser asks for more bytes at once than any structure has."""


REFUSALS: Final = (KaitaiStructError, OversizedRead)
"""What the compiled parser raises because of what the image holds."""


class StoreFile:
    """A range of a store as the seekable file that a Kaitai stream reads from."""

    def __init__(self, store: Store, start: int = 0, end: int | None = None) -> None:
        self._store, self._start = store, start
        self._size = (store.size() if end is None else end) - start
        self._position = 0
        self._window, self._window_start = b"", 0

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._position, 0)
        if size < 0:
            size = left
        if size > READ_BYTES:
            raise OversizedRead(f"a length of {size} bytes, more than {READ_BYTES}")
        size = min(size, left)
        at = self._position - self._window_start
        if at < 0 or at + size > len(self._window):
            self._window_start, at = self._position, 0
            self._window = self._store.pread(min(max(size, WINDOW_BYTES), left), self._start + self._position)
        found = self._window[at : at + size]
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (self._size if whence == io.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        return self._position


class Kaitai:
    """One compiled form of the description, on one store.

    `position` is the byte of the file at which the structure that `at` or `within` made last ended.
    """

    def __init__(self, module: Any, store: Store) -> None:
        self._types = module.Qcow2
        self._store = store
        self._stream = KaitaiStream(StoreFile(store))
        self.position = 0

    @cached_property
    def root(self) -> Any:
        """The image. Making it reads the header."""
        return self._types(self._stream)

    def at(self, name: str, offset: int, *parameters: int) -> Any:
        """Return the type called `name`, read at `offset` of the file."""
        return self._made(name, self._stream, offset, parameters)

    def within(self, name: str, area: Span, offset: int) -> Any:
        """Return the type called `name`, read at `offset` of the file as if the file were `area` alone."""
        stream = KaitaiStream(StoreFile(self._store, area.offset, area.end))
        made = self._made(name, stream, offset - area.offset, ())
        self.position += area.offset
        return made

    def _made(self, name: str, stream: Any, offset: int, parameters: tuple[int, ...]) -> Any:
        root = self.root
        stream.seek(offset)
        made = getattr(self._types, name)(*parameters, stream, root, root)
        self.position = stream.pos()
        return made


def kaitai_values(node: Any) -> dict[str, Value]:
    """Return the fields of a compiled structure by the dotted names of the specification, without lists.

    Plain bytes have an empty name.
    """
    return {"": node} if isinstance(node, bytes) else dict(_values(node, ""))


def _values(node: Any, prefix: str) -> Iterator[tuple[str, Value]]:
    for name, value in tuple(vars(node).items()):  # Derived values are kept in the node.
        if name.startswith("_") or isinstance(value, list):
            continue
        if isinstance(value, KaitaiStruct):
            yield from _values(value, f"{prefix}{name}.")
        elif not name.endswith(LOWER):
            whole = DERIVED.get(name, name.removesuffix(UPPER))
            found = value if whole == name else getattr(node, whole)
            yield prefix + ORIGINAL_NAMES.get(whole, whole), found if isinstance(found, bytes) else int(found)
