"""Nodes of the tables: L1, L2, refcount table and blocks, bitmap tables. Read in batches, folded into runs by arrays.

A run is entries that are all the same, or of which each lies one cluster behind the one before: nothing is lost by
folding them. Entries that are zero are left out of the text by the renderers, but not of the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import ENTRY_BYTES, Limit
from qcow2c.errors import Span
from qcow2c.forensic.entry_words import (
    EntryMeaning,
    EntryTarget,
    bitmap_table_words,
    cluster_target,
    l1_words,
    l2_target,
    l2_words,
    refcount_table_words,
)
from qcow2c.forensic.nodes import Node, size_text
from qcow2c.format import tables
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import BLOCK_OFFSET, refcounts
from qcow2c.format.table_rules import (
    BITMAP_TABLE_RULES,
    L1_RULES,
    REFCOUNT_TABLE_RULES,
    EntryRule,
    broken_rules,
    l2_rules,
    suspects,
)
from qcow2c.references.counts import end_of_room
from qcow2c.references.walk import ACTIVE, State, Walk

if TYPE_CHECKING:
    from qcow2c.format.array_types import U64Array


@dataclass(frozen=True, slots=True)
class TableDisplay:
    """How the entries of one kind of table are shown: their size in bytes, their rules, and their meaning."""

    entry_size: int
    rules: tuple[EntryRule, ...]
    words: EntryMeaning
    spec: str
    target: EntryTarget
    end: int
    """Where in the file a target must end."""


# --- runs -----------------------------------------------------------------------------------------------------------


def runs(words: U64Array, bitmaps: U64Array | None, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first, count, step) of each run of entries, in order and without gaps; step is 0 or `stride`."""
    total = len(words)
    if total < 2:
        if total:
            yield 0, 1, 0
        return
    difference = words[1:] - words[:-1]
    same = difference == 0
    behind = (difference == np.uint64(stride)) & (words[:-1] != 0)
    if bitmaps is not None:
        equal = bitmaps[1:] == bitmaps[:-1]
        same &= equal
        behind &= equal
    kind = np.where(same, np.uint8(1), np.where(behind, np.uint8(2), np.uint8(0)))
    edges = [0, *(np.flatnonzero(kind[1:] != kind[:-1]) + 1).tolist(), total - 1]
    position = 0
    for start, end in pairwise(edges):
        step = int(kind[start])
        if step == 0:
            for single in range(position, end):
                yield single, 1, 0
            position = max(position, end)
        elif position <= end:
            yield position, end - position + 1, stride if step == 2 and end > position else 0
            position = end + 1
    if position < total:
        yield position, 1, 0


def entry_nodes(
    table: TableDisplay,
    words: U64Array,
    bitmaps: U64Array | None,
    at: int,
    geometry: Geometry,
    guest: int | None = None,
) -> Iterator[Node]:
    """Yield a node for each run of a table at byte `at`, named by the indices of its entries.

    `guest` is what the first entry maps, of an L2 table.
    """
    seen = int(np.bitwise_or.reduce(words)) if len(words) else 0
    breakable = suspects(table.rules, seen, geometry)
    for first, count, step in runs(words, bitmaps, geometry.cluster_size):
        word = int(words[first])
        bitmap = int(bitmaps[first]) if bitmaps is not None else 0
        span = Span(at + first * table.entry_size, count * table.entry_size)
        low, high = first, first + count - 1
        findings = tuple(_entry_findings(breakable, word, bitmap, span, geometry, count)) if breakable else ()
        findings += tuple(_past_end_in_run(table, word, (first, count, step), at))
        yield Node(
            f"[{low}]" if count == 1 else f"[{low}..{high}]",
            span,
            word,
            table.words(word, bitmap),
            spec=table.spec,
            count=count,
            step=step,
            guest=None if guest is None else guest + first * geometry.cluster_size,
            findings=findings,
        )


def _entry_findings(
    rules: tuple[EntryRule, ...], word: int, bitmap: int, span: Span, geometry: Geometry, count: int
) -> Iterator[Finding]:
    for rule in broken_rules(rules, word, bitmap, geometry):
        severity = Severity.ERROR if rule.counted else Severity.WARNING
        message = f"entry {word:#018x}: {rule.message}"
        yield Finding(rule.rule, severity, message, span, rule.spec, times=count)


