"""`export`: an internal snapshot as an image of its own, or as an overlay with what differs from another state."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Unpack

from qcow2c.builder.options import NewImageOptions, require_known
from qcow2c.copy.options import How
from qcow2c.copy.overlay import write_overlay
from qcow2c.copy.plan import PlannedDisk
from qcow2c.copy.send import send
from qcow2c.copy.targets import Pipe
from qcow2c.copy.transfer import DiskCopy
from qcow2c.disk.disk import Disk, SnapshotKey, open_disk
from qcow2c.errors import UsageError
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.gate import Gate, full_name
from qcow2c.storage.sources import Source, Store
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key


def export(
    source: Source | Store,
    snapshot: str | SnapshotKey,
    target: str | os.PathLike[str],
    *,
    output_format: str = "qcow2",
    relative_to: str | SnapshotKey | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
    compressed: bool = False,
    compression_level: int | None = None,
    **create: Unpack[NewImageOptions],
) -> None:
    """Open an image, and write a snapshot of it as a file of its own; see `export_disk`, and `open_disk` for keys.

    Raises as both.
    """
    with ExitStack() as stack:
        opened = [
            stack.enter_context(open_disk(source, key=key, gate=gate, share=share, snapshot=one))
            for one in (snapshot, relative_to)
            if one is not None
        ]
        relative = opened[1] if relative_to is not None else None
        export_disk(
            opened[0],
            target,
            output_format,
            relative,
            key=key,
            gate=gate,
            progress=progress,
            compressed=compressed,
            compression_level=compression_level,
            **create,
        )


def export_disk(
    disk: Disk,
    target: str | os.PathLike[str] | Pipe,
    output_format: str = "qcow2",
    relative: Disk | None = None,
    *,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    progress: Progress | None = None,
    compressed: bool = False,
    compression_level: int | None = None,
    **create: Unpack[NewImageOptions],
) -> None:
    """Write a disk into a new file; nothing is shared with the image that it comes from.

    `create` are options of a new image. With `backing_file` (as seen from the target) it is an overlay: it holds what
    differs from the backing file; or from `relative`, another state of the image, which the caller knows to be what
    the backing file shows: then the backing file is not read, and what both states share is not, either. The target
    has its name, or its magic value, only when it is complete. Without `backing_file` it may be a `Pipe`, too.

    Raises UsageError, ImageLocked for a target that is read, StoreError, and as reading a disk.
    """
    require_known(create)
    if output_format not in ("qcow2", "raw"):
        raise UsageError(f"Unknown file format {output_format!r}")
    base = create.get("backing_file")
    if relative is not None and base is None:
        raise UsageError("a state to compare with needs a backing file that holds it (-B)")
    if base is None:
        if output_format == "raw" and compressed:
            raise UsageError("Compression not supported for this file format")
        planned = PlannedDisk(disk, 0)
        for file in (target, create.get("data_file")):
            planned.require_other(file)
        how = How(compressed=compressed, compression_level=compression_level)
        send(DiskCopy([planned], progress=progress), target, output_format, how, gate, create, key=key)
        return
    if output_format == "raw":
        raise UsageError("Backing file not supported for file format 'raw'")
    if isinstance(target, Pipe):
        raise UsageError("an overlay cannot be written into a pipe")
    path = plain_path(target)
    place = full_name(os.fsdecode(path), base)
    _require_other(place, path)
    how_overlay: dict[str, Any] = {"compress": compressed, "compression_level": compression_level, "progress": progress}
    if relative is not None:
        write_overlay(relative, disk, path, **how_overlay, **create)
        return
    with open_disk(place, image_format=create.get("backing_fmt"), key=key, gate=gate) as before:
        write_overlay(before, disk, path, **how_overlay, **create)


def _require_other(base: str, target: str | os.PathLike[str]) -> None:
    """Raise UsageError where a backing file is the overlay itself, or is not there."""
    if not os.path.exists(base):
        raise UsageError(f"Could not open {base!r}: No such file or directory")
    if os.path.exists(target) and os.path.samefile(base, target):
        raise UsageError(f"{base!r} cannot be an overlay and its backing file")
