"""What entries of tables mean, in words, and where in the file they lead. Looks at words only; reads no file."""

from __future__ import annotations

from collections.abc import Callable

from qcow2c.constants import SECTOR_SIZE
from qcow2c.format import tables
from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import BLOCK_OFFSET
from qcow2c.format.tables import Kind

EntryMeaning = Callable[[int, int], str]
"""Says what an entry and its bitmap mean."""

EntryTarget = Callable[[int], tuple[int, int]]
"""Says where in the file an entry leads, and how long that is; no length: nowhere."""


def l1_words(word: int, _bitmap: int = 0) -> str:
    if not word:
        return "unallocated"
    return f"L2 table at {word & tables.L1_OFFSET:#x}{', copied' if word & tables.L1_COPIED else ''}"


def l2_words(geometry: Geometry) -> EntryMeaning:
    """Return what says the meaning of the L2 entries of an image."""
    names = {
        Kind.UNALLOCATED: "unallocated",
        Kind.UNALLOCATED_IN_CLUSTER: "unallocated",
        Kind.ZERO: "zeros",
        Kind.ZERO_ALLOCATED: "zeros",
        Kind.DATA: "data",
        Kind.INVALID: "invalid",
    }

    def words(word: int, bitmap: int) -> str:
        if word & tables.L2_COMPRESSED:
            extent = tables.compressed_extent(word, geometry)
            sectors = -(-extent.length // SECTOR_SIZE)
            return f"compressed at {extent.host_offset:#x}, {extent.length} bytes in {sectors} sectors"
        copied = ", copied" if word & tables.L2_COPIED else ""
        place = f" at {word & tables.L2_OFFSET:#x}" if word & tables.L2_OFFSET else ""
        if not geometry.extended_l2:
            return names[tables.kind_of(word, 0, 0, geometry)] + place + copied
        return f"{subclusters_words(word, bitmap, geometry)}{place}{copied}"

    return words


def cluster_target(mask: int, geometry: Geometry) -> EntryTarget:
    """Return what tells the cluster whose offset is behind a mask."""
    return lambda word: (word & mask, geometry.cluster_size if word & mask else 0)


def l2_target(geometry: Geometry) -> EntryTarget:
    """Return what tells where in the image file an L2 entry leads."""
    plain = cluster_target(tables.L2_OFFSET, geometry)

    def target(word: int) -> tuple[int, int]:
        if geometry.external_data:
            return 0, 0
        if word & tables.L2_COMPRESSED:
            extent = tables.compressed_extent(word, geometry)
            return extent.host_offset, extent.length
        return plain(word)

    return target


def subclusters_words(word: int, bitmap: int, geometry: Geometry) -> str:
    """Return the states of the subclusters of an extended entry, run by run."""
    parts, index = [], 0
    while index < geometry.subclusters:
        kind = tables.kind_of(word, bitmap, index, geometry)
        if kind is Kind.INVALID:
            return f"invalid bitmap {bitmap:#018x}"
        count = tables.equal_subclusters(bitmap, index, kind)
        label = kind.name.lower().removesuffix("_in_cluster").removesuffix("_allocated")
        parts.append((index, index + count - 1, label))
        index += count
    if len(parts) == 1:
        return parts[0][2]
    return "subclusters " + ", ".join(
        f"{low}..{high} {label}" if high > low else f"{low} {label}" for low, high, label in parts
    )


def refcount_table_words(word: int, _bitmap: int = 0) -> str:
    return f"refcount block at {word & BLOCK_OFFSET:#x}" if word & BLOCK_OFFSET else "no block"


def bitmap_table_words(word: int, _bitmap: int = 0) -> str:
    if word & tables.BITMAP_OFFSET:
        return f"bitmap data at {word & tables.BITMAP_OFFSET:#x}"
    return "all ones" if word & tables.BITMAP_ALL_ONES else "all zeros"
