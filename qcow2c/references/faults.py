"""Faults with their places: which entries, tables and clusters are wrong, in QEMU's words where it has them.

A count over arrays says how many entries are wrong (`full_check.py`); only where some are, this second pass says which.
Both use the same rules and the same walk, so that the faults of a rule add up to its count. It reads, and counts
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import ENTRY_BYTES, CryptMethod
from qcow2c.errors import CorruptMetadata, Span, UnsupportedFeature
from qcow2c.format import rules, tables
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header, field_span
from qcow2c.format.luks import read_luks_header
from qcow2c.format.records import SnapshotRecord
from qcow2c.format.refcounts import BLOCK_OFFSET
from qcow2c.format.table_rules import L1_RULES, REFCOUNT_TABLE_RULES, l2_rules
from qcow2c.references.check_result import Fault
from qcow2c.references.counts import L1_TABLES, leaves_file
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.walk import ACTIVE, L2Batch, Owner, References, Walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

COUNTED_SNAPSHOT_RULES = ("snapshot.extra_data", "snapshot.l1_table_offset", "snapshot.l1_size")
"""Rules that QEMU's check counts; those of errors are counted in any case."""

_PAST_END = (
    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
    "offset {offset:#x} size {length:#x}"
)

_CHUNK = 1 << 16
"""Entries of an L1 table that are looked at together: the largest have millions."""

FaultWords = Callable[[int, int, Geometry], str]
"""Says what is wrong with an entry, given its word and its index in the table."""


def _coffset(word: int, geometry: Geometry) -> int:
    return tables.compressed_extent(word, geometry).host_offset


def _misaligned(word: int, _index: int, geometry: Geometry) -> str:
    is_zero = geometry.has_zero_bit and word & tables.L2_ZERO
    kind = "Preallocated" if is_zero else "Data"
    return f"ERROR offset={word & tables.L2_OFFSET:x}: {kind} cluster is not properly aligned; L2 entry corrupted."


_WORDS: dict[str, FaultWords] = {
    "l1.reserved": lambda word, _index, _geometry: f"ERROR found L1 entry with reserved bits set: {word:x}",
    "l1.misaligned": lambda word, _index, _geometry: (
        f"ERROR l2_offset={word & tables.L1_OFFSET:x}: Table is not cluster aligned; L1 entry corrupted"
    ),
    "l2.reserved": lambda word, _index, _geometry: f"ERROR found l2 entry with reserved bits set: {word:x}",
    "l2.misaligned": _misaligned,
    "l2.compressed_copied": lambda word, _index, geometry: (
        f"ERROR: coffset=0x{_coffset(word, geometry):x}: copied flag must never be set for compressed clusters"
    ),
    "l2.compressed_external": lambda word, index, _geometry: (
        f"ERROR compressed cluster {index} with data file, entry=0x{word:x}"
    ),
    "l2.compressed_bitmap": lambda word, index, _geometry: (
        f"ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry=0x{word:x}"
    ),
    "l2.subclusters_contradict": lambda word, _index, _geometry: (
        f"ERROR offset={word & tables.L2_OFFSET:x}: Allocated cluster has corrupted subcluster allocation bitmap"
    ),
    "l2.subclusters_without_cluster": lambda _word, _index, _geometry: (
        "ERROR: Unallocated cluster has non-zero subcluster allocation map"
    ),
    "refcount_table.reserved": lambda _word, index, _geometry: (
        f"ERROR refcount table entry {index} has reserved bits set"
    ),
    "refcount_table.misaligned": lambda _word, index, _geometry: (
        f"ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
    ),
}


def record_faults(header: Header, walk: Walk) -> Iterator[Fault]:
    """Yield what a check counts of the header and of snapshot records, and where one of them may own what is lost."""
    for finding in rules.header_findings(header):
        if finding.rule in rules.LOST_OWNERS:
            yield of_finding(finding)
    yield from _encryption_faults(header, walk)
    yield from _snapshot_faults(header, walk.snapshots.records)
    if header.external_data and header.nb_snapshots:
        message = f"ERROR {header.nb_snapshots} snapshots in image with data file"
        yield Fault("header.snapshots_with_data_file", message, field_span("nb_snapshots"), spec="Header")


