"""Ownership: what each byte of the file belongs to, as adjacent extents from 0 to the file's end.

An owner comes from the walk; what nothing refers to is a leak (its refcount is above 0) or free, and the rest of a
metadata structure's last cluster is slack. It works in windows of bounded size, one byte a cluster, and judges nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import Limit
from qcow2c.errors import LimitExceeded
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.walk import Owner, References, Walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW_CLUSTERS = 1 << 24

_PART = 1 << 18

_SHARED = {Owner.SNAPSHOT_DATA: Owner.DATA, Owner.SNAPSHOT_COMPRESSED: Owner.COMPRESSED}
"""A cluster that the active state has in common with snapshots is the active state's, and that is no overlap."""

_OVERLAP = 64
_OWNER = _OVERLAP - 1
_LEAK = 32
_FREE = 33


class HostUse(enum.Enum):
    """What an extent of the file is for."""

    OWNED = "owned"
    OVERLAP = "overlap"
    """More than one structure claims it; the owner is the first in the order of `Owner`."""
    SLACK = "slack"
    """The unused rest of a structure's last cluster."""
    LEAK = "leak"
    """Nothing refers to it, but its refcount is above 0."""
    FREE = "free"


@dataclass(frozen=True, slots=True)
class HostExtent:
    """Bytes of the file with one use and one owner (NONE for leaks and free ones)."""

    offset: int
    length: int
    use: HostUse
    owner: Owner

    @property
    def end(self) -> int:
        return self.offset + self.length


def extents(walk: Walk, header_end: int) -> Iterator[HostExtent]:
    """Yield the extents of the file; `header_end` is where the header's own bytes end in the first cluster.

    Raises LimitExceeded for a file of more clusters than QEMU's check takes.
    """
    clusters = walk.geometry.clusters(walk.size)
    if clusters > Limit.CHECKED_CLUSTERS:
        raise LimitExceeded(f"the file has {clusters} clusters, more than {Limit.CHECKED_CLUSTERS}")
    refcounts = StoredRefcounts(walk)
    used = _windows_in_use(walk, refcounts, clusters)
    slack = _slack(walk, header_end)
    pending: HostExtent | None = None
    for first in range(0, clusters, WINDOW_CLUSTERS):
        count = min(WINDOW_CLUSTERS, clusters - first)
        codes = _codes(walk, refcounts, first, count) if first // WINDOW_CLUSTERS in used else None
        for extent in _runs(walk, codes, first, count):
            for part in _without_slack(extent, slack):
                if pending is not None and (pending.use, pending.owner) == (part.use, part.owner):
                    pending = HostExtent(pending.offset, pending.length + part.length, part.use, part.owner)
                    continue
                if pending is not None:
                    yield pending
                pending = part
    if pending is not None:
        yield pending


def _in_parts(walk: Walk) -> Iterator[References]:
    """Yield every reference of the image, few enough at a time that what is computed of them stays small."""
    for references in walk:
        for start in range(0, len(references.offsets), _PART):
            rows = slice(start, start + _PART)
            offsets, lengths, weights = references.offsets[rows], references.lengths[rows], references.weights[rows]
            yield References(references.owner, offsets, lengths, weights)


