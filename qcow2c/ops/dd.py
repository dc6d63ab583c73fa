"""`dd`: copy a part of a disk, measured in blocks, into a new qcow2 image or raw file.

What reads as zeros is not written: the copy has holes there, or clusters that are not allocated.
"""

from __future__ import annotations

from contextlib import ExitStack
from operator import index

from qcow2c.builder.image_builder import ImageBuilder
from qcow2c.builder.options import CreateOptions
from qcow2c.constants import SECTOR_SIZE
from qcow2c.copy.options import How
from qcow2c.copy.plan import PlannedDisk
from qcow2c.copy.send import send
from qcow2c.copy.targets import NewImageTarget, Pipe, RawTarget, Target
from qcow2c.copy.transfer import DiskCopy
from qcow2c.disk.disk import Disk, open_disk
from qcow2c.errors import UsageError, doing
from qcow2c.light import TYPE_CHECKING, NamedTuple
from qcow2c.storage.gate import Gate
from qcow2c.storage.locks import Use
from qcow2c.storage.new_file import complete_file, is_there, new_file
from qcow2c.storage.sources import Source, Store

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

BLOCK_SIZE = SECTOR_SIZE
"""Bytes of a block, unless the caller says otherwise."""

_SPARSE_SIZE = 4096
"""Bytes of zeros that become a hole."""


class Part(NamedTuple):
    """Bytes of a disk. `beyond`: what was to be skipped is more than there is."""

    first: int
    length: int
    beyond: bool


def part_of(disk_size: int, *, block_size: int = BLOCK_SIZE, count: int | None = None, skip: int = 0) -> Part:
    """Return what blocks mean, as QEMU 7.2 counts: `count` blocks from the start of the disk, less those skipped."""
    block_size = index(block_size)
    end = disk_size if count is None else min(disk_size, index(count) * block_size)
    first = index(skip) * block_size
    return Part(first, end - first, beyond=False) if first <= end else Part(end, 0, beyond=True)


def dd(
    source: Source | Store,
    target: Any,
    *,
    block_size: int = BLOCK_SIZE,
    count: int | None = None,
    skip: int = 0,
    output_format: str = "raw",
    image_format: str | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    share: bool = False,
) -> Part:
    """Copy a part of a disk to a path or a writable binary file object; return which part it was.

    `output_format` is "raw" or "qcow2". The target is made anew; it has its name, or its magic value, only when it is
    complete. Raises UsageError, what `open_disk` raises, StoreError, ImageLocked.
    """
    with open_disk(source, image_format=image_format, key=key, gate=gate, share=share) as disk:
        part = part_of(disk.size, block_size=block_size, count=count, skip=skip)
        copy_part(disk, target, part, output_format)
        return part


def copy_part(disk: Disk, target: Any, part: Part, output_format: str) -> None:
    """Copy a part of an open disk; see `dd`. The target may be a `Pipe`, too."""
    if output_format not in ("raw", "qcow2"):
        raise UsageError("Unknown file format")
    source = PlannedDisk(disk, 0, first=part.first, length=part.length)
    copy = DiskCopy([source])
    if isinstance(target, Pipe):
        send(copy, target, output_format, How(), "deny", {})
        return
    is_raw = output_format == "raw"
    with ExitStack() as stack:
        with doing("error while creating output image"):
            source.require_other(target)
            use = Use.WRITABLE_DATA_FILE if is_raw else Use.WRITABLE_IMAGE
            store = stack.enter_context((complete_file if is_raw or is_there(target) else new_file)(target, use))
        if is_raw:
            store.require_capacity(part.length)
        taker: Target = RawTarget(store, unit=_SPARSE_SIZE)
        if not is_raw:
            taker = NewImageTarget(ImageBuilder(store, CreateOptions(copy.size)))
        copy.run(taker)
