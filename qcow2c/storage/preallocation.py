"""Room for bytes before they are written: how a file is extended. Knows no format."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from qcow2c.errors import Qcow2Error
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.sources import Store

if TYPE_CHECKING:
    from typing import Literal, TypeAlias


Preallocation: TypeAlias = 'Literal["off", "metadata", "falloc", "full"]'

_FILL_BYTES = 512 << 10


def _fill(store: Store, start: int, length: int) -> None:
    """Write zeros, so that every byte has its space."""
    block = bytes(min(length, _FILL_BYTES))
    for offset in range(start, start + length, _FILL_BYTES):
        store.pwrite(block[: min(_FILL_BYTES, start + length - offset)], offset)


def extend(
    store: Store, start: int, end: int, preallocation: Preallocation, flush: Callable[[], None] | None = None
) -> None:
    """Let a store end at `end`, with zeros from `start` on, where nothing is visible yet; it is durable then.

    What fails is undone, so that space is not lost. `flush` is the store's, or who remembers whether it failed. Raises
    StoreError.
    """
    former = store.size()
    if former > start:
        store.truncate(start)
    try:
        store.truncate(end)
        if preallocation in ("falloc", "full"):
            store.allocate(start, end - start)
        if preallocation == "full":
            _fill(store, start, end - start)
        (flush or store.flush)()
    except BaseException:
        with suppress(Qcow2Error):
            store.truncate(min(former, start))
        raise
