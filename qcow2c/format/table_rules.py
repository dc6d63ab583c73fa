"""Each validity rule of L1, L2, refcount table and bitmap table entries once. Looks at words only; reads no file.

The rules are written with operators that mean the same for one integer and for an array of words, so that one
spelling serves the reader of a single entry and the sweep over millions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qcow2c.constants import Limit
from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import BLOCK_OFFSET, TABLE_RESERVED
from qcow2c.format.tables import (
    BITMAP_ALL_ONES,
    BITMAP_OFFSET,
    BITMAP_RESERVED,
    L1_OFFSET,
    L1_RESERVED,
    L2_COMPRESSED,
    L2_COPIED,
    L2_OFFSET,
    L2_RESERVED,
    L2_ZERO,
    SUBCLUSTERS_ALLOCATED,
    SUBCLUSTERS_ZERO_SHIFT,
    compressed_masks,
)
from qcow2c.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any, TypeAlias


Words: TypeAlias = "Any"
"""One word as an int, or an array of uint64."""


class EntryRule(NamedTuple):
    """`broken(entry, bitmap, geometry)` is truthy, entry by entry, where the rule does not hold.

    `needs(geometry)` has the entry bits of which at least one must be set for the rule to be broken, so that a whole
    table can be passed at a glance. `counted`: QEMU's check counts the entry as a corruption.
    """

    rule: str
    message: str
    spec: str
    needs: Callable[[Geometry], int]
    broken: Callable[[Words, Words, Geometry], Words]
    counted: bool = True


def _offset_in_cluster(mask: int) -> Callable[[Geometry], int]:
    return lambda geometry: mask & (geometry.cluster_size - 1)


def _impossible_offset(geometry: Geometry) -> int:
    """The bits of a compressed descriptor's offset that no host offset has; none with large clusters."""
    return compressed_masks(geometry.cluster_bits)[0] & ~(Limit.HOST_OFFSET_END - 1)


def _is_standard(entry: Words) -> Words:
    return (entry & L2_COMPRESSED) == 0


def _is_compressed(entry: Words) -> Words:
    return (entry & L2_COMPRESSED) != 0


def _has_cluster(entry: Words, geometry: Geometry) -> Words:
    present = (entry & L2_OFFSET) != 0
    return present | ((entry & L2_COPIED) != 0) if geometry.external_data else present


L1_RULES = (
    EntryRule(
        "l1.reserved",
        "reserved bits are set in the L1 entry",
        "Cluster mapping",
        lambda _geometry: L1_RESERVED,
        lambda entry, _bitmap, _geometry: (entry & L1_RESERVED) != 0,
    ),
    EntryRule(
        "l1.misaligned",
        "the L2 table is not cluster-aligned",
        "Cluster mapping",
        _offset_in_cluster(L1_OFFSET),
        lambda entry, _bitmap, geometry: (entry & L1_OFFSET & (geometry.cluster_size - 1)) != 0,
    ),
)

L2_RULES = (
    EntryRule(
        "l2.reserved",
        "reserved bits are set in the L2 entry",
        "Cluster mapping",
        lambda _geometry: L2_RESERVED,
        lambda entry, _bitmap, _geometry: _is_standard(entry) & ((entry & L2_RESERVED) != 0),
    ),
    EntryRule(
        "l2.misaligned",
        "the host cluster is not cluster-aligned",
        "Cluster mapping",
        _offset_in_cluster(L2_OFFSET),
        lambda entry, _bitmap, geometry: _is_standard(entry) & ((entry & L2_OFFSET & (geometry.cluster_size - 1)) != 0),
    ),
    EntryRule(
        "l2.compressed_copied",
        "the copied bit is set for a compressed cluster",
        "Cluster mapping",
        lambda _geometry: L2_COMPRESSED,
        lambda entry, _bitmap, _geometry: _is_compressed(entry) & ((entry & L2_COPIED) != 0),
    ),
    EntryRule(
        "l2.compressed_external",
        "a compressed cluster in an image with an external data file",
        "Header",
        lambda _geometry: L2_COMPRESSED,
        lambda entry, _bitmap, geometry: _is_compressed(entry) & geometry.external_data,
    ),
    EntryRule(
        "l2.zero_bit",
        "the zero bit is set, which version 2 and extended L2 entries do not have",
        "Cluster mapping",
        lambda _geometry: L2_ZERO,
        lambda entry, _bitmap, geometry: _is_standard(entry) & ((entry & L2_ZERO) != 0) & (not geometry.has_zero_bit),
        counted=False,
    ),
    EntryRule(
        "l2.compressed_offset",
        "compressed data beyond any host offset",
        "Cluster mapping",
        _impossible_offset,
        lambda entry, _bitmap, geometry: _is_compressed(entry) & ((entry & _impossible_offset(geometry)) != 0),
        counted=False,
    ),
)

