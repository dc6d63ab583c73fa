"""Compare two disks: the same bytes, and, strictly, allocated in the same way. The answers are `qemu-img compare`'s.

What both maps call zeros, and what is one place of one file, is never read. The rest is read in slabs, by two threads
that take them in turn, until one finds a difference; the first one on the disk counts.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator

from qcow2c.constants import SECTOR_SIZE
from qcow2c.disk.block_status import segments, slice_bytes
from qcow2c.disk.disk import Disk, open_disk
from qcow2c.disk.map_layers import ZERO, Segment, mapped_layers
from qcow2c.disk.pair import BY_LAYER, PiecePair, Side, pairs
from qcow2c.errors import MissingKey, Qcow2Error, doing
from qcow2c.layers.chain import layers_of
from qcow2c.light import TYPE_CHECKING, frozen
from qcow2c.storage.gate import Gate
from qcow2c.storage.sources import Source, Store
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

SLAB_BYTES = 512 << 10
"""Bytes that are read of each disk before they are compared: both must stay in the processor's cache."""

CANNOT_OPEN, CANNOT_MAP, CANNOT_READ = 2, 3, 4
"""Exit status of the errors."""


class Why(enum.StrEnum):
    """What is different."""

    CONTENT = "content"
    ALLOCATION = "allocation"
    SIZE = "size"


@frozen
class Comparison:
    """`offset` is where the first difference lies: the first byte of a sector; None where there is none, or of size.

    The sizes are in bytes. Disks of different sizes are identical if the longer one ends in zeros, but not strictly.
    """

    identical: bool
    offset: int | None
    why: Why | None
    first_size: int
    second_size: int


