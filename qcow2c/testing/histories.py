"""Strategies of what is done to a disk: one operation, and whole histories. Data is drawn as a seed: it shrinks."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from qcow2c.constants import SECTOR_SIZE


class Action(enum.Enum):
    WRITE = "write"
    ZERO = "zero"
    UNMAP = "unmap"
    """Zero, and give the space back."""
    DISCARD = "discard"
    COMPRESS = "compress"
    FLUSH = "flush"
    REOPEN = "reopen"


@dataclass(frozen=True)
class Operation:
    """One thing done to a disk. Of `length` bytes at guest `offset`; `seed` stands for the data."""

    action: Action
    offset: int = 0
    length: int = 0
    seed: int = 0

    @property
    def data(self) -> bytes:
        """What is written: one byte value for even seeds, noise for odd ones; compressible where it is to be."""
        if self.action is Action.COMPRESS:
            return bytes(random.Random(self.seed).choices(b"abcd", k=self.length))
        if self.seed % 2 == 0:
            return bytes([self.seed // 2 % 255 + 1]) * self.length
        return random.Random(self.seed).randbytes(self.length)

    def zeroed(self, cluster_size: int, disk_size: int) -> tuple[int, int]:
        """Return start and end of what a discard makes zero: whole clusters, of which the disk may end the last."""
        end = self.offset + self.length
        first = -(-self.offset // cluster_size) * cluster_size
        return first, max(first, end if end == disk_size else end // cluster_size * cluster_size)


@st.composite
def operations(draw: DrawFn, size: int, cluster_size: int, actions: tuple[Action, ...] = tuple(Action)) -> Operation:
    """Draw an operation on a disk of `size` bytes; its ends are often those of sectors, subclusters and clusters."""
    action = draw(st.sampled_from(actions))
    if action in (Action.FLUSH, Action.REOPEN) or not size:
        return Operation(action if action in (Action.FLUSH, Action.REOPEN) else Action.FLUSH)
    seed = draw(st.integers(0, 255))
    if action is Action.COMPRESS:
        clusters = -(-size // cluster_size)
        first = draw(st.integers(0, clusters - 1))
        count = draw(st.integers(1, min(4, clusters - first)))
        offset = first * cluster_size
        return Operation(action, offset, min(size - offset, count * cluster_size), seed)
    start, end = sorted((draw(_places(size, cluster_size)), draw(_places(size, cluster_size))))
    longest = 8 * cluster_size
    return Operation(action, start, min(end - start, longest), seed)


def _places(size: int, cluster_size: int) -> SearchStrategy[int]:
    """Return a strategy of offsets up to `size`, near the borders of something more often than not."""
    units = sorted({1, SECTOR_SIZE, max(SECTOR_SIZE, cluster_size // 32), cluster_size})
    return st.one_of([_multiples(unit, size) for unit in units]) | st.just(size)


def _multiples(unit: int, size: int) -> SearchStrategy[int]:
    return st.integers(0, size // unit).map(lambda position: position * unit)


def write_histories(size: int, cluster_size: int, *, max_length: int = 20) -> SearchStrategy[list[Operation]]:
    """Return a strategy of lists of operations on a disk of `size` bytes."""
    return st.lists(operations(size, cluster_size), max_size=max_length)
