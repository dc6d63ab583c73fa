"""A store that is written in a stated order: whether anything is yet to be made durable, and whether it can be.

Once a flush has failed, or a change was interrupted, nothing more is written: it is unknown what of it is there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy

from qcow2c.errors import Qcow2Error, StoreError
from qcow2c.storage.processes import require_opener
from qcow2c.storage.store import Buffer, Store

_HOLE_UNIT = 4096
"""Bytes of zeros that may become a hole."""


class Medium:
    """A store under the engine: the one place that knows whether it may still be written to."""

    def __init__(self, store: Store, unit: int = 1) -> None:
        """A flush ends what was written with a whole `unit` of bytes, as programs expect that do not know torn ones."""
        self.store = store
        self._unit = unit
        self._unflushed = False
        self._reached = 0
        """Where the last byte that was written ends."""
        self._failure: StoreError | None = None
        self._process = os.getpid()

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        """Write buffers consecutively. Raises StoreError."""
        self.require_sound()
        self._unflushed = True
        self._reached = max(self._reached, offset + sum(map(len, parts)))
        if len(parts) == 1:
            self.store.pwrite(parts[0], offset)
        else:
            self.store.pwritev(parts, offset)

    def write_with_holes(self, parts: Sequence[Buffer], offset: int) -> None:
        """Write buffers consecutively where nothing is in use; zeros at their end take no room. Raises StoreError."""
        data = b"".join(parts)
        end = offset + len(data)
        written = -(-len(data.rstrip(b"\0")) // _HOLE_UNIT) * _HOLE_UNIT
        if len(data) - written < _HOLE_UNIT:
            self.write([data], offset)
            return
        if written:
            self.write([memoryview(data)[:written]], offset)
        size = self.store.size()
        if offset + written < size:
            self.write_zeroes(offset + written, min(size, end) - offset - written)
        if size < end:
            self.require_sound()
            self._unflushed = True
            self.store.truncate(end)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make bytes read as zeros. Raises StoreError."""
        self.require_sound()
        self._unflushed = True
        self._reached = max(self._reached, offset + length)
        self.store.write_zeroes(offset, length)

    def end_with_whole_unit(self) -> None:
        """Let the store end with a whole unit: what is new are zeros in a hole. Raises StoreError."""
        size = self.store.size()
        if size % self._unit:
            self.require_sound()
            self._unflushed = True
            self.store.truncate(-(-size // self._unit) * self._unit)

    def punch(self, offset: int, length: int) -> None:
        """Give back the space of bytes that nothing refers to. Raises StoreError."""
        self.require_sound()
        self._unflushed = True
        self.store.punch(offset, length)

    def cut(self, size: int) -> None:
        """Let the store end earlier: nothing refers to what is behind. Raises StoreError."""
        self.require_sound()
        self._unflushed = True
        self._reached = min(self._reached, size)
        self.store.truncate(size)

    def flush_directly(self) -> None:
        """Make durable what was written to the store without this. Raises as `flush`."""
        self._unflushed = True
        self.flush()

    def flush(self) -> None:
        """Make everything written so far durable. Raises StoreError, then and ever after."""
        self.require_sound()
        if not self._unflushed:
            return
        if self._reached % self._unit:
            self._end_what_was_written()
        try:
            self.store.flush()
        except BaseException as exc:
            self.give_up(exc, f"an earlier flush of {self.store.name!r} failed")
            raise
        self._unflushed = False

    def _end_what_was_written(self) -> None:
        """Let the store end with a whole unit if it ends in what was written: a header alone makes no image longer."""
        size = self.store.size()
        if self._reached > size - size % self._unit:
            self.end_with_whole_unit()
        self._reached = -(-self._reached // self._unit) * self._unit

    def give_up(self, cause: BaseException, reason: str) -> None:
        """Write nothing more from now on; the first reason is kept."""
        if self._failure is None:
            detail = cause.message if isinstance(cause, Qcow2Error) else type(cause).__name__
            message = f"{reason}, so that nothing more is written: close it ({detail})"
            # Not the cause itself: its traceback leads to everything that is in use now, this included.
            self._failure = StoreError(message, errno=getattr(cause, "errno", None))

    @property
    def sound(self) -> bool:
        """Whether more may be written."""
        return self._failure is None and not self.inherited

    @property
    def inherited(self) -> bool:
        """Whether a parent process has made this: then nothing is written here."""
        return self._process != os.getpid()

    def require_sound(self) -> None:
        """Raise StoreError after a flush that has failed, or a change that was interrupted, and in a child process."""
        require_opener(self._process, self.store.name)
        if self._failure is not None:
            raise copy(self._failure)
