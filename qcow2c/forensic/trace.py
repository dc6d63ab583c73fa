"""Two questions of a dump: what a byte of the file belongs to, and where a byte of the virtual disk comes from.

Both look at one file, read in batches; where a path leads into a backing file, its name is said, and it is not opened.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import ENTRY_BYTES
from qcow2c.errors import Span
from qcow2c.forensic.entry_words import l1_words, l2_words, subclusters_words
from qcow2c.forensic.nodes import Node, text_of
from qcow2c.forensic.table_nodes import state_name
from qcow2c.format import tables
from qcow2c.format.refcounts import BLOCK_OFFSET
from qcow2c.format.tables import Kind
from qcow2c.references.ownership import HostUse, extents
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.walk import State, Walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array


# --- a byte of the file ---------------------------------------------------------------------------------------------


def host_nodes(walk: Walk, offset: int, sections: Iterator[Node]) -> Iterator[Node]:
    """Yield what byte `offset` of the file belongs to, its refcount, the deepest nodes there, and what refers to it.

    `sections` are the sections of a dump in which the byte is looked up.
    """
    cluster = offset >> walk.geometry.cluster_bits
    for extent in extents(walk, walk.geometry.cluster_size):
        if extent.offset <= offset < extent.end:
            owner = extent.owner.name.lower()
            label = owner if extent.use in (HostUse.OWNED, HostUse.OVERLAP) else extent.use.value
            words = f"{extent.use.value}, {offset - extent.offset} bytes into it"
            yield Node("belongs to", Span(extent.offset, extent.length), label, words)
    refcounts = StoredRefcounts(walk)
    count = int(refcounts.whole_at(np.array([cluster], dtype=np.uint64))[0])
    start = cluster << walk.geometry.cluster_bits
    yield Node("host cluster", Span(start, walk.geometry.cluster_size), cluster, f"refcount {count}")
    for section in sections:
        yield from _containing(section, offset, section.name)
    yield from _referrers(walk, start)


def _containing(node: Node, offset: int, path: str) -> Iterator[Node]:
    """Yield the deepest nodes below this one that hold a byte."""
    for child in node.children:
        span = child.span
        if span is not None and not span.offset <= offset < span.end and not child.name.startswith("snapshot "):
            continue
        below = list(_containing(child, offset, f"{path} / {child.name}"))
        yield from below
        if not below and span is not None and span.offset <= offset < span.end:
            yield Node(f"{path} / {child.name}", span, child.value, child.text, child.doc, child.unit, child.spec)


def _referrers(walk: Walk, start: int) -> Iterator[Node]:
    """Yield every entry that points to the host cluster at `start`, with the states that reach it."""
    states = yield from _l1_referrers(walk, start)
    yield from _l2_referrers(walk, start, states)
    if start:  # Offset 0 in a refcount or bitmap table means that there is nothing.
        yield from _refcount_table_referrers(walk, start)
        yield from _bitmap_table_referrers(walk, start)


def _l1_referrers(walk: Walk, start: int) -> Generator[Node, None, dict[int, list[str]]]:
    """Yield the L1 entries; return the labels of the states that reach each L2 table, by its offset."""
    states: dict[int, list[str]] = {}
    for state in walk.states():
        if not state.walkable:
            continue
        label = state_label(walk, state)
        words = walk.l1_table(state)
        for index in np.flatnonzero(words).tolist():
            table = int(words[index]) & tables.L1_OFFSET
            states.setdefault(table, []).append(label)
            if table == start:
                at = state.l1_offset + ENTRY_BYTES * index
                yield _referrer("L1 entry", at, index, int(words[index]), label)
    return states


def _l2_referrers(walk: Walk, start: int, states: dict[int, list[str]]) -> Iterator[Node]:
    found = walk.stored_tables()
    entry_size = walk.geometry.l2_entry_bytes
    for first, end in walk.batches(found):
        batch = walk.batch(found, first, end)
        rows, columns = np.nonzero(_points_to(batch.entries, walk, start))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            table = int(batch.offsets[row])
            labels = ", ".join(dict.fromkeys(states.get(table, [])))
            word = int(batch.entries[row, column])
            yield _referrer("L2 entry", table + entry_size * column, column, word, labels)


def _refcount_table_referrers(walk: Walk, start: int) -> Iterator[Node]:
    words = walk.refcount_table()
    for index in np.flatnonzero((words & np.uint64(BLOCK_OFFSET)) == np.uint64(start)).tolist():
        at = walk.header.refcount_table_offset + ENTRY_BYTES * index
        yield _referrer("refcount table entry", at, index, int(words[index]), "refcounts")


def _bitmap_table_referrers(walk: Walk, start: int) -> Iterator[Node]:
    for number, record in enumerate(walk.bitmaps.records):
        entries = walk.words(record.bitmap_table_offset, min(record.bitmap_table_size, walk.size // ENTRY_BYTES))
        for index in np.flatnonzero((entries & np.uint64(tables.BITMAP_OFFSET)) == np.uint64(start)).tolist():
            at = record.bitmap_table_offset + ENTRY_BYTES * index
            yield _referrer("bitmap table entry", at, index, int(entries[index]), f"bitmap {number}")


def _points_to(entries: U64Array, walk: Walk, start: int) -> NDArray[np.bool_]:
    compressed = (entries & np.uint64(tables.L2_COMPRESSED)) != 0
    if walk.geometry.external_data:
        return np.zeros_like(compressed)
    found: NDArray[np.bool_] = ~compressed & ((entries & np.uint64(tables.L2_OFFSET)) == np.uint64(start))
    found &= (entries & np.uint64(tables.L2_OFFSET)) != 0
    if compressed.any():
        offsets, lengths = tables.compressed_extents(entries, walk.geometry)
        size = np.uint64(walk.geometry.cluster_size)
        found |= compressed & (offsets < np.uint64(start) + size) & (offsets + lengths > np.uint64(start))
    return found


def _referrer(kind: str, at: int, index: int, word: int, states: str) -> Node:
    return Node(f"{kind} [{index}]", Span(at, ENTRY_BYTES), word, f"of {states}" if states else "")


def state_label(walk: Walk, state: State) -> str:
    """Return how a state is called: "active", or the snapshot's index and name."""
    if state.index < 0:
        return state_name(state)
    name, _ = text_of(walk.snapshots.records[state.index].name)
    return f"snapshot {state.index} ({name})"


