"""What a name means that the caller gives: a regular file, or a block device. Names in images go through the gate."""

from __future__ import annotations

import os
import stat

from qcow2c.storage.local_file import LocalFile


def file_at(
    path: str | os.PathLike[str], *, writable: bool = False, create: bool = False, name: str | None = None
) -> LocalFile:
    """Open a regular file or a block device that the caller names; see `LocalFile`. Raises StoreError."""
    try:
        is_device = stat.S_ISBLK(os.stat(path).st_mode)
    except (OSError, ValueError):
        is_device = False
    if not is_device:
        return LocalFile(path, writable=writable, create=create, name=name)
    from qcow2c.storage.block_device import BlockDevice  # Late: few need it.

    return BlockDevice(path, writable=writable, name=name)