def compare(
    first: Source | Store,
    second: Source | Store,
    *,
    first_format: str | None = None,
    second_format: str | None = None,
    strict: bool = False,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Open two images, qcow2 or raw, and compare their disks; `key` is as in `open_image`.

    Raises as `open_disk` and `compare_disks`.
    """
    with (
        open_disk(first, image_format=first_format, key=key, gate=gate, share=share) as one,
        open_disk(second, image_format=second_format, key=key, gate=gate, share=share) as other,
    ):
        return compare_disks(one, other, strict=strict, progress=progress)


def compare_disks(first: Disk, second: Disk, *, strict: bool = False, progress: Progress | None = None) -> Comparison:
    """Compare two disks; `strict` compares sizes and allocation, too.

    `progress` is told the bytes of the larger disk, also where the smaller one ends, and at the end.
    Raises MissingKey, CorruptMetadata, CorruptData, StoreError, if no difference comes before; `exit_code` of the
    error says whether a disk could not be opened, mapped or read.
    """
    for disk in first, second:
        _require_no_key(disk)
    common, total = sorted((first.size, second.size))
    sizes = {"first_size": first.size, "second_size": second.size}
    if strict and common != total:
        return Comparison(identical=False, offset=None, why=Why.SIZE, **sizes)
    tell = progress or (lambda _done, _total: None)
    # QEMU, too, comes to the common end before it looks further.
    for start, end in ((0, common), (common, total)) if common != total else ((0, common),):
        found = _RangePair(first, second, start, end, strict=strict).first_difference(lambda done: tell(done, total))
        if found is not None:
            offset, why = found
            return Comparison(identical=False, offset=offset, why=why, **sizes)
        tell(end, total)
    return Comparison(identical=True, offset=None, why=None, **sizes)


def _require_no_key(disk: Disk) -> None:
    if any(layer.needs_key for layer in layers_of(disk.layer)):
        with doing(f"Could not open {disk.name!r}", exit_code=CANNOT_OPEN):
            raise MissingKey("it is encrypted, and no key was given")


# --- reading and comparing ------------------------------------------------------------------------------------------


def _runs(disk: Disk, start: int, end: int, *, strict: bool) -> Iterator[Segment]:
    """Yield the runs of a range, as QEMU finds them one by one if `strict`, and a longest one past the end."""
    if start >= disk.size:
        yield start, end - start, 0, ZERO, 0
        return
    with doing(f"Sector allocation test failed for {disk.name}", exit_code=CANNOT_MAP):
        if strict:
            yield from segments(mapped_layers(disk.layer), start, end)
        else:
            for columns in disk.map.columns(start, end - start):
                yield from zip(*columns, strict=True)


_Found = tuple[int, Why]

_ZEROS = memoryview(bytes(SLAB_BYTES))

_TELL_SECONDS = 0.1
"""How often it is told how much is done."""

_SKIP = 4096 - 16
"""A big block of memory begins 16 bytes behind a page, and copies to aligned addresses take half the time."""


class _SlabPair:
    """Room for one slab of each disk."""

    def __init__(self) -> None:
        self.first, self.second = bytearray(SLAB_BYTES + _SKIP), bytearray(SLAB_BYTES + _SKIP)
        self.views = tuple(memoryview(buffer)[_SKIP:] for buffer in (self.first, self.second))

    def equal(self, begin: int, end: int, holds: tuple[bool, bool]) -> bool:
        """Return whether a range of both is equal, or all zeros where only one of them holds data."""
        # Unlike views, which are compared element by element, this compares memory, and copies nothing.
        buffer = self.first if holds[0] else self.second
        other = self.views[1][begin:end] if all(holds) else _ZEROS[: end - begin]
        return buffer.startswith(other, begin + _SKIP)


class _RangePair:
    """A range of both disks that is compared, by two threads."""

    def __init__(self, first: Disk, second: Disk, start: int, end: int, *, strict: bool) -> None:
        stores: list[Store] = []
        self._sides = Side(0, first, stores), Side(1, second, stores)
        self._start, self._end, self._strict = start, end, strict
        self._lock = threading.Lock()
        self._slabs = enumerate(self._planned())
        self._stopped = False
        self._found: dict[int, _Found | Qcow2Error] = {}
        """What was found, by number of the slab."""
        self._last: _Found | Qcow2Error | None = None
        """What ended the plan, if it did not come to the end."""
        self._failure: BaseException | None = None
        self._position = start

    def first_difference(self, tell: Callable[[int], object]) -> _Found | None:
        """Return the first difference. Raises what comes before it."""
        helpers = [threading.Thread(target=self._help) for _ in range(2)]
        tell(self._start)
        try:
            # Many disks are small, or differ at once, and need no threads.
            if self._compare_next():
                for helper in helpers:
                    helper.start()
                for helper in helpers:
                    while helper.is_alive():
                        helper.join(_TELL_SECONDS)
                        tell(self._position)
        finally:
            self._stopped = True
            for helper in helpers:
                if helper.ident is not None:
                    helper.join()
        if self._failure is not None:
            raise self._failure
        outcome = self._found[min(self._found)] if self._found else self._last
        if isinstance(outcome, Qcow2Error):
            raise outcome
        return outcome

    def _help(self) -> None:
        """Compare slabs until there are no more, or something is found; what others have begun, they finish."""
        try:
            buffers = _SlabPair()
            while self._compare_next(buffers):
                pass
        except BaseException as exc:  # It would be lost here: the thread that waits for this one raises it.
            self._failure = exc
        finally:
            self._stopped = True

    def _compare_next(self, buffers: _SlabPair | None = None) -> bool:
        """Compare a slab; return False if there is none, or no reason to go on."""
        with self._lock:
            slab = None if self._stopped else next(self._slabs, None)
            if slab is None:
                return False
            number, pieces = slab
            self._position = pieces[0].start
        found = self._compared(pieces, buffers or _SlabPair())
        if found is not None:
            self._found[number] = found
            self._stopped = True
        return not self._stopped

    # --- the plan ---

    def _planned(self) -> Iterator[list[PiecePair]]:
        """Yield what must be compared, a slab at a time; no piece goes over a multiple of its size."""
        slab: list[PiecePair] = []
        room = SLAB_BYTES
        first, second = self._sides
        for start, end, one, other in self._open_pairs():
            at = start
            while at < end:
                length = min(end - at, SLAB_BYTES - at % SLAB_BYTES)
                if length > room:
                    yield slab
                    slab, room = [], SLAB_BYTES
                slab.append(PiecePair(at, length, (first.place(one, at), second.place(other, at))))
                room -= length
                at += length
        if slab:
            yield slab

    def _open_pairs(self) -> Iterator[tuple[int, int, Segment, Segment]]:
        """Yield what the maps leave open; an error, or a difference of the maps, ends it."""
        first, second = self._sides
        try:
            for pair in self._pairs(self._start, strict=self._strict):
                at, _, one, other = pair
                if self._strict and one[3] != other[3]:
                    self._last = at, Why.ALLOCATION
                    return
                place = first.place(one, at)
                if place[0] == BY_LAYER or place != second.place(other, at):
                    yield pair
        except Qcow2Error as exc:
            self._last = exc

    def _pairs(self, start: int, *, strict: bool) -> Iterator[tuple[int, int, Segment, Segment]]:
        """Yield start and end of what is one run in both disks, and these runs."""
        first, second = (_runs(side.disk, start, self._end, strict=strict) for side in self._sides)
        yield from pairs(first, second, start)

    # --- one slab ---

    def _compared(self, slab: list[PiecePair], buffers: _SlabPair) -> _Found | Qcow2Error | None:
        try:
            for side, view in zip(self._sides, buffers.views, strict=True):
                side.read(slab, view)
        except Qcow2Error:
            return self._step_by_step(slab)
        begin = end = 0
        before = (False, False)
        for piece in slab:
            if piece.holds != before:
                if not buffers.equal(begin, end, before):
                    return self._located(slab, buffers)
                begin = end
                before = piece.holds
            end += piece.length
        return None if buffers.equal(begin, end, before) else self._located(slab, buffers)

    def _located(self, slab: list[PiecePair], buffers: _SlabPair) -> _Found:
        """Return the place of the first sector that differs."""
        position = 0
        for piece in slab:
            if not buffers.equal(position, position + piece.length, piece.holds):
                break
            position += piece.length
        # It is in `low` sectors or the ones behind, up to `high`.
        low, high = 0, -(-piece.length // SECTOR_SIZE)
        while high - low > 1:
            middle = (low + high) // 2
            if buffers.equal(position + low * SECTOR_SIZE, position + middle * SECTOR_SIZE, piece.holds):
                low = middle
            else:
                high = middle
        return piece.start + low * SECTOR_SIZE, Why.CONTENT

    def _step_by_step(self, slab: list[PiecePair]) -> _Found | Qcow2Error | None:
        """Return what QEMU would have found first in a slab that cannot be read, in the steps that it would take."""
        low, high = slab[0].start, slab[-1].start + slab[-1].length
        buffers = _SlabPair()
        for at, length in self._steps(low, high):
            for side, view in zip(self._sides, buffers.views, strict=True):
                try:
                    with doing(f"Error while reading offset {at} of {side.disk.name}", exit_code=CANNOT_READ):
                        side.disk.read_into(view[:length], at)
                except Qcow2Error as exc:
                    return exc
            if not buffers.equal(0, length, (True, True)):
                return self._located([PiecePair(at, length, ((BY_LAYER, at), (BY_LAYER, at)))], buffers)
        return None

    def _steps(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges that QEMU reads at once, of those that end behind `low` and begin before `high`."""
        starts = [self._start]
        for side in self._sides:
            if unit := slice_bytes(side.disk.layer):  # At the edges of its tables QEMU begins anew.
                starts.append(low - low % unit)
        for start, end, one, other in self._pairs(max(starts), strict=True):
            if start >= high:
                return
            if not one[3] & other[3] & ZERO:
                for at in range(start, min(end, high), SLAB_BYTES):
                    if at + SLAB_BYTES > low:
                        yield at, min(SLAB_BYTES, end - at)