# --- a byte of the virtual disk -------------------------------------------------------------------------------------


def guest_nodes(walk: Walk, guest_offset: int) -> Iterator[Node]:
    """Yield for each state a node whose children are the steps from the guest offset to its bytes."""
    for state in walk.states():
        words = f"disk of {state.disk_size} bytes"
        if guest_offset >= state.disk_size:
            words += ": the offset is beyond its end"
        yield Node(
            state_label(walk, state), None, None, words, make_children=partial(_steps, walk, state, guest_offset)
        )


def _steps(walk: Walk, state: State, guest_offset: int) -> Iterator[Node]:
    geometry = walk.geometry
    l1_index = guest_offset >> geometry.l2_coverage_bits
    at = state.l1_offset + ENTRY_BYTES * l1_index
    if l1_index >= state.l1_entries or not state.walkable:
        yield Node(f"L1 entry [{l1_index}]", None, None, "there is none: the L1 table is shorter")
        yield from _below(walk)
        return
    if at + 8 > walk.size and geometry.leaves(state.l1_offset + 8 * state.l1_entries, walk.size):
        yield Node(f"L1 entry [{l1_index}]", Span(at, 8), None, "past the end of the file")
        return
    word = int(walk.words(at, 1)[0])
    yield Node(f"L1 entry [{l1_index}]", Span(at, ENTRY_BYTES), word, l1_words(word), spec="Cluster mapping")
    table = word & tables.L1_OFFSET
    if not table:
        yield from _below(walk)
        return
    l2_index = guest_offset >> geometry.cluster_bits & (geometry.l2_entries - 1)
    entry_size = geometry.l2_entry_bytes
    at = table + entry_size * l2_index
    if geometry.leaves(at + entry_size, walk.size):
        yield Node(f"L2 entry [{l2_index}]", Span(at, entry_size), None, "past the end of the file")
        return
    found = walk.words(at, geometry.l2_entry_words).tolist()
    entry, bitmap = found[0], found[1] if len(found) > 1 else 0
    yield Node(
        f"L2 entry [{l2_index}]", Span(at, entry_size), entry, l2_words(geometry)(entry, bitmap), spec="Cluster mapping"
    )
    yield from _bytes(walk, entry, bitmap, guest_offset)


def _bytes(walk: Walk, entry: int, bitmap: int, guest_offset: int) -> Iterator[Node]:
    geometry = walk.geometry
    inside = guest_offset & (geometry.cluster_size - 1)
    subcluster = inside // geometry.subcluster_size
    kind = tables.kind_of(entry, bitmap, subcluster, geometry)
    if geometry.extended_l2 and kind is not Kind.COMPRESSED:
        yield Node(f"subcluster {subcluster}", None, None, kind.name.lower().replace("_", " "))
    if kind is Kind.COMPRESSED:
        extent = tables.compressed_extent(entry, geometry)
        words = f"byte {inside} of the cluster after decompression"
        yield Node("compressed data", Span(extent.host_offset, extent.length), None, words)
    elif kind is Kind.DATA:
        host = (entry & tables.L2_OFFSET) + inside
        where = "in the external data file" if geometry.external_data else ""
        beyond = not geometry.external_data and geometry.leaves(host + 1, walk.size)
        yield Node("data", Span(host, 1), host, "past the end of the file" if beyond else where or f"byte {host:#x}")
    elif kind in (Kind.ZERO, Kind.ZERO_ALLOCATED):
        yield Node("zeros", None, None, "the byte reads as zero")
    elif kind is Kind.INVALID:
        yield Node("invalid", None, None, subclusters_words(entry, bitmap, geometry))
    else:
        yield from _below(walk)


def _below(walk: Walk) -> Iterator[Node]:
    name = walk.header.backing_file
    if name is None:
        yield Node("zeros", None, None, "unallocated, and there is no backing file: the byte reads as zero")
    else:
        shown, exact = text_of(name)
        yield Node("backing file", None, shown, "unallocated: goes on at the same offset there", hex=exact)
