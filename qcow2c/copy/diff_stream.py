"""The stream of a difference: what to write over one disk to make it another, for pipes; written and read in order.

A header line, `qcow2c-diff 1 from FROM to TO`, with both disks' sizes in bytes; then records, in the order of the disk:
a line `data OFFSET LENGTH` with LENGTH bytes behind it, or a line `zero OFFSET LENGTH`; finally a line
`end COUNT SHA256`, with the number of records and the hash of everything before this line. Numbers are decimal, and
multiples of 512; lines are ASCII and end with a line feed. It knows no image.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from qcow2c.constants import SECTOR_SIZE, Limit
from qcow2c.disk.differences import Difference
from qcow2c.disk.disk import Disk
from qcow2c.errors import CorruptData, Span, StoreError
from qcow2c.storage.store import reason

MAX_DATA = 4 << 20
"""Bytes of data in one record."""

_LINE_BYTES = 128

_HEADER = re.compile(rb"qcow2c-diff 1 from (\d{1,19}) to (\d{1,19})\n")

_RECORD = re.compile(rb"(data|zero) (\d{1,19}) (\d{1,19})\n")

_END = re.compile(rb"end (\d{1,19}) ([0-9a-f]{64})\n")


class Record(NamedTuple):
    """A range; `data` is what it is to hold, None for zeros."""

    start: int
    length: int
    data: bytes | None


class DiffWriter:
    """Writes a stream with a function that takes all of some bytes."""

    def __init__(self, write: Callable[[memoryview], object], before_size: int, after_size: int) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self._count = 0
        self._send(b"qcow2c-diff 1 from %d to %d\n" % (before_size, after_size))

    def _send(self, data: bytes) -> None:
        self._hash.update(data)
        self._write(memoryview(data))

    def zero(self, start: int, length: int) -> None:
        """Tell a range of zeros."""
        self._send(b"zero %d %d\n" % (start, length))
        self._count += 1

    def data(self, start: int, data: bytes) -> None:
        """Tell a range of data, at most MAX_DATA bytes."""
        self._send(b"data %d %d\n" % (start, len(data)))
        self._send(data)
        self._count += 1

    def finish(self) -> None:
        """End the stream, which counts for nothing before."""
        self._write(memoryview(b"end %d %s\n" % (self._count, self._hash.hexdigest().encode())))


class DiffReader:
    """Reads a stream from a binary file object. `before_size` and `after_size` are the sizes of the disks."""

    def __init__(self, file: Any) -> None:
        """Raises CorruptData for what is no such stream, StoreError."""
        self._file = file
        self._hash = hashlib.sha256()
        self._position = 0
        line = self._line()
        match = _HEADER.fullmatch(line)
        if match is None:
            raise self._broken(f"no qcow2c-diff stream: it starts with {line[:32]!r}", len(line))
        self._hash.update(line)
        self.before_size, self.after_size = int(match[1]), int(match[2])
        for size in (self.before_size, self.after_size):
            if size % SECTOR_SIZE or size >= Limit.SIGNED_OFFSET_END:
                raise self._broken(f"a disk of {size} bytes", len(line))

    def records(self) -> Iterator[Record]:
        """Yield the records. Raises CorruptData where the stream is broken or ends too early, StoreError.

        Only after the last one is it known that the stream was whole.
        """
        count = done = 0
        while True:
            line = self._line()
            if (match := _RECORD.fullmatch(line)) is None:
                self._require_end(line, count)
                return
            self._hash.update(line)
            start, length = int(match[2]), int(match[3])
            is_data = match[1] == b"data"
            if start < done or not length or start + length > self.after_size:
                raise self._broken(f"a range of {length} bytes at {start} is out of place", len(line))
            if start % SECTOR_SIZE or length % SECTOR_SIZE or (is_data and length > MAX_DATA):
                raise self._broken(f"a range of {length} bytes at {start}", len(line))
            yield Record(start, length, self._data(length) if is_data else None)
            done = start + length
            count += 1

    def _require_end(self, line: bytes, count: int) -> None:
        match = _END.fullmatch(line)
        if match is None:
            problem = f"neither a record nor the end: {line[:32]!r}" if line else "the stream ends too early"
            raise self._broken(problem, len(line))
        if int(match[1]) != count or match[2].decode() != self._hash.hexdigest():
            raise self._broken(f"the stream has been changed: its hash is wrong, or there are not {count} records", 0)
        if self._read(1):
            raise self._broken("something follows the end", 1)

    def _data(self, length: int) -> bytes:
        data = self._read(length)
        self._hash.update(data)
        if len(data) < length:
            raise self._broken(f"the stream ends within a record, after {len(data)} of {length} bytes", len(data))
        return data

    def _line(self) -> bytes:
        try:
            line: bytes = self._file.readline(_LINE_BYTES)
        except OSError as exc:
            raise StoreError(f"Could not read the stream: {reason(exc)}", errno=exc.errno) from exc
        self._position += len(line)
        return line

    def _read(self, length: int) -> bytes:
        parts: list[bytes] = []
        try:
            while length and (part := self._file.read(length)):
                parts.append(part)
                length -= len(part)
        except OSError as exc:
            raise StoreError(f"Could not read the stream: {reason(exc)}", errno=exc.errno) from exc
        data = b"".join(parts)
        self._position += len(data)
        return data

    def _broken(self, message: str, length: int) -> CorruptData:
        return CorruptData(message, where=Span(self._position - length, length))


def write_records(
    found: Iterator[Difference], before_size: int, after: Disk, write: Callable[[memoryview], object]
) -> None:
    """Write ranges of a disk as a stream; `write` takes all of some bytes. Raises as reading the disk, and as it."""
    stream = DiffWriter(write, before_size, after.size)
    for one in found:
        if one.zero:
            stream.zero(one.start, one.length)
            continue
        for at in range(one.start, one.end, MAX_DATA):
            data = bytearray(min(MAX_DATA, one.end - at))
            after.read_into(memoryview(data), at)
            stream.data(at, bytes(data))
    stream.finish()
