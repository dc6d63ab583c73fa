"""What some bytes are, as one hash: ranges of zeros count by number, so that it costs what is there. Reads only.

The hash says nothing of how the bytes are stored: a disk has the same one in every format. docs/hashing.md has the
definition, so that other programs can make it, too.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from qcow2c.errors import UsageError
from qcow2c.format.layout import stored_integer
from qcow2c.light import NamedTuple, Protocol, frozen
from qcow2c.storage.store import Progress

if TYPE_CHECKING:

    class RunningHash(Protocol):
        """A hash of the standard library."""

        def update(self, data: bytes | bytearray, /) -> None: ...

        def digest(self) -> bytes: ...


RANGE_BYTES = 1 << 20
"""Bytes of a range, unless the caller says otherwise."""

LEAST_RANGE, MOST_RANGE = 1 << 12, 1 << 26

ALGORITHMS = ("sha256", "blake2b-256")

_TAG = b"qcow2c-content/1\n"
_ZERO_RANGES, _DATA_RANGE = b"Z", b"D"
_NUMBER_BYTES = 8
_THREADS = 2
_AHEAD = 8
"""Ranges that are read before the first of them is counted."""


class RangeRun(NamedTuple):
    """Consecutive ranges of zeros, or one range of data with its digest; `start` and `length` are bytes."""

    start: int
    length: int
    digest: bytes | None


@frozen
class ContentHash:
    """The hash of some bytes, and how many of them lie in ranges that are not zeros."""

    size: int
    digest: bytes
    data_bytes: int


def new_hash(algorithm: str) -> RunningHash:
    """Return a hash that has seen nothing. Raises UsageError for an unknown name."""
    if algorithm == "sha256":
        return hashlib.sha256()
    if algorithm == "blake2b-256":
        return hashlib.blake2b(digest_size=32)
    raise UsageError(f"unknown algorithm {algorithm!r}, not one of {', '.join(ALGORITHMS)}")


class Content:
    """Bytes that are to be hashed: `spans` are the (start, end) that may hold more than zeros, in order.

    `read_into` fills a buffer from an offset; two threads call it.
    """

    def __init__(
        self,
        size: int,
        spans: Callable[[], Iterator[tuple[int, int]]],
        read_into: Callable[[memoryview, int], object],
        *,
        algorithm: str = ALGORITHMS[0],
        range_bytes: int = RANGE_BYTES,
    ) -> None:
        """Raises UsageError for an unknown algorithm, and ranges whose length is no power of two or out of bounds."""
        new_hash(algorithm)
        if not LEAST_RANGE <= range_bytes <= MOST_RANGE or range_bytes & (range_bytes - 1):
            raise UsageError(f"ranges of {range_bytes} bytes: no power of two between {LEAST_RANGE} and {MOST_RANGE}")
        self.size = size
        self._spans, self._read_into = spans, read_into
        self._algorithm, self._range = algorithm, range_bytes
        self._zeros = bytes(range_bytes)

    def hash(self, progress: Progress | None = None, note: Callable[[RangeRun], object] | None = None) -> ContentHash:
        """Return the hash; `note` gets each run, `progress` the bytes that are done. Raises what reading does."""
        whole = new_hash(self._algorithm)
        whole.update(_TAG + _number(self.size) + _number(self._range))
        data_bytes = 0
        for run in self._merged():
            if run.digest is None:
                whole.update(_ZERO_RANGES + _number(-(-run.length // self._range)))
            else:
                whole.update(_DATA_RANGE + run.digest)
                data_bytes += run.length
            if note is not None:
                note(run)
            if progress is not None:
                progress(run.start + run.length, self.size)
        return ContentHash(self.size, whole.digest(), data_bytes)

    def _merged(self) -> Iterator[RangeRun]:
        """Yield the runs in order; adjacent ranges of zeros are one, whether they were read or not."""
        start = 0
        for at, length, digest in self._digests():
            if digest is None:
                continue
            if at > start:
                yield RangeRun(start, at - start, None)
            yield RangeRun(at, length, digest)
            start = at + length
        if start < self.size:
            yield RangeRun(start, self.size - start, None)

    def _digests(self) -> Iterator[RangeRun]:
        """Yield each range that may hold data, with its digest, None for zeros; a few are read ahead."""
        waiting: deque[Future[RangeRun]] = deque()
        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                for at in self._ranges():
                    waiting.append(pool.submit(self._digest, at))
                    if len(waiting) >= _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _ranges(self) -> Iterator[int]:
        """Yield where each range begins that some span touches."""
        done = 0
        for start, end in self._spans():
            first = max(done, start // self._range * self._range)
            for at in range(first, min(end, self.size), self._range):
                yield at
                done = at + self._range

    def _digest(self, at: int) -> RangeRun:
        buffer = bytearray(min(self._range, self.size - at))
        self._read_into(memoryview(buffer), at)
        if self._zeros.startswith(buffer):
            return RangeRun(at, len(buffer), None)
        one = new_hash(self._algorithm)
        one.update(buffer)
        return RangeRun(at, len(buffer), one.digest())


def _number(value: int) -> bytes:
    return stored_integer(value, _NUMBER_BYTES)
