"""`diff`: what differs between two states, which may be images, layers of a chain, or internal snapshots.

As ranges (`differences`, from `disk/differences.py`), as a stream (`copy/diff_stream.py`), or as an overlay
(`copy/overlay.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qcow2c.copy.diff_stream import write_records
from qcow2c.copy.overlay import write_overlay
from qcow2c.disk.differences import Difference, differences
from qcow2c.disk.disk import Disk, SnapshotKey, open_disk
from qcow2c.errors import UsageError
from qcow2c.storage.gate import Gate
from qcow2c.storage.sources import Source, Store
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

__all__ = ["Difference", "diff", "differences", "open_states", "require_two", "write_overlay", "write_stream"]


def diff(
    first: Source | Store,
    second: Source | Store | None = None,
    *,
    from_snapshot: str | SnapshotKey | None = None,
    to_snapshot: str | SnapshotKey | None = None,
    from_format: str | None = None,
    to_format: str | None = None,
    exact: bool = True,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
) -> Iterator[Difference]:
    """Yield where the second state differs from the first one, with both open meanwhile; see `differences`.

    A state is an image, or an internal snapshot of it, by ID or name. Without a second image both are states of the
    first one. Raises UsageError where there is but one state, and as `open_disk` and `differences`.
    """
    with open_states(
        first,
        second,
        from_snapshot=from_snapshot,
        to_snapshot=to_snapshot,
        from_format=from_format,
        to_format=to_format,
        key=key,
        gate=gate,
        share=share,
    ) as (before, after):
        yield from differences(before, after, exact=exact, progress=progress)


@contextmanager
def open_states(
    first: Source | Store,
    second: Source | Store | None = None,
    *,
    from_snapshot: str | SnapshotKey | None = None,
    to_snapshot: str | SnapshotKey | None = None,
    from_format: str | None = None,
    to_format: str | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    share: bool = False,
) -> Iterator[tuple[Disk, Disk]]:
    """Open two states; see `diff`. A snapshot is read on a disk of the size that the image has now."""
    require_two(from_snapshot, to_snapshot, has_second=second is not None)
    later, later_format = (first, from_format) if second is None else (second, to_format)
    with (
        open_disk(first, image_format=from_format, key=key, gate=gate, share=share, snapshot=from_snapshot) as before,
        open_disk(later, image_format=later_format, key=key, gate=gate, share=share, snapshot=to_snapshot) as after,
    ):
        yield before, after


def require_two(
    from_snapshot: str | SnapshotKey | None, to_snapshot: str | SnapshotKey | None, *, has_second: bool
) -> None:
    """Raise UsageError where one state is given twice."""
    if not has_second and from_snapshot == to_snapshot:
        raise UsageError("one state does not differ from itself: name another image, or a snapshot")


def write_stream(
    before: Disk,
    after: Disk,
    write: Callable[[memoryview], object],
    *,
    exact: bool = True,
    progress: Progress | None = None,
) -> None:
    """Write the differences with their data as a stream; `write` takes all of some bytes, and never seeks.

    A stream that is cut off anywhere is known to be so. Raises as `differences` and `write`.
    """
    found = differences(before, after, exact=exact, progress=progress)
    write_records(found, before.size, after, write)
