"""Changes of an image that can be taken back: a journal of what is written where, in stages, and what was there.

A repair is first a journal and only then done: in a temporary file, or in the undo file that the caller wants. The
file is lines of JSON; behind the line of a change come the bytes that were there and the bytes that are written:

    qcow2c undo 1
    {"stage": 1, "offset": 131072, "old": 512, "new": 512}    and 1024 bytes
    {"image": "disk.qcow2", "size": 393216, "repaired_size": 393216, "changes": 1, "sha256": "..."}

The last line has the size of the image before and after, and the checksum of everything before that line: a file
without it was not completed, and then nothing was changed. Where `old` is shorter than `new`, the image had no more.

Durable order of a repair: the journal with its name, then stage by stage, each durable before the next. Of taking it
back: the stages the other way round, then the size. A crash leaves each sector as it was or as it was to be; the
undo file takes back such an image, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from heapq import merge
from typing import Any, NamedTuple

from qcow2c.constants import SECTOR_SIZE, Limit
from qcow2c.errors import LimitExceeded, Span, StoreError, UsageError
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.sources import FileObject, LocalFile, Store

_MAGIC = b"qcow2c undo 1\n"

MAX_CHANGES = 1 << 20
"""Changes of one repair, adjacent sectors of one table being one."""

_CHANGE_BYTES = 4 << 20
_LINE_BYTES = 8192
_IN_MEMORY = 16 << 20


class Change(NamedTuple):
    """Where a change is, and where in the journal its bytes are: `old` and, behind them, `new`, both lengths."""

    stage: int
    offset: int
    old: int
    new: int
    at: int


class Journal:
    """Changes in stages, with their bytes in a store that is no part of the image."""

    def __init__(self, store: Store, image_size: int, changes: Iterable[Change] = (), end: int | None = None) -> None:
        """`image_size` is that of the image before, `end` that after the `changes` that are noted already."""
        self.store = store
        self.image_size = image_size
        self.changes = [*changes]
        self.end = image_size if end is None else end
        self._digest = hashlib.sha256()
        self._at = 0

    def add(self, stage: int, offset: int, old: bytes, new: bytes) -> None:
        """Note a change of any length; `old` is shorter where the image ends. Raises LimitExceeded, StoreError."""
        if not self._at:
            self._write(_MAGIC)
        for start in range(0, len(new), _CHANGE_BYTES):
            before, after = old[start : start + _CHANGE_BYTES], new[start : start + _CHANGE_BYTES]
            if len(self.changes) >= MAX_CHANGES:
                raise LimitExceeded(f"the repair needs more than {MAX_CHANGES} changes")
            facts = {"stage": stage, "offset": offset + start, "old": len(before), "new": len(after)}
            self._write(json.dumps(facts).encode() + b"\n")
            self.changes.append(Change(stage, offset + start, len(before), len(after), self._at))
            self._write(before + after)
        self.end = max(self.end, offset + len(new))

    def drop(self) -> None:
        """Forget all changes: there are to be none."""
        self.changes.clear()
        self.end = self.image_size

    def _write(self, data: bytes) -> None:
        self.store.pwrite(data, self._at)
        self._digest.update(data)
        self._at += len(data)

    def complete(self, image: Store) -> None:
        """End the file and make it durable. Raises StoreError."""
        facts = {
            "image": os.path.basename(image.name),
            "size": self.image_size,
            "repaired_size": self.end,
            "changes": len(self.changes),
            "sha256": self._digest.hexdigest(),
        }
        self.store.pwrite(json.dumps(facts).encode() + b"\n", self._at)
        self.store.flush()
        if isinstance(self.store, LocalFile):
            self.store.flush_name()

    def bytes_of(self, change: Change) -> tuple[bytes, bytes]:
        """Return what was there, and what is to be there. Raises StoreError."""
        data = self.store.pread(change.old + change.new, change.at)
        return data[: change.old], data[change.old :]

    @property
    def stages(self) -> list[int]:
        return sorted({change.stage for change in self.changes})

    def apply(self, image: Store) -> None:
        """Do the changes, stage by stage. Raises StoreError; then those of earlier stages are done."""
        for stage in self.stages:
            for change in self.changes:
                if change.stage == stage:
                    image.pwrite(self.bytes_of(change)[1], change.offset)
            image.flush()

    # --- back ---

    def take_back(self, image: Store) -> bool:
        """Let an image be what it was; False if it is that already.

        Raises UsageError where it is not what the changes have made of it, or a part of them; StoreError.
        """
        size = image.size()
        if not self.image_size <= size <= self.end:
            bounds = f"{self.image_size}..{self.end}"
            raise UsageError(f"{image.name!r} has {size} bytes, not {bounds}: it was changed after the repair")
        if not self._require_ours(image) and size == self.image_size:
            return False
        for stage in reversed(self.stages):
            for change in self.changes:
                if change.stage == stage and change.old:
                    image.pwrite(self.bytes_of(change)[0], change.offset)
            image.flush()
        image.truncate(self.image_size)
        image.flush()
        return True

    def _require_ours(self, image: Store) -> bool:
        """Return whether any sector is as it was to be. Raises UsageError for one that no change accounts for."""
        foreign: set[int] = set()
        is_changed = False
        for change in self.changes:
            for at, states, now in self._sectors(image, change):
                is_changed = is_changed or (now == states[1] and now != states[0])
                if now not in states:
                    foreign.add(at)
        # A sector that changes in two stages has three states.
        for change in self.changes if foreign else ():
            foreign -= {at for at, states, now in self._sectors(image, change) if now in states}
        if foreign:
            at = min(foreign)
            message = f"{image.name!r} does not hold what the repair wrote: it was changed since, or is another image"
            raise UsageError(message, where=Span(at, SECTOR_SIZE))
        return is_changed

    def _sectors(self, image: Store, change: Change) -> Iterator[tuple[int, tuple[bytes, ...], bytes]]:
        """Yield for each sector of a change its place, what it may hold, and what it holds."""
        old, new = self.bytes_of(change)
        now = image.pread(len(new), change.offset)
        for start in range(0, len(new), SECTOR_SIZE):
            part = slice(start, start + SECTOR_SIZE)
            before = old[part]
            # What was not there may have become zeros when the file grew: they are as good as nothing.
            padded = before.ljust(len(new[part]), b"\0")
            found = now[part].ljust(len(new[part]), b"\0")
            yield change.offset + start, (padded, new[part]), found


def load(store: Store) -> Journal:
    """Return the journal in an undo file. Raises UsageError where it is none, or is damaged; StoreError."""
    end = store.size()
    if store.pread(len(_MAGIC), 0) != _MAGIC:
        raise UsageError(f"{store.name!r} is no undo file")
    digest, at = hashlib.sha256(_MAGIC), len(_MAGIC)
    found: list[Change] = []
    while at < end:
        line, separator, _ = store.pread(_LINE_BYTES, at).partition(b"\n")
        facts = _facts(store, line if separator else b"")
        if "sha256" in facts:
            if at + len(line) + 1 != end or facts["sha256"] != digest.hexdigest() or facts["changes"] != len(found):
                break
            return Journal(store, facts["size"], found, facts["repaired_size"])
        change = Change(facts["stage"], facts["offset"], facts["old"], facts["new"], at + len(line) + 1)
        data = store.pread(change.old + change.new, change.at)
        digest.update(line + b"\n" + data)
        found.append(change)
        at = change.at + change.old + change.new
    raise UsageError(f"the undo file {store.name!r} is damaged, or was never completed: nothing is changed")


def _facts(store: Store, line: bytes) -> dict[str, Any]:
    """Return a line of an undo file, with all numbers in their bounds. Raises UsageError."""
    try:
        facts = json.loads(line)
        names = ("size", "repaired_size", "changes") if "sha256" in facts else ("stage", "offset", "old", "new")
        lengths = [facts[name] for name in ("old", "new") if name in names]
        sound = all(type(facts[name]) is int and 0 <= facts[name] < Limit.SIGNED_OFFSET_END for name in names)
        if sound and max(lengths, default=0) <= _CHANGE_BYTES:
            return dict(facts)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UsageError(f"the undo file {store.name!r} is damaged, or was never completed: nothing is changed")


@contextmanager
def journal_for(image: Store, path: str | os.PathLike[str] | None) -> Iterator[Journal]:
    """Open a journal: in a new file at `path`, or in one that goes away.

    A file at `path` is removed again where nothing is noted, or where an error comes before it is complete and
    nothing has been changed: see `Journal.complete`. Raises UsageError where there is a file already, StoreError.
    """
    if path is None:
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
            yield Journal(FileObject(file, writable=True), image.size())
        return
    path = plain_path(path)
    if os.path.lexists(path):
        raise UsageError(f"{os.fsdecode(path)!r} exists: an undo file is never overwritten")
    store = LocalFile(path, writable=True, create=True)
    journal = Journal(store, image.size())
    is_complete = False
    try:
        yield journal
        is_complete = bool(journal.changes)
    except BaseException:
        is_complete = _is_complete(store)
        raise
    finally:
        if not is_complete:
            store.remove()
        store.close()


def _is_complete(store: Store) -> bool:
    try:
        load(store)
    except (UsageError, StoreError):
        return False
    return True


class Patched(Store):
    """An image as it will be after the changes of a journal: to be looked at before anything is done."""

    def __init__(self, base: Store, journal: Journal) -> None:
        self._base = base
        self._journal = journal
        self._ordered = sorted(journal.changes, key=lambda change: change.offset)
        self._offsets = [change.offset for change in self._ordered]
        self._end = max(base.size(), journal.end)
        self.name = base.name
        self.path = base.path

    def size(self) -> int:
        return self._end

    def allocated_size(self) -> int | None:
        known = self._base.allocated_size()
        return None if known is None else known + sum(change.new for change in self._ordered)

    def pread(self, length: int, offset: int) -> bytes:
        length = max(0, min(length, self._end - offset))
        found = bytearray(self._base.pread(length, offset).ljust(length, b"\0"))
        first = bisect_left(self._offsets, offset - _CHANGE_BYTES)
        touching = self._ordered[first : bisect_left(self._offsets, offset + length)]
        for change in sorted(touching, key=lambda change: change.stage):
            start, end = max(offset, change.offset), min(offset + length, change.offset + change.new)
            if start < end:
                at = change.at + change.old + start - change.offset
                found[start - offset : end - offset] = self._journal.store.pread(end - start, at)
        return bytes(found)

    def extents(self, start: int, end: int) -> Iterator[tuple[Span, bool]]:
        inside = min(end, self._base.size())
        held = ((span.offset, span.end) for span, is_data in self._base.extents(start, inside) if is_data)
        changed = ((change.offset, change.offset + change.new) for change in self._ordered)
        at = start
        for first, last in merge(held, changed):
            first, last = max(first, at), min(last, end)  # noqa: PLW2901
            if first < last:
                if at < first:
                    yield Span(at, first - at), False
                yield Span(first, last - first), True
                at = last
        if at < end:
            yield Span(at, end - at), False
