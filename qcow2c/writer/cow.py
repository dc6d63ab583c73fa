"""Copy on write: what has to go to the file around new guest data, so that clusters keep what they held.

Functions of the engine, for standard and extended L2 entries alike: without subclusters, a cluster is one. They read
old contents; they change, write and allocate nothing. Spec: "Cluster mapping".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qcow2c.constants import SECTOR_SIZE
from qcow2c.format.tables import (
    Kind,
    Table,
    kind_of,
)
from qcow2c.layers.layer import Layer
from qcow2c.layers.reader import Reader
from qcow2c.light import TYPE_CHECKING, NamedTuple
from qcow2c.storage.store import Buffer
from qcow2c.storage.zeros import zeros

if TYPE_CHECKING:
    from qcow2c.crypto.guest_cipher import GuestCipher

_ZERO_KINDS = (Kind.ZERO, Kind.ZERO_ALLOCATED)
_BELOW_KINDS = (Kind.UNALLOCATED, Kind.UNALLOCATED_IN_CLUSTER)


class GuestBytes(NamedTuple):
    """Bytes that belong at a guest offset."""

    guest_offset: int
    data: Buffer


def pieces(
    reader: Reader, table: Table, guest_offset: int, data: memoryview, *, in_place: bool, fresh: bool
) -> list[GuestBytes]:
    """Return what must be written so that clusters hold `data` and all they held before, in order.

    `in_place`: the clusters keep their host cluster, else they move to new ones; `fresh` ones hold zeros already.
    """
    end = guest_offset + len(data)
    size = reader.geometry.cluster_size
    base = guest_offset & -size
    fresh = fresh and reader.cipher is None  # Else zeros of the file are none of the disk.
    if end <= base + size and not reader.geometry.extended_l2:
        return _pieces_of_cluster(reader, table, base, guest_offset, data, in_place=in_place, fresh=fresh)
    last = (end - 1) // size * size
    found = list(_copies(reader, table, guest_offset, min(end, base + size), in_place=in_place, before=True))
    found.append((guest_offset, end))
    found += _copies(reader, table, max(guest_offset, last), end, in_place=in_place, before=False)
    kept = []
    for start, stop in found:
        if start == guest_offset and stop == end:
            kept.append(GuestBytes(guest_offset, data))
        elif reads_as_zeros(reader, start, stop - start):
            if not fresh:
                kept.append(GuestBytes(start, zeros(stop - start)))
        else:
            buffer = bytearray(stop - start)
            reader.read_into(memoryview(buffer), start)
            kept.append(GuestBytes(start, buffer))
    return kept


def _pieces_of_cluster(
    reader: Reader, table: Table, base: int, guest_offset: int, data: memoryview, *, in_place: bool, fresh: bool
) -> list[GuestBytes]:
    """Return the same for a write within one standard cluster, as most small ones are: one read, one write."""
    size = reader.geometry.cluster_size
    if len(data) == size or (in_place and _subcluster_kinds(reader, table, base)[0] is Kind.DATA):
        return [GuestBytes(guest_offset, data)]
    if reads_as_zeros(reader, base, size):
        end = guest_offset + len(data)
        before, behind = GuestBytes(base, zeros(guest_offset - base)), GuestBytes(end, zeros(base + size - end))
        return [GuestBytes(guest_offset, data)] if fresh else [before, GuestBytes(guest_offset, data), behind]
    cluster = bytearray(size)
    reader.read_into(memoryview(cluster), base)
    cluster[guest_offset - base : guest_offset - base + len(data)] = data
    return [GuestBytes(base, cluster)]


def _copies(
    reader: Reader, table: Table, start: int, end: int, *, in_place: bool, before: bool
) -> Iterator[tuple[int, int]]:
    """Yield the guest ranges of a cluster, before or behind the written range, that must be written, too."""
    geometry = reader.geometry
    size, unit = geometry.cluster_size, geometry.subcluster_size
    base = start // size * size
    kinds = _subcluster_kinds(reader, table, base)
    first, last = (start - base) // unit, (end - 1 - base) // unit
    others = range(first) if before else range(last + 1, len(kinds))
    edge = first if before else last
    runs: list[tuple[int, int]] = []
    if not in_place:
        runs = [
            (base + index * unit, base + (index + 1) * unit)
            for index in others
            if kinds[index] in (Kind.DATA, Kind.COMPRESSED)
        ]
    if not (in_place and kinds[edge] is Kind.DATA):
        partial = (base + edge * unit, start) if before else (end, base + (edge + 1) * unit)
        if partial[0] < partial[1]:
            runs = [*runs, partial] if before else [partial, *runs]
    yield from _joined(runs)


def _joined(runs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    position = 0
    while position < len(runs):
        start, stop = runs[position]
        position += 1
        while position < len(runs) and runs[position][0] == stop:
            stop = runs[position][1]
            position += 1
        yield start, stop


def _subcluster_kinds(reader: Reader, table: Table, guest_offset: int) -> list[Kind]:
    geometry = reader.geometry
    index = guest_offset >> geometry.cluster_bits & (geometry.l2_entries - 1)
    entry = table.words[index * geometry.l2_entry_words]
    bitmap = table.words[index * 2 + 1] if geometry.extended_l2 else 0
    return [kind_of(entry, bitmap, subcluster, geometry) for subcluster in range(geometry.subclusters)]


def whole_sectors(reader: Reader, data: memoryview, guest_offset: int) -> tuple[memoryview, int]:
    """Return data and its offset; of an encrypted image, with what completes its first and last sector."""
    if reader.cipher is None:
        return data, guest_offset
    before, behind = guest_offset % SECTOR_SIZE, -(guest_offset + len(data)) % SECTOR_SIZE
    if not before and not behind:
        return data, guest_offset
    start = guest_offset - before
    sectors = bytearray(before + len(data) + behind)
    for at in {0, len(sectors) - SECTOR_SIZE}:
        reader.read_into(memoryview(sectors)[at : at + SECTOR_SIZE], start + at)
    sectors[before : before + len(data)] = data
    return memoryview(sectors), start


def stored(cipher: GuestCipher | None, run: list[GuestBytes], host_offset: int) -> list[Buffer]:
    """Return what is written for consecutive pieces at a host offset: their data, encrypted where the image is."""
    buffers = [piece.data for piece in run]
    return buffers if cipher is None else [cipher.encrypted(b"".join(buffers), host_offset, run[0].guest_offset)]


def together(found: list[GuestBytes]) -> Iterator[list[GuestBytes]]:
    """Yield the pieces in consecutive groups."""
    group: list[GuestBytes] = []
    for piece in found:
        if group and group[-1].guest_offset + len(group[-1].data) != piece.guest_offset:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def cut(buffers: Iterable[Buffer], length: int) -> list[Buffer]:
    """Return the first `length` bytes of consecutive buffers."""
    kept: list[Buffer] = []
    for buffer in buffers:
        part = memoryview(buffer)[:length]
        length -= len(part)
        kept.append(part)
    return kept


def reads_as_zeros(layer: Layer, guest_offset: int, length: int) -> bool:
    """Return whether guest bytes read as zeros by what the tables of all layers say; no data is read.

    A raw file has none: its holes are not looked for.
    """
    below = layer.backing
    bottom = 0 if below is None else below.disk_size
    for run in layer.runs(guest_offset, max(0, min(length, layer.disk_size - guest_offset))):
        if run.kind in _ZERO_KINDS or (run.kind in _BELOW_KINDS and run.guest_offset >= bottom):
            continue
        if run.kind not in _BELOW_KINDS or below is None or below.image_format == "raw":
            return False
        if not reads_as_zeros(below, run.guest_offset, run.length):
            return False
    return True
