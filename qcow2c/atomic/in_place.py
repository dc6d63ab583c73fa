"""A change of a whole image that takes no room: what only gives clusters back is written over what is there.

It is the second choice, for a file system that is full (`successor.py` has the first): the image is not before or after
it at once. Durable order:

    1  raised refcounts           of the little that had to be placed, where nothing names it yet
    2  the header's first sector  without what is to go; version 3: marked dirty
    3  L1 and L2 entries          those that name what is to go are zeros
    4  lowered refcounts          of what nothing names any more
    5  copied bits                of what now has one reference
    6  the header's first sector  no longer dirty

each durable before the next. A crash leaves the image before or after, in the second case with leaks, or with entries
that lack their copied bit, which are harmless; `check -r all` mends both, and QEMU does when it opens a dirty image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcow2c.atomic.copied_bits import corrected
from qcow2c.atomic.refcounts import RefcountChange
from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE
from qcow2c.format import layout, tables
from qcow2c.references.batches import batches
from qcow2c.references.walk import L2Tables, Walk, distinct_tables
from qcow2c.storage.medium import Medium

if TYPE_CHECKING:
    from qcow2c.format.array_types import U64Array

_PIECE_BYTES = SECTOR_SIZE


class InPlace:
    """What is to be written over what is there, and how it gets there; the header is the caller's."""

    def __init__(self, walk: Walk, medium: Medium, change: RefcountChange) -> None:
        self._walk = walk
        self._medium = medium
        self._change = change
        self._writes: list[tuple[int, bytes]] = []
        self.l1_words: U64Array | None = None
        """The active L1 entries that are to be; None where they stay as they are."""

    def overwrite(self, offset: int, data: bytes) -> None:
        """Let bytes of the file be others, in step 3."""
        self._writes.append((offset, data))

    def raise_refcounts(self) -> None:
        """Step 1. Raises as `RefcountChange.write_in_place`, and then nothing has been written."""
        self._change.require_in_place()
        if self._change.write_in_place(self._write, only_raised=True):
            self._medium.flush()

    def drop_references(self) -> None:
        """Steps 3 and 4."""
        for offset, data in self._writes:
            self._write(offset, data)
        header = self._walk.header
        if self.l1_words is not None:
            words = np.zeros(header.l1_size, dtype=np.uint64)
            words[: len(self.l1_words)] = self.l1_words
            self._write(header.l1_table_offset, words.astype(">u8").tobytes())
        self._medium.flush()
        self._change.write_in_place(self._write, only_raised=False)
        self._medium.flush()

    def correct_copied_bits(self) -> None:
        """Step 5."""
        header, geometry = self._walk.header, self._walk.geometry
        words = self._walk.words(header.l1_table_offset, header.l1_size)
        offsets, _ = distinct_tables(words)
        if not geometry.external_data:
            once = self._change.counted_once(geometry.clusters(self._medium.store.size()))
            for row, batch in batches(self._walk, L2Tables(offsets, offsets, np.zeros_like(offsets))):
                changed, fixed = corrected(batch, once, geometry.cluster_bits)
                for number, position in enumerate((changed + row).tolist()):
                    self._write(int(offsets[position]), fixed[number].astype(">u8").tobytes())
        named = np.flatnonzero(words)
        at = words[named] & np.uint64(tables.L1_OFFSET)
        counts = self._change.at((at >> np.uint64(geometry.cluster_bits)).view(np.int64))
        right = at | np.where(counts == 1, np.uint64(tables.L1_COPIED), np.uint64(0))
        for position in np.flatnonzero(right != words[named]).tolist():
            self._write(
                header.l1_table_offset + int(named[position]) * ENTRY_BYTES,
                layout.stored_integer(int(right[position]), ENTRY_BYTES),
            )

    def _write(self, offset: int, data: bytes) -> None:
        """Write what is not there already: what stays zero may be a hole, which would need room."""
        before = self._medium.store.pread(len(data), offset).ljust(len(data), b"\0")
        for start in range(0, len(data), _PIECE_BYTES):
            part = data[start : start + _PIECE_BYTES]
            if part != before[start : start + _PIECE_BYTES]:
                self._medium.write([part], offset + start)