def _past_end_in_run(table: TableDisplay, word: int, run: tuple[int, int, int], at: int) -> Iterator[Finding]:
    """Yield what is past the end of the file: the last entries of a run that goes up, or all of one that does not."""
    first, count, step = run
    target, length = table.target(word)
    room = table.end - length
    if not length or target + (count - 1) * step <= room:
        return
    skipped = max(0, (room - target) // step + 1) if step else 0
    low, high = first + skipped, first + count - 1
    names = f"entry {low}" if low == high else f"entries {low}..{high}"
    where = target + skipped * step
    message = f"{names}: {length} bytes at {where:#x} are past the end of the file"
    span = Span(at + low * table.entry_size, (high - low + 1) * table.entry_size)
    yield Finding("past_end", Severity.ERROR, message, span, table.spec, times=high - low + 1)


# --- tables ---------------------------------------------------------------------------------------------------------


def past_end(what: str, span: Span, walk: Walk, *, is_l1: bool = False) -> tuple[Finding, ...]:
    """Return the finding that a table leaves the file, if it does: an error as for a check, else a note.

    What the file lacks of its last cluster is read as zeros.
    """
    if span.end <= walk.size or not span.length:
        return ()
    message = f"the {what} leaves the file, which has {walk.size} bytes"
    if span.end > end_of_room(walk, is_l1=is_l1):
        return (Finding("past_end", Severity.ERROR, message, span),)
    return (Finding("table.cut_short", Severity.NOTE, f"{message}: what is missing reads as zeros", span),)


def state_name(state: State) -> str:
    """Return "active", or which snapshot of the table it is."""
    return "active" if state.index == ACTIVE else f"snapshot {state.index}"


def l1_nodes(walk: Walk) -> Iterator[Node]:
    """Yield the L1 table of each state."""
    table = TableDisplay(
        ENTRY_BYTES,
        L1_RULES,
        l1_words,
        "Cluster mapping",
        cluster_target(tables.L1_OFFSET, walk.geometry),
        end_of_room(walk),
    )
    seen: set[tuple[int, int]] = set()
    shared = 0
    for state in walk.states():
        entries = min(state.l1_entries, Limit.L1_ENTRIES)
        if not entries and state.index != ACTIVE:
            continue
        span = Span(state.l1_offset, entries * ENTRY_BYTES)
        coverage = size_text(entries << walk.geometry.l2_coverage_bits)

        def children(state: State = state, entries: int = entries) -> Iterator[Node]:
            held = max(0, min(entries, -(-(walk.size - state.l1_offset) // ENTRY_BYTES)))
            yield from entry_nodes(table, walk.words(state.l1_offset, held), None, state.l1_offset, walk.geometry)

        if (state.l1_offset, entries) in seen:
            shared += 1
            continue
        seen.add((state.l1_offset, entries))
        yield Node(
            f"L1 table of {state_name(state)}",
            span,
            entries,
            f"{entries} entries, maps up to {coverage}",
            unit="entries",
            spec=table.spec,
            findings=past_end("L1 table", span, walk, is_l1=True),
            make_children=children,
        )
    if shared:
        yield Node("shared L1 tables", None, shared, "snapshots whose L1 table is one of those above")


def l2_nodes(walk: Walk) -> Iterator[Node]:
    """Yield each distinct L2 table in the order of the file, with what refers to it."""
    geometry = walk.geometry
    entry_size = geometry.l2_entry_bytes
    table = TableDisplay(
        entry_size, l2_rules(geometry), l2_words(geometry), "Cluster mapping", l2_target(geometry), end_of_room(walk)
    )
    every = walk.l2_tables()
    beyond = int(np.count_nonzero(every.offsets >= np.uint64(walk.size)))
    if beyond:
        # The entries of the L1 tables that name them are the findings.
        message = f"{beyond} L2 tables are past the end of the file, which has {walk.size} bytes"
        yield Node("L2 tables past the end", None, beyond, message)
    stored = walk.stored_tables()
    guests = _guest_offsets(walk, stored.offsets)
    for start, end in walk.batches(stored):
        batch = walk.batch(stored, start, end)
        for row in range(end - start):
            at = int(batch.offsets[row])
            active, snapshot = int(batch.active[row]), int(batch.snapshot[row])
            words = batch.entries[row]
            bitmaps = None if batch.bitmaps is None else batch.bitmaps[row]
            users = [f"{count} {name}" for count, name in ((active, "active"), (snapshot, "of snapshots")) if count]
            span = Span(at, geometry.cluster_size)
            guest = int(guests[start + row])

            def children(
                words: U64Array = words, bitmaps: U64Array | None = bitmaps, at: int = at, guest: int = guest
            ) -> Iterator[Node]:
                yield from entry_nodes(table, words, bitmaps, at, geometry, guest)

            yield Node(
                f"L2 table at {at:#x}",
                span,
                active + snapshot,
                f"references: {', '.join(users)}",
                unit="references",
                spec=table.spec,
                guest=guest,
                findings=past_end("L2 table", span, walk),
                make_children=children,
            )


def _guest_offsets(walk: Walk, offsets: U64Array) -> U64Array:
    """Return what the L2 tables at ascending `offsets` map, first of all: of the active state before the snapshots."""
    unknown = np.uint64((1 << 64) - 1)
    found = np.full(len(offsets), unknown, dtype=np.uint64)
    seen: set[tuple[int, int]] = set()
    for state in walk.states():
        place = state.l1_offset, state.l1_entries
        if not len(offsets) or place in seen or not state.walkable:
            continue
        seen.add(place)
        named = walk.l1_table(state) & np.uint64(tables.L1_OFFSET)
        rows = np.minimum(np.searchsorted(offsets, named), len(offsets) - 1)
        mine = np.flatnonzero((named != 0) & (offsets[rows] == named) & (found[rows] == unknown))
        starts = mine.astype(np.uint64) << np.uint64(walk.geometry.l2_coverage_bits)
        np.minimum.at(found, rows[mine], starts)
        if not (found == unknown).any():
            break
    return found


def refcount_nodes(walk: Walk) -> Iterator[Node]:
    """Yield the refcount table and each distinct refcount block, whose entries are named by their host clusters."""
    geometry, header = walk.geometry, walk.header
    words = walk.refcount_table()
    table = TableDisplay(
        ENTRY_BYTES,
        REFCOUNT_TABLE_RULES,
        refcount_table_words,
        "Host cluster management",
        cluster_target(BLOCK_OFFSET, geometry),
        end_of_room(walk),
    )
    span = Span(header.refcount_table_offset, words.nbytes)
    yield Node(
        "refcount table",
        span,
        len(words),
        f"{len(words)} entries of blocks of {1 << geometry.refcount_block_bits} refcounts",
        unit="entries",
        spec=table.spec,
        findings=past_end("refcount table", span, walk),
        make_children=lambda: entry_nodes(table, words, None, header.refcount_table_offset, geometry),
    )
    indices = np.flatnonzero(words & np.uint64(BLOCK_OFFSET))
    offsets = words[indices] & np.uint64(BLOCK_OFFSET)
    whole = (offsets % np.uint64(geometry.cluster_size) == 0) & (offsets < np.uint64(walk.size))
    indices, offsets = indices[whole], offsets[whole]
    stored = walk.stored(offsets)
    empty = int(np.count_nonzero(~stored))
    if empty:
        yield Node("empty refcount blocks", None, empty, "in holes of the file: all their refcounts are 0")
    indices, offsets = indices[stored], offsets[stored]
    _, first_of_each = np.unique(offsets, return_index=True)
    for row in np.sort(first_of_each).tolist():
        at, index = int(offsets[row]), int(indices[row])
        first = index << geometry.refcount_block_bits
        last = first + (1 << geometry.refcount_block_bits) - 1
        yield Node(
            f"refcount block at {at:#x}",
            Span(at, geometry.cluster_size),
            index,
            f"host clusters {first}..{last}",
            spec=table.spec,
            make_children=partial(_refcounts, walk, at, first),
        )


def _refcounts(walk: Walk, at: int, first: int) -> Iterator[Node]:
    geometry = walk.geometry
    size = geometry.cluster_size
    counts = refcounts(walk.store.pread(size, at).ljust(size, b"\0"), geometry.refcount_order)
    edges = [0, *(np.flatnonzero(counts[1:] != counts[:-1]) + 1).tolist(), len(counts)]
    for start, end in pairwise(edges):
        low, high = start << geometry.refcount_order, end << geometry.refcount_order
        name = f"cluster {first + start}" if end - start == 1 else f"clusters {first + start}..{first + end - 1}"
        count = int(counts[start])
        words = "free" if not count else "in use" if count == 1 else "shared"
        span = Span(at + low // 8, max(1, -(-high // 8) - low // 8))
        yield Node(name, span, count, words, unit="references", count=end - start)


def bitmap_table_nodes(walk: Walk) -> Iterator[Node]:
    """Yield the table of each bitmap; one that several bitmaps name is taken apart at the first of them."""
    geometry = walk.geometry
    first_of: dict[int, int] = {}
    table = TableDisplay(
        ENTRY_BYTES,
        BITMAP_TABLE_RULES,
        bitmap_table_words,
        "Bitmap table",
        cluster_target(tables.BITMAP_OFFSET, geometry),
        end_of_room(walk),
    )
    for index, record in enumerate(walk.bitmaps.records):
        entries = min(record.bitmap_table_size, Limit.BITMAP_BYTES >> geometry.cluster_bits)
        span = Span(record.bitmap_table_offset, entries * ENTRY_BYTES)

        def children(at: int = record.bitmap_table_offset, entries: int = entries) -> Iterator[Node]:
            held = max(0, min(entries, -(-(walk.size - at) // ENTRY_BYTES)))
            yield from entry_nodes(table, walk.words(at, held), None, at, geometry)

        first = first_of.setdefault(record.bitmap_table_offset, index)
        yield Node(
            f"bitmap table of bitmap {index}",
            span,
            entries,
            f"{entries} entries" if first == index else f"{entries} entries, where bitmap {first} has its table",
            unit="entries",
            spec=table.spec,
            findings=past_end("bitmap table", span, walk),
            make_children=children if first == index else None,
        )