def _snapshot_faults(header: Header, records: Iterable[SnapshotRecord]) -> Iterator[Fault]:
    """Yield what a check counts of snapshot records; of many that are the same, as of a hole, one is judged."""
    known: dict[Hashable, tuple[Finding, ...]] = {}
    for index, record in enumerate(records):
        found = known.get(record.content)
        if found is None:
            found = known[record.content] = tuple(_counted(rules.snapshot_findings(header, record)))
        for finding in found:
            message = f"ERROR snapshot table entry {index}: {finding.message}"
            yield Fault(finding.rule, message, record.span, spec=finding.spec)


def _counted(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings of one snapshot record that a check counts."""
    found = {finding.rule: finding for finding in findings}
    if "snapshot.l1_table_offset" in found:
        found.pop("snapshot.l1_size", None)  # QEMU looks at the size only where the offset is aligned.
    for rule, finding in found.items():
        if rule in COUNTED_SNAPSHOT_RULES or finding.severity >= Severity.ERROR:
            yield finding


def _encryption_faults(header: Header, walk: Walk) -> Iterator[Fault]:
    pointer = header.encryption_header
    if pointer is None or header.crypt_method != CryptMethod.LUKS:
        return
    where = Span(pointer.offset, pointer.length)
    try:
        payload = read_luks_header(walk.store, pointer).payload_offset
    except (CorruptMetadata, UnsupportedFeature) as exc:
        yield Fault("encryption.broken", f"ERROR encryption header: {exc.message}", where, spec=exc.spec)
        return
    if pointer.length < payload:
        message = f"ERROR encryption header of {pointer.length} bytes, but its key slots reach to {payload}"
        yield Fault("encryption.broken", message, where, spec="Full disk encryption header pointer")


def of_finding(finding: Finding) -> Fault:
    """Return a finding of a rule as a fault."""
    return Fault(finding.rule, f"ERROR {finding.message}", finding.where, spec=finding.spec)


def l1_faults(walk: Walk) -> Iterator[Fault]:
    """Yield the entries of L1 tables that break a rule, once for each table, however many states have it."""
    for at, first, words, times in _l1_parts(walk):
        for rule in L1_RULES:
            for row in np.flatnonzero(rule.broken(words, 0, walk.geometry)).tolist():
                index, word = first + row, int(words[row])
                span = Span(at + index * ENTRY_BYTES, ENTRY_BYTES)
                message = _WORDS[rule.rule](word, index, walk.geometry)
                yield Fault(rule.rule, f"{message} (L1 entry {index} at {span.offset:#x})", span, times, rule.spec)


def past_end_faults(walk: Walk, metadata: list[References]) -> Iterator[Fault]:
    """Yield what leaves the file: structures, the L2 tables that L1 entries name, and the data of L2 entries."""
    for part in metadata:
        if part.owner in (Owner.L2_TABLE, Owner.SNAPSHOT_L2_TABLE):
            continue
        for row in np.flatnonzero(
            leaves_file(walk, part.offsets, part.lengths, is_l1=part.owner in L1_TABLES)
        ).tolist():
            offset, length = int(part.offsets[row]), int(part.lengths[row])
            name = part.owner.name.lower().replace("_", " ")
            message = f"{_PAST_END.format(offset=offset, length=length)} ({name})"
            yield Fault("past_end", message, Span(offset, length), int(part.weights[row]), "Host cluster management")
    size = walk.geometry.cluster_size
    for at, first, words, times in _l1_parts(walk):
        named = np.flatnonzero(words)
        offsets = words[named] & np.uint64(tables.L1_OFFSET)
        for row in np.flatnonzero(leaves_file(walk, offsets, np.full(len(offsets), size, np.uint64))).tolist():
            index = first + int(named[row])
            span = Span(at + index * ENTRY_BYTES, ENTRY_BYTES)
            message = _PAST_END.format(offset=int(offsets[row]), length=size)
            message = f"{message} (L1 entry {index} at {span.offset:#x})"
            yield Fault("past_end", message, span, times, "Cluster mapping")
    if not walk.geometry.external_data:
        yield from _data_past_end(walk)


def _l1_parts(walk: Walk) -> Iterator[tuple[int, int, U64Array, int]]:
    """Yield parts of each distinct L1 table: its place, the index of the first word, the words, how many states."""
    times: dict[tuple[int, int], int] = {}
    for state in walk.states():
        if state.walkable:
            key = state.l1_offset, state.l1_entries
            times[key] = times.get(key, 0) + 1
    for (at, entries), count in times.items():
        for first, words in _parts(walk, at, entries):
            yield at, first, words, count


def _parts(walk: Walk, at: int, entries: int) -> Iterator[tuple[int, U64Array]]:
    """Yield parts of a table as far as the file holds it, for what it lacks is zeros: the first index, the words."""
    held = min(entries, max(0, walk.size - at) // ENTRY_BYTES + 1)
    for first in range(0, held, _CHUNK):
        yield first, walk.words(at + first * ENTRY_BYTES, min(_CHUNK, held - first))


def _batches(walk: Walk) -> Iterator[L2Batch]:
    found = walk.stored_tables()
    for start, end in walk.batches(found):
        yield walk.batch(found, start, end)


def _data_past_end(walk: Walk) -> Iterator[Fault]:
    size = np.uint64(walk.geometry.cluster_size)
    for batch in _batches(walk):
        packed = (batch.entries & np.uint64(tables.L2_COMPRESSED)) != 0
        plain = ~packed & ((batch.entries & np.uint64(tables.L2_OFFSET)) != 0)
        offsets = np.where(plain, batch.entries & np.uint64(tables.L2_OFFSET), np.uint64(0))
        lengths = np.where(plain, size, np.uint64(0))
        offsets[packed], lengths[packed] = tables.compressed_extents(batch.entries[packed], walk.geometry)
        rows, columns = np.nonzero(leaves_file(walk, offsets, lengths) & (plain | packed))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            message = _PAST_END.format(offset=int(offsets[row, column]), length=int(lengths[row, column]))
            yield _l2_fault(walk, batch, row, column, "past_end", message, int(batch.active[row] + batch.snapshot[row]))


def _l2_fault(
    walk: Walk, batch: L2Batch, row: int, column: int, rule: str, message: str, times: int, *, bare: bool = False
) -> Fault:
    width = walk.geometry.l2_entry_bytes
    span = Span(int(batch.offsets[row]) + column * width, width)
    place = "" if bare else f" (L2 entry {column} at {span.offset:#x})"
    return Fault(rule, message + place, span, times, "Cluster mapping")


def l2_faults(walk: Walk) -> Iterator[Fault]:
    """Yield the entries of L2 tables that break a rule, once for each table, however often it is named."""
    chosen = [rule for rule in l2_rules(walk.geometry) if rule.counted]
    for batch in _batches(walk):
        bitmaps = 0 if batch.bitmaps is None else batch.bitmaps
        for rule in chosen:
            broken = np.broadcast_to(rule.broken(batch.entries, bitmaps, walk.geometry), batch.entries.shape)
            rows, columns = np.nonzero(broken)
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                message = _WORDS[rule.rule](int(batch.entries[row, column]), column, walk.geometry)
                times = int(batch.active[row] + batch.snapshot[row])
                yield _l2_fault(walk, batch, row, column, rule.rule, message, times)


def refcount_table_faults(walk: Walk) -> Iterator[Fault]:
    """Yield the entries of the refcount table that break a rule, each once, for the first rule that it breaks."""
    words = walk.refcount_table()
    broken = np.zeros(len(words), dtype=bool)
    for rule in REFCOUNT_TABLE_RULES:
        wrong = rule.broken(words, 0, walk.geometry) & ~broken
        broken |= wrong
        for index in np.flatnonzero(wrong).tolist():
            message = _WORDS[rule.rule](int(words[index]), index, walk.geometry)
            span = Span(walk.header.refcount_table_offset + index * ENTRY_BYTES, ENTRY_BYTES)
            message = f"{message}, entry {int(words[index]):#x} at {span.offset:#x}"
            yield Fault(rule.rule, message, span, 1, rule.spec)


def refcount_block_faults(walk: Walk, rule: str, found: Iterable[tuple[int, str, int]]) -> Iterator[Fault]:
    """Yield what is wrong with refcount blocks, each at the first table entry that names it.

    `found` are host clusters of blocks, what is wrong with them, and how often that is counted.
    """
    named = (walk.refcount_table() & np.uint64(BLOCK_OFFSET)) >> np.uint64(walk.geometry.cluster_bits)
    order = np.argsort(named, kind="stable")
    ordered = named[order]
    for cluster, words, times in found:
        index = int(order[np.searchsorted(ordered, np.uint64(cluster))])
        span = Span(walk.header.refcount_table_offset + index * ENTRY_BYTES, ENTRY_BYTES)
        offset = cluster << walk.geometry.cluster_bits
        message = f"ERROR refcount block {index} {words} (at {offset:#x}, table entry at {span.offset:#x})"
        yield Fault(rule, message, span, times, "Host cluster management")


def overflow_fault(geometry: Geometry, cluster: int, times: int) -> Fault:
    """Return that a cluster has more references than a refcount can say, by `times`."""
    span = Span(cluster << geometry.cluster_bits, geometry.cluster_size)
    return Fault("overflow", f"ERROR: overflow cluster offset={span.offset:#x}", span, times, "Refcounts")


def copied_faults(walk: Walk, refcounts: StoredRefcounts) -> Iterator[Fault]:
    """Yield the entries of the active state whose copied bit contradicts the refcount of what they name."""
    active, bits = (
        next(state for state in walk.states() if state.index == ACTIVE),
        np.uint64(walk.geometry.cluster_bits),
    )
    for first, words in _parts(walk, active.l1_offset, active.l1_entries):
        named = np.flatnonzero(words & np.uint64(tables.L1_OFFSET))
        counts = refcounts.whole_at((words[named] & np.uint64(tables.L1_OFFSET)) >> bits)
        for row, count in zip(*_wrong_copied(words, named, counts), strict=True):
            index, word = first + row, int(words[row])
            span = Span(active.l1_offset + index * ENTRY_BYTES, ENTRY_BYTES)
            message = f"ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={word:x} refcount={count}"
            yield Fault("copied", message, span, 1, "Cluster mapping")
    for batch in _batches(walk):
        yield from _copied_in(batch, walk, refcounts)


def _copied_in(batch: L2Batch, walk: Walk, refcounts: StoredRefcounts) -> Iterator[Fault]:
    entries = batch.entries.reshape(-1)
    present = _has_cluster(entries, walk.geometry)
    # QEMU compares no copied bits of a table at offset 0, which no table can be at.
    present &= np.repeat((batch.active > 0) & (batch.offsets != 0), batch.entries.shape[1])
    rows = np.flatnonzero(present)
    if walk.geometry.external_data:
        counts = np.ones(len(rows), dtype=np.uint64)  # Each entry of a data file has the bit.
    else:
        counts = refcounts.whole_at(
            (entries[rows] & np.uint64(tables.L2_OFFSET)) >> np.uint64(walk.geometry.cluster_bits)
        )
    for row, count in zip(*_wrong_copied(entries, rows, counts), strict=True):
        table, column = divmod(row, batch.entries.shape[1])
        message = f"ERROR OFLAG_COPIED data cluster: l2_entry={int(entries[row]):x} refcount={count}"
        yield _l2_fault(walk, batch, table, column, "copied", message, int(batch.active[table]), bare=True)


def _has_cluster(entries: U64Array, geometry: Geometry) -> NDArray[np.bool_]:
    """Return which L2 entries have a host cluster; in an external data file it may be the one at 0."""
    present: NDArray[np.bool_] = (entries & np.uint64(tables.L2_OFFSET)) != 0
    if geometry.external_data:
        copied = (entries & np.uint64(tables.L2_COPIED)) != 0
        present |= copied & ((entries & np.uint64(tables.L2_ZERO)) == 0) if geometry.has_zero_bit else copied
    present &= (entries & np.uint64(tables.L2_COMPRESSED)) == 0
    return present


def _wrong_copied(words: U64Array, rows: NDArray[np.int64], counts: U64Array) -> tuple[list[int], list[int]]:
    """Return which rows of words have a copied bit that contradicts their refcounts, and these."""
    wrong = ((words[rows] & np.uint64(tables.L2_COPIED)) != 0) != (counts == 1)
    return rows[wrong].tolist(), counts[wrong].tolist()
