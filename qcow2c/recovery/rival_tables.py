"""What tells tables of several states apart, and what binds a table to its place. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import ENTRY_BYTES
from qcow2c.format.tables import L1_COPIED, L1_OFFSET, L2_COMPRESSED, L2_OFFSET
from qcow2c.recovery.found_tables import FoundTables, L1Run, read_l2

if TYPE_CHECKING:
    from qcow2c.format.array_types import U64Array


class Slots:
    """Which L2 index a host cluster belongs to, by the entry that names it in states whose L1 tables are there."""

    def __init__(self, found: FoundTables, tables: list[U64Array]) -> None:
        self._found = found
        keys: dict[tuple[int, int], int] = {}
        for l1 in tables:
            for index in np.flatnonzero(l1).tolist():
                for key in self._found.keys(int(l1[index])):
                    known = keys.setdefault(key, index)
                    if known != index:
                        keys[key] = -1
        self._index = keys

    def index_of(self, at: int) -> int | None:
        """Return the index of a table that shares a host cluster with one that is known, None without one."""
        found = {self._index[key] for key in self._found.keys(at) if key in self._index}
        return found.pop() if len(found) == 1 and -1 not in found else None


def clusters_of(run: L1Run, size: int) -> range:
    """Return the host offsets of the clusters of a run."""
    return range(run.offset, run.offset + len(run.words) * ENTRY_BYTES, size)


def weight(run: L1Run) -> tuple[int, int]:
    """Return how many tables a run says are its own, and how many it names."""
    own = int(((run.words & np.uint64(L1_COPIED)) != 0).sum())
    return own, int((run.words != 0).sum())


def is_part(run: L1Run, other: L1Run) -> bool:
    """Return whether a run says nothing that the other one does not say, too: an older one, before a resize."""
    mask = np.uint64(L1_OFFSET)
    short = run.words[: len(other.words)] & mask
    mine = other.words[: len(short)] & mask
    return not (run.words[len(other.words) :]).any() and not ((short != 0) & (short != mine)).any()


def text_of(data: bytes) -> str:
    """Return a name as text, what is no text escaped."""
    return data.decode("utf-8", "backslashreplace")


def are_in_order(found: FoundTables, tables: list[int]) -> bool:
    """Return whether L2 tables, by their place, name data in the same order, as where a disk was filled in order."""
    last = -1
    for at in sorted(tables):
        entries = read_l2(found.store, at, found.geometry).entries
        plain = entries[(entries & np.uint64(L2_COMPRESSED)) == 0] & np.uint64(L2_OFFSET)
        plain = plain[plain != 0].astype(np.int64)
        if not len(plain) or int(plain[0]) <= last or (np.diff(plain) < 0).any():
            return False
        last = int(plain[-1])
    return True
