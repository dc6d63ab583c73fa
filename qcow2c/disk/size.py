"""The size of a disk that is open for writing: whether it may change, and the change as one write of the header.

What an image of another size is, is `atomic/size.py`'s business. Spec: "Header", "Cluster mapping".
"""

from __future__ import annotations

from operator import index

from qcow2c.atomic.size import Resizing
from qcow2c.atomic.successor import Successor
from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE, Limit, Version
from qcow2c.errors import LimitExceeded, Span, StoreError, UnsupportedFeature, UsageError
from qcow2c.image import Image
from qcow2c.storage.preallocation import Preallocation
from qcow2c.storage.store import lacks_room


def resize(image: Image, size: int, *, preallocation: Preallocation = "off", drop_trailing: bool = False) -> None:
    """Let the disk of an image that is open for writing have `size` bytes; what is new reads as zeros.

    A smaller size drops what lies behind it: whether that is meant, the caller has asked. Internal snapshots keep their
    sizes, bitmaps follow. `preallocation` is about the part that is new. What lies in the file behind the image's last
    cluster stays there, unless `drop_trailing`. Errors are in QEMU's words.

    Durable order: everything pending; an external data file that grows; new tables, data and refcounts, where nothing
    refers to them; the header's first sector; then space is given back, and an external data file made short. Where a
    smaller disk leaves many holes, what was placed behind them moves to the front in the same way, and the file is cut
    off. A crash leaves the old size or the new one, the file perhaps longer than it needs to be.
    Raises UsageError, UnsupportedFeature, LimitExceeded, CorruptMetadata, CorruptData, StoreError: the size is as it
    was, unless only giving back space has failed.
    """
    size = index(size)
    _require_possible(image, size, preallocation)
    layer, data = image.layer, image.engine.data
    shrinks = size < image.size()
    trailing: Span | None = None

    def change(successor: Successor) -> None:
        nonlocal trailing
        trailing = None if drop_trailing else successor.trailing_data()
        successor.keep(trailing)
        Resizing(successor, layer, data, size, preallocation, drop_trailing=drop_trailing).run()

    def move(successor: Successor) -> None:
        successor.keep(trailing)
        Resizing(successor, layer, data, size, "off", moves=True).move()

    image.change_as_whole(change, frees=shrinks)
    if shrinks:
        try:
            image.change_as_whole(move)
        except StoreError as exc:
            if image.closed or not lacks_room(exc):  # Else only the file is longer than it could be.
                raise


def grow(image: Image, size: int) -> bool:
    """Let the disk have `size` bytes if it has fewer; return whether that was so. Raises as `resize`."""
    if image.size() >= size:
        return False
    resize(image, size)
    return True


def _require_possible(image: Image, size: int, preallocation: str) -> None:
    """Raise what can be said before anything is done, in QEMU's order."""
    header = image.header
    if preallocation not in ("off", "metadata", "falloc", "full"):
        raise UsageError(f"Unsupported preallocation mode '{preallocation}'")
    if size % SECTOR_SIZE:
        raise UsageError(f"The new size must be a multiple of {SECTOR_SIZE}")
    if len(image.snapshots) and header.version < Version.V3:
        raise UnsupportedFeature("Can't resize a v2 image which has snapshots")
    if len(image.snapshots) and header.external_data:
        raise UnsupportedFeature("Can't resize an image with an external data file which has snapshots")
    if preallocation != "off" and size < image.size():
        raise UsageError("Preallocation can't be used for shrinking an image")
    needed = header.geometry.l1_entries(size) * ENTRY_BYTES
    if needed > Limit.L1_TABLE_BYTES:
        bound = f"{needed} bytes, at most {Limit.L1_TABLE_BYTES}"
        raise LimitExceeded(f"Failed to grow the L1 table: File too large ({bound})", spec="Header")