EXTENDED_L2_RULES = (
    EntryRule(
        "l2.compressed_bitmap",
        "a compressed cluster has a subcluster bitmap",
        "Extended L2 Entries",
        lambda _geometry: L2_COMPRESSED,
        lambda entry, bitmap, _geometry: _is_compressed(entry) & (bitmap != 0),
    ),
    EntryRule(
        "l2.subclusters_contradict",
        "subclusters are both allocated and zero",
        "Extended L2 Entries",
        lambda _geometry: L2_OFFSET | L2_COPIED,
        lambda entry, bitmap, geometry: (
            _is_standard(entry)
            & _has_cluster(entry, geometry)
            & ((bitmap >> SUBCLUSTERS_ZERO_SHIFT & bitmap & SUBCLUSTERS_ALLOCATED) != 0)
        ),
    ),
    EntryRule(
        "l2.subclusters_without_cluster",
        "subclusters are allocated, but there is no host cluster",
        "Extended L2 Entries",
        lambda _geometry: -1,
        lambda entry, bitmap, geometry: (
            _is_standard(entry) & (_has_cluster(entry, geometry) == 0) & ((bitmap & SUBCLUSTERS_ALLOCATED) != 0)
        ),
    ),
)

REFCOUNT_TABLE_RULES = (
    EntryRule(
        "refcount_table.reserved",
        "reserved bits are set in the refcount table entry",
        "Host cluster management",
        lambda _geometry: TABLE_RESERVED,
        lambda entry, _bitmap, _geometry: (entry & TABLE_RESERVED) != 0,
    ),
    EntryRule(
        "refcount_table.misaligned",
        "the refcount block is not cluster-aligned",
        "Host cluster management",
        _offset_in_cluster(BLOCK_OFFSET),
        lambda entry, _bitmap, geometry: (entry & BLOCK_OFFSET & (geometry.cluster_size - 1)) != 0,
    ),
)

BITMAP_TABLE_RULES = (
    EntryRule(
        "bitmap_table.reserved",
        "reserved bits are set in the bitmap table entry",
        "Bitmap table",
        lambda _geometry: BITMAP_RESERVED | BITMAP_ALL_ONES,
        lambda entry, _bitmap, _geometry: (
            ((entry & BITMAP_RESERVED) != 0) | (((entry & BITMAP_OFFSET) != 0) & ((entry & BITMAP_ALL_ONES) != 0))
        ),
    ),
    EntryRule(
        "bitmap_table.misaligned",
        "the bitmap data is not cluster-aligned",
        "Bitmap table",
        _offset_in_cluster(BITMAP_OFFSET),
        lambda entry, _bitmap, geometry: (entry & BITMAP_OFFSET & (geometry.cluster_size - 1)) != 0,
    ),
)


def l2_rules(geometry: Geometry) -> tuple[EntryRule, ...]:
    """Return the rules of this image's L2 entries."""
    return L2_RULES + EXTENDED_L2_RULES if geometry.extended_l2 else L2_RULES


def broken_rules(rules: tuple[EntryRule, ...], entry: int, bitmap: int, geometry: Geometry) -> Iterator[EntryRule]:
    """Yield the rules that one entry breaks."""
    for rule in rules:
        if rule.broken(entry, bitmap, geometry):
            yield rule


def without_place(entry: int, geometry: Geometry) -> int:
    """Return an L2 entry that breaks the same rules and says nothing more of where its data is than that it has some.

    So few of them stand for all entries of an image.
    """
    if entry & L2_COMPRESSED:
        offset_mask, sectors_mask, _ = compressed_masks(geometry.cluster_bits)
        return entry & ~(sectors_mask | offset_mask & (Limit.HOST_OFFSET_END - 1))
    place = L2_OFFSET & -geometry.cluster_size
    return entry & ~place | (geometry.cluster_size if entry & place else 0)


def suspects(rules: tuple[EntryRule, ...], seen_bits: int, geometry: Geometry) -> tuple[EntryRule, ...]:
    """Return the rules that some entry of a table may break, given the OR of all its entries."""
    return tuple(rule for rule in rules if seen_bits & rule.needs(geometry) or rule.needs(geometry) < 0)
