"""A store on a file system with little room: each block of 4 KiB that holds something takes some of it."""

from __future__ import annotations

import errno

from qcow2c.errors import Span, StoreError
from qcow2c.storage.store import Buffer
from tests.crash.recording import Recorder, RecordingStore

BLOCK = 4096


class FullStore(RecordingStore):
    """Recorded memory with holes, and with room for so many blocks more than it holds; zeros at first are holes."""

    def __init__(self, data: bytes, room: int, recorder: Recorder | None = None) -> None:
        recorder = Recorder() if recorder is None else recorder
        recorder.initial.append(data)
        super().__init__(recorder, len(recorder.initial) - 1, bytearray(data))
        self.held = {at // BLOCK for at in range(0, len(data), BLOCK) if any(data[at : at + BLOCK])}
        self.limit = len(self.held) + room
        self.peak = len(self.held)

    def pwrite(self, data: Buffer, offset: int) -> None:
        for at in range(offset, offset + len(data), BLOCK):  # A write that fails has arrived in part.
            part = bytes(data)[at - offset : at - offset + BLOCK]
            self._take(at, len(part))
            super().pwrite(part, at)

    def allocate(self, offset: int, length: int) -> None:
        self._take(offset, length)
        if self.size() < offset + length:
            super().truncate(offset + length)

    def _take(self, offset: int, length: int) -> None:
        wanted = {*range(offset // BLOCK, -(-(offset + length) // BLOCK))} - self.held
        if len(self.held) + len(wanted) > self.limit:
            raise StoreError("No space left on device", where=Span(offset, length), errno=errno.ENOSPC)
        self.held |= wanted
        self.peak = max(self.peak, len(self.held))

    def write_zeroes(self, offset: int, length: int) -> None:
        self._drop(offset, offset + length)
        super().write_zeroes(offset, length)

    def punch(self, offset: int, length: int) -> None:
        self._drop(offset, min(offset + length, self.size()))
        super().punch(offset, length)

    def truncate(self, size: int) -> None:
        self.held -= {block for block in self.held if block * BLOCK >= size}
        super().truncate(size)

    def _drop(self, start: int, end: int) -> None:
        self.held -= {*range(-(-start // BLOCK), end // BLOCK)}
