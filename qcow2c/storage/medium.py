"""A store that is written in a stated order: what is not durable yet, and whether that has failed."""

from __future__ import annotations

from collections.abc import Sequence

from qcow2c.errors import Qcow2Error, StoreError
from qcow2c.storage.store import Buffer, Store


class Medium:
    """A store under the engine: remembers whether anything is yet to be made durable, and whether that has failed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._unflushed = False
        self._failure: Qcow2Error | None = None

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        """Write buffers one behind the other. Raises StoreError."""
        self.require_sound()
        self._unflushed = True
        if len(parts) == 1:
            self.store.pwrite(parts[0], offset)
        else:
            self.store.pwritev(parts, offset)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make bytes read as zeros. Raises StoreError."""
        self.require_sound()
        self._unflushed = True
        self.store.write_zeroes(offset, length)

    def punch(self, offset: int, length: int) -> None:
        """Give back the space of bytes that nothing refers to. Raises StoreError."""
        self.require_sound()
        self._unflushed = True
        self.store.punch(offset, length)

    def flush(self) -> None:
        """Make everything written so far durable. Raises StoreError, then and ever after."""
        self.require_sound()
        if not self._unflushed:
            return
        try:
            self.store.flush()
        except Qcow2Error as exc:
            self._failure = exc
            raise
        self._unflushed = False

    def require_sound(self) -> None:
        """Raise StoreError after a flush that has failed."""
        if self._failure is not None:
            message = f"an earlier flush of {self.store.name!r} failed, so that nothing more is written: close it"
            raise StoreError(f"{message} ({self._failure.message})") from self._failure
