"""Incremental backups without a running guest: what a bitmap has recorded, as an overlay or as a stream of ranges.

Read-only. The image is locked against writers meanwhile, and its bitmap stays as it is: clear it when the backup is
safe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Unpack

from qcow2c.bitmaps.stored import Bitmaps
from qcow2c.builder.options import NewImageOptions
from qcow2c.constants import SECTOR_SIZE
from qcow2c.copy.diff_stream import write_records
from qcow2c.copy.overlay import write_differences
from qcow2c.disk.differences import Difference, require_no_key
from qcow2c.disk.disk import Disk
from qcow2c.disk.map_layers import ZERO
from qcow2c.errors import Span
from qcow2c.storage.store import Progress


def dirty_differences(disk: Disk, name: str, progress: Progress | None = None) -> Iterator[Difference]:
    """Yield the dirty ranges of a bitmap of an open disk, in order, and which of them read as zeros without a look.

    Raises UsageError where there is no such bitmap, or it is inconsistent, MissingKey, CorruptMetadata, StoreError.
    """
    require_no_key(disk)
    bitmap = (Bitmaps() if disk.image is None else disk.image.bitmaps).find(name)
    bitmap.require_consistent()
    return _split(disk, bitmap.ranges(), progress or (lambda _done, _size: None))


def _split(disk: Disk, dirty: Iterator[Span], tell: Progress) -> Iterator[Difference]:
    for span in dirty:
        end = -(-span.end // SECTOR_SIZE) * SECTOR_SIZE
        for columns in disk.map.columns(span.offset, end - span.offset):
            for start, part, flags in zip(columns.starts, columns.lengths, columns.flags, strict=True):
                yield Difference(start, part, bool(flags & ZERO))
        tell(end, disk.size)


def write_overlay(
    disk: Disk,
    name: str,
    target: str | os.PathLike[str] | Any,
    *,
    compress: bool = False,
    compression_level: int | None = None,
    progress: Progress | None = None,
    **create: Unpack[NewImageOptions],
) -> None:
    """Write what is dirty as a qcow2 overlay, whose backing file is the last backup.

    It shows the disk as it is now, if the backing file shows what the disk was when the bitmap was added or cleared.
    `create` are options of the new image, with `backing_file` and `backing_fmt`. The target has its name, or its magic
    value, only when it is complete and durable. Raises UsageError, ImageLocked for a target that is read, StoreError,
    and as `dirty_differences`.
    """
    found = dirty_differences(disk, name, progress)
    write_differences(found, [disk], target, compress=compress, compression_level=compression_level, **create)


def write_stream(
    disk: Disk, name: str, write: Callable[[memoryview], object], *, progress: Progress | None = None
) -> None:
    """Write what is dirty as a stream, which `qcow2c patch` writes over the last backup; see `diff_stream`.

    `write` takes all of some bytes. Raises as it, and as `dirty_differences`.
    """
    write_records(dirty_differences(disk, name, progress), disk.size, disk, write)
