"""Strategies inferred from the schemas: what a field may hold follows from its type and its documentation."""

from __future__ import annotations

from typing import Any

from construct import Adapter, Array, BitsInteger, Bytes, Container, Enum, Flag, FormatField, GreedyBytes, Struct
from construct import Construct as Schema
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from qcow2c.constants import Limit
from qcow2c.format import layout, tables
from qcow2c.format.derivation import is_bits, members, unit_of, unnamed
from qcow2c.format.geometry import Geometry
from qcow2c.format.table_rules import BITMAP_TABLE_RULES, L1_RULES, broken_rules, l2_rules
from qcow2c.structs import BITMAP_TABLE_ENTRY, L1_ENTRY, STANDARD_L2_ENTRY, SUBCLUSTER_BITMAP, compressed_descriptor

MAX_LENGTH = 64
"""Bytes of what has a length of its own, where nothing else is asked for."""


_LENGTHS = ("id_str_size", "name_size", "extra_data_size")


def from_schema(schema: Schema, *, hostile: bool = False, **overrides: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Return a strategy of values that `schema.build` takes: dictionaries for structures, with fields by name.

    Each field keeps to its documented bounds and choices, and reserved ones are zero; `hostile=True` draws from all
    that the field can hold. `overrides` are strategies for fields by name, at any depth. Lengths of what follows in a
    record are short.
    """
    kind = unnamed(schema)
    if hasattr(kind, "subcons") or is_bits(kind):
        return _structure(schema, overrides, hostile=hostile)
    return _field(schema, kind, overrides, hostile=hostile)


def stored(schema: Schema, *, hostile: bool = False, **overrides: SearchStrategy[Any]) -> SearchStrategy[bytes]:
    """Return a strategy of the bytes of a structure; see `from_schema`."""
    return from_schema(schema, hostile=hostile, **overrides).map(schema.build)


@st.composite
def _structure(draw: DrawFn, schema: Schema, overrides: dict[str, SearchStrategy[Any]], *, hostile: bool) -> Any:
    values: dict[str, Any] = {}
    if any(callable(getattr(unnamed(member), "length", None)) for member in members(schema)):
        # What has a length of its own follows: it must be drawn, too, however hostile the rest.
        overrides = {name: st.integers(1, MAX_LENGTH) for name in _LENGTHS} | overrides if hostile else overrides
    for member in members(schema):
        if member.name in overrides:
            values[member.name] = draw(overrides[member.name])
            continue
        kind = unnamed(member)
        if isinstance(kind, Bytes) and callable(kind.length):
            length = kind.length(Container({name: _container(value) for name, value in values.items()}))
            values[member.name] = draw(st.binary(min_size=length, max_size=length))
        else:
            values[member.name] = draw(_field(member, kind, overrides, hostile=hostile))
    return values


def _container(value: Any) -> Any:
    return Container(value) if isinstance(value, dict) else value


def _field(
    member: Schema, kind: Schema, overrides: dict[str, SearchStrategy[Any]], *, hostile: bool
) -> SearchStrategy[Any]:
    if isinstance(kind, Array):
        element = from_schema(kind.subcon, hostile=hostile, **overrides)
        return st.lists(element, min_size=kind.count, max_size=kind.count)
    if isinstance(kind, Struct) or is_bits(kind):
        return _structure(member, overrides, hostile=hostile)
    valid = getattr(member.docs, "valid", None)
    if kind is Flag:
        return st.sampled_from([bool(value) for value in valid]) if valid and not hostile else st.booleans()
    if kind is GreedyBytes:
        return st.binary(max_size=MAX_LENGTH)
    if isinstance(kind, Bytes):
        return _bytes(member, kind.length, valid, hostile=hostile)
    return _integer(member, kind, valid, hostile=hostile)


def _bytes(member: Schema, length: int, valid: Any, *, hostile: bool) -> SearchStrategy[bytes]:
    if not hostile and getattr(member.docs, "reserved", False):
        return st.just(bytes(length))
    if not hostile and valid:
        return st.sampled_from(list(valid))
    return st.binary(min_size=length, max_size=length)


def _integer(member: Schema, kind: Schema, valid: Any, *, hostile: bool) -> SearchStrategy[int]:
    """Integers, enumerations (as integers), bits of a word, and offsets that are stored in sectors."""
    width, unit = _width(kind)
    everything = st.integers(0, (1 << width) - 1).map(lambda value: value * unit)
    if hostile:
        return everything
    if valid is None:
        return _lengths(member, everything)
    if isinstance(valid, range):
        start, step = valid.start, valid.step  # Some ranges are too long for len().
        last = (min(valid.stop, (1 << width) * unit) - 1 - start) // step
        return _lengths(member, st.integers(0, last).map(lambda position: start + position * step))
    return st.sampled_from([int(value) for value in valid])


def _lengths(member: Schema, drawn: SearchStrategy[int]) -> SearchStrategy[int]:
    """Keep the lengths of what follows in a record short."""
    if member.name not in _LENGTHS:
        return drawn
    return drawn.map(lambda value: value if value <= MAX_LENGTH else value % MAX_LENGTH + 1)


def _width(kind: Schema) -> tuple[int, int]:
    """Return how many bits a field has, and what one step of its value stands for."""
    if isinstance(kind, FormatField):
        return kind.sizeof() * 8, 1
    if isinstance(kind, Enum):
        return _width(kind.subcon)
    if isinstance(kind, BitsInteger):
        return int(kind.length), 1
    if isinstance(kind, Adapter):
        width = int(kind.subcon.length)
        return width, unit_of(kind, width)
    raise TypeError(f"no strategy for {kind!r}")


# --- entries of tables, as words ------------------------------------------------------------------------------------


def _word(schema: Schema) -> SearchStrategy[int]:
    return stored(schema).map(layout.integer)


def l1_entries(geometry: Geometry) -> SearchStrategy[int]:
    """Return a strategy of L1 entries that break no rule. Spec: "Cluster mapping"."""
    return st.just(0) | _aligned(L1_ENTRY, tables.L1_OFFSET, geometry).filter(
        lambda word: not any(broken_rules(L1_RULES, word, 0, geometry))
    )


def bitmap_table_entries(geometry: Geometry) -> SearchStrategy[int]:
    """Return a strategy of bitmap table entries that break no rule. Spec: "Bitmap table"."""
    return st.sampled_from([0, tables.BITMAP_ALL_ONES]) | _aligned(
        BITMAP_TABLE_ENTRY, tables.BITMAP_OFFSET, geometry
    ).filter(lambda word: not any(broken_rules(BITMAP_TABLE_RULES, word, 0, geometry)))


def l2_entries(geometry: Geometry) -> SearchStrategy[int]:
    """Return a strategy of L2 entries, compressed ones too, that break no rule. Spec: "Cluster mapping".

    Of extended entries, only the descriptor, valid where no subcluster is allocated.
    """
    entries = st.just(0) | _aligned(STANDARD_L2_ENTRY, tables.L2_OFFSET, geometry).map(_not_compressed(geometry))
    if not geometry.external_data:
        packed = _word(compressed_descriptor(geometry.cluster_bits))
        entries |= packed.filter(
            lambda word: tables.compressed_extent(word, geometry).host_offset < Limit.HOST_OFFSET_END
        )
    return entries.filter(lambda word: not any(broken_rules(l2_rules(geometry), word, 0, geometry)))


@st.composite
def extended_l2_entries(draw: DrawFn, geometry: Geometry) -> tuple[int, int]:
    """Draw descriptor and subcluster bitmap that break no rule. Spec: "Extended L2 Entries"."""
    entry = draw(l2_entries(geometry))
    if entry & tables.L2_COMPRESSED:
        return entry, 0
    bitmap = draw(_word(SUBCLUSTER_BITMAP))
    zeros = bitmap >> tables.SUBCLUSTERS_ZERO_SHIFT
    if not entry & tables.L2_OFFSET:
        bitmap &= ~tables.SUBCLUSTERS_ALLOCATED
    return entry, bitmap & ~(zeros & tables.SUBCLUSTERS_ALLOCATED)


def _aligned(schema: Schema, offset_mask: int, geometry: Geometry) -> SearchStrategy[int]:
    inside = offset_mask & (geometry.cluster_size - 1)
    return _word(schema).map(lambda word: word & ~inside)


def _not_compressed(geometry: Geometry) -> Any:
    zero = 0 if geometry.has_zero_bit else tables.L2_ZERO
    return lambda word: word & ~(tables.L2_COMPRESSED | zero)