def _touched(walk: Walk, references: References) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first and last cluster of each reference, as far as it lies in the file."""
    inside = (references.offsets < np.uint64(walk.size)) & (references.lengths > 0)
    offsets = references.offsets[inside]
    room = np.uint64(walk.size) - offsets
    lengths = np.minimum(references.lengths[inside], room)
    bits = np.uint64(walk.geometry.cluster_bits)
    return (offsets >> bits).view(np.int64), ((offsets + lengths - np.uint64(1)) >> bits).view(np.int64)


def _windows_in_use(walk: Walk, refcounts: StoredRefcounts, clusters: int) -> set[int]:
    """Return which windows have a reference or a refcount block: the others are free."""
    if clusters <= WINDOW_CLUSTERS:
        return {0}
    found: set[int] = set()
    for references in _in_parts(walk):
        first, last = _touched(walk, references)
        for edge in (first, last):
            found.update(np.unique(edge // WINDOW_CLUSTERS).tolist())
    found.update((np.unique(refcounts.described_clusters() // WINDOW_CLUSTERS)).tolist())
    return found


def _codes(walk: Walk, refcounts: StoredRefcounts, first: int, count: int) -> NDArray[np.uint8]:
    """Return owner, overlap, leak or free for each cluster of a window, shape (count,)."""
    codes = np.zeros(count, dtype=np.uint8)
    for references in _in_parts(walk):
        begin, end = _touched(walk, references)
        code = np.uint8(_SHARED.get(references.owner, references.owner))
        longest = int((end - begin).max()) if len(begin) else -1
        if longest > 4:
            for start, last in zip(begin.tolist(), end.tolist(), strict=True):
                span = np.arange(max(start, first), min(last + 1, first + count))
                _claim(codes, span - first, code)
            continue
        for step in range(longest + 1):
            clusters = begin + step
            mine = clusters[(clusters <= end) & (clusters >= first) & (clusters < first + count)]
            _claim(codes, mine - first, code)
    unowned = codes == 0
    if unowned.any():
        in_use = refcounts.window(first, count) != 0
        codes[unowned] = np.where(in_use[unowned], np.uint8(_LEAK), np.uint8(_FREE))
    return codes


def _claim(codes: NDArray[np.uint8], clusters: NDArray[np.int64], code: np.uint8) -> None:
    held = codes[clusters]
    owner = held & np.uint8(_OWNER)
    contested = (owner != 0) & (owner != code)
    codes[clusters] = np.where(contested, held | np.uint8(_OVERLAP), code | (held & np.uint8(_OVERLAP)))


def _runs(walk: Walk, codes: NDArray[np.uint8] | None, first: int, count: int) -> Iterator[HostExtent]:
    bits = walk.geometry.cluster_bits
    if codes is None:
        codes, edges = np.array([_FREE], dtype=np.uint8), [0, count]
    else:
        edges = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), count]
    values = codes[edges[:-1]].tolist() if len(codes) > 1 else [int(codes[0])]
    for start, end, code in zip(edges, edges[1:], values, strict=False):
        offset = (first + start) << bits
        length = min((first + end) << bits, walk.size) - offset
        if code == _LEAK:
            yield HostExtent(offset, length, HostUse.LEAK, Owner.NONE)
        elif code == _FREE:
            yield HostExtent(offset, length, HostUse.FREE, Owner.NONE)
        else:
            use = HostUse.OVERLAP if code & _OVERLAP else HostUse.OWNED
            yield HostExtent(offset, length, use, Owner(code & _OWNER))


def _slack(walk: Walk, header_end: int) -> list[tuple[int, int]]:
    """Return the unused rests of clusters that hold metadata, by offset."""
    size, found = walk.geometry.cluster_size, []
    for references in walk.metadata():
        if references.owner in (Owner.L2_TABLE, Owner.SNAPSHOT_L2_TABLE, Owner.BITMAP_DATA):
            continue
        for offset, length in zip(references.offsets.tolist(), references.lengths.tolist(), strict=True):
            end = header_end if references.owner is Owner.HEADER else offset + length
            if end < walk.size and end % size:
                found.append((end, min(-(-end // size) * size, walk.size)))
    return sorted(found)


def _without_slack(extent: HostExtent, slack: list[tuple[int, int]]) -> Iterator[HostExtent]:
    """Cut the slack out of an extent that has an owner; drops from `slack` what lies before it."""
    while slack and slack[0][1] <= extent.offset:
        slack.pop(0)
    at = extent.offset
    if extent.use is HostUse.OWNED:
        while slack and slack[0][0] < extent.end:
            start, end = max(slack[0][0], at), min(slack[0][1], extent.end)
            if start > at:
                yield HostExtent(at, start - at, extent.use, extent.owner)
            if end > start:
                yield HostExtent(start, end - start, HostUse.SLACK, extent.owner)
            at = max(at, end)
            slack.pop(0)
    if at < extent.end:
        yield HostExtent(at, extent.end - at, extent.use, extent.owner)
