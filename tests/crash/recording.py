"""A store that remembers every write and flush, and the states of the files that a crash could leave.

Several stores share one recorder, that is one clock, but lose writes independently: a flush makes only the writes of
its own store durable. A write may arrive in part, but no sector is ever torn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from qcow2c.storage.sources import WritableMemory
from qcow2c.storage.store import Buffer
from tests.profile import DEEP

SECTOR = 512
SUBSETS = 200
"""Subsets of the writes of an epoch that are tried where there are too many for all."""

ALL_SUBSETS_UP_TO = 10 if DEEP else 6
TORN = 40 if DEEP else 24
"""States of an epoch with torn writes."""

JUNK = 0xA5
"""What a punched hole reads as: nobody may depend on it."""


Arrival = bool | Sequence[bool]
"""Whether a write arrives, or which sectors of it."""


class Kind(Enum):
    WRITE = "write"
    PUNCH = "punch"
    TRUNCATE = "truncate"
    FLUSH = "flush"


@dataclass(frozen=True)
class Event:
    store: int
    kind: Kind
    offset: int = 0
    data: bytes = b""

    def apply(self, image: bytearray, sectors: Sequence[bool] | None = None) -> None:
        """Do the same to a copy of the store; `sectors` says which sectors of a write arrive."""
        if self.kind is Kind.TRUNCATE:
            del image[self.offset :]
            image.extend(bytes(self.offset - len(image)))
        elif self.kind is Kind.PUNCH:
            end = min(len(image), self.offset + len(self.data))
            if self.offset < end:
                image[self.offset : end] = self.data[: end - self.offset]
        elif self.kind is Kind.WRITE:
            position = 0
            for arrives in sectors or [True] * self.sectors:
                end = min(len(self.data), position + SECTOR - (self.offset + position) % SECTOR)
                if arrives:
                    at = self.offset + position
                    image.extend(bytes(max(0, at - len(image))))
                    image[at : at + end - position] = self.data[position:end]
                position = end

    @property
    def touched(self) -> slice:
        """The bytes that may be others afterwards."""
        return slice(0, None) if self.kind is Kind.TRUNCATE else slice(self.offset, self.offset + len(self.data))

    @property
    def sectors(self) -> int:
        return (self.offset + len(self.data) - 1) // SECTOR - self.offset // SECTOR + 1 if self.data else 0


class Recorder:
    """The clock and the log of all stores; `len(recorder.log)` is the time."""

    def __init__(self) -> None:
        self.log: list[Event] = []
        self.initial: list[bytes] = []

    def store(self, data: bytes) -> RecordingStore:
        self.initial.append(data)
        return RecordingStore(self, len(self.initial) - 1, bytearray(data))


class RecordingStore(WritableMemory):
    """Memory whose every change is in the recorder's log."""

    def __init__(self, recorder: Recorder, index: int, data: bytearray) -> None:
        super().__init__(data, name=f"<recorded {index}>")
        self.recorder = recorder
        self.index = index
        self.contents = data

    def pwrite(self, data: Buffer, offset: int) -> None:
        self._record(Event(self.index, Kind.WRITE, offset, bytes(data)))

    def write_zeroes(self, offset: int, length: int) -> None:
        self._record(Event(self.index, Kind.WRITE, offset, bytes(length)))

    def punch(self, offset: int, length: int) -> None:
        self._record(Event(self.index, Kind.PUNCH, offset, bytes([JUNK]) * length))

    def truncate(self, size: int) -> None:
        self._record(Event(self.index, Kind.TRUNCATE, size))

    def flush(self) -> None:
        self._record(Event(self.index, Kind.FLUSH))

    def _record(self, event: Event) -> None:
        event.apply(self.contents)
        if event.kind is Kind.WRITE and event.data:
            # What reaches the disk are whole sectors, with what the system holds of them in memory.
            first = event.offset // SECTOR * SECTOR
            end = -(-(event.offset + len(event.data)) // SECTOR) * SECTOR
            event = Event(self.index, Kind.WRITE, first, bytes(self.contents[first:end]))
        self.recorder.log.append(event)


@dataclass(frozen=True)
class CrashState:
    """What the files hold after a crash at a time, and how that came about."""

    time: int
    files: tuple[bytes, ...]
    story: str


def crash_states(recorder: Recorder, seed: int, acknowledged: Container[int] = ()) -> Iterator[CrashState]:
    """Yield each state that a crash could leave, as far as tried.

    No two have the same files, unless a flush came between them, or was acknowledged: then more is expected of them.
    """
    chooser = random.Random(seed)
    durable = [bytearray(data) for data in recorder.initial]
    pending: list[Event] = []
    """Writes from before the epoch to stores that were not flushed."""
    start = 0
    while start <= len(recorder.log):
        flushes = (time for time in range(start, len(recorder.log)) if recorder.log[time].kind is Kind.FLUSH)
        end = next(flushes, len(recorder.log))
        epoch = [*pending, *recorder.log[start:end]]
        trial = _Trial(durable, epoch)
        seen: set[bytes] = set()
        for time in range(start, end + 1):
            if time in acknowledged:
                seen.clear()
            arrived = len(pending) + time - start
            choices: list[tuple[str, list[Arrival]]] = [("killed", [index < arrived for index in range(len(epoch))])]
            if time == end:
                choices += _choices(epoch, chooser)
            for story, chosen in choices:
                trial.apply(chosen)
                digest = trial.digest()
                if digest not in seen:
                    seen.add(digest)
                    yield CrashState(time, trial.contents(), f"{story} at {time}")
        if end < len(recorder.log):
            flushed = recorder.log[end].store
            for write in epoch:
                if write.store == flushed:
                    write.apply(durable[flushed])
            pending = [write for write in epoch if write.store != flushed]
        start = end + 1


class _Trial:
    """Copies of the files to which some writes of an epoch arrive; only what these touch is copied again and hashed."""

    def __init__(self, durable: Sequence[bytearray], epoch: Sequence[Event]) -> None:
        self._durable = durable
        self._files = [bytearray(data) for data in durable]
        self._epoch = epoch
        self._touched = [(write.store, write.touched) for write in epoch]

    def apply(self, chosen: Sequence[Arrival]) -> None:
        """Undo what was applied before, and let the chosen writes arrive."""
        for store, file in enumerate(self._files):
            del file[len(self._durable[store]) :]
        for store, touched in self._touched:
            self._files[store][touched] = self._durable[store][touched]
        for write, how in zip(self._epoch, chosen, strict=True):
            if how is not False:
                write.apply(self._files[write.store], None if how is True else how)

    def digest(self) -> bytes:
        """Return a value that tells the states of one epoch apart."""
        parts = [repr([len(file) for file in self._files]).encode()]
        parts += [self._files[store][touched] for store, touched in self._touched]
        return hashlib.blake2b(b"".join(parts)).digest()

    def contents(self) -> tuple[bytes, ...]:
        return tuple(bytes(file) for file in self._files)


def _choices(pending: Sequence[Event], chooser: random.Random) -> Iterator[tuple[str, list[Arrival]]]:
    count = len(pending)
    for index in range(count):
        yield f"only write {index} of {count}", [other == index for other in range(count)]
        yield f"all but write {index} of {count}", [other != index for other in range(count)]
    if count <= ALL_SUBSETS_UP_TO:
        for subset in range(1 << count):
            yield f"subset {subset:b}", [bool(subset >> index & 1) for index in range(count)]
    else:
        for number in range(SUBSETS):
            yield f"random subset {number}", [chooser.random() < 0.5 for _ in range(count)]
    for number in range(TORN if count else 0):
        torn: list[Arrival] = []
        for write in pending:
            if write.kind is Kind.WRITE and write.sectors > 1:
                torn.append([chooser.random() < 0.5 for _ in range(write.sectors)])
            else:
                torn.append(chooser.random() < 0.5)
        yield f"torn {number}", torn
