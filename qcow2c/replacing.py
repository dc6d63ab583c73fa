"""A new file in place of another: written beside it, and renamed over it when it is complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qcow2c.errors import StoreError, UsageError
from qcow2c.local_file import LocalFile
from qcow2c.locks import Use

_NAME_BYTES = 200
"""Bytes of a file's name that go into the name of the new one: names have a limit."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacement(old: LocalFile, use: Use) -> Iterator[LocalFile]:
    """Open an empty file that takes the name, mode, owner and extended attributes of another one in the end.

    `old` is open and locked by the caller, by a path without links. Durable order: all of the new file, the rename,
    the directory. A crash, an error or an interrupt before the rename leaves the old file as it is (a crash leaves
    the half-made one, too, under a name that begins with a dot). Raises UsageError where the file has several names,
    StoreError, ImageLocked.
    """
    status = os.stat(old.path)
    if status.st_nlink > 1:
        message = f"{old.name!r} has {status.st_nlink} names (hard links): the others would keep the old file"
        raise UsageError(message)
    directory, name = os.path.split(old.path)
    short = os.fsdecode(os.fsencode(name)[:_NAME_BYTES])
    new = LocalFile(os.path.join(directory, f".{short}.{os.getpid()}.partial"), writable=True, create=True)
    new.name = old.name  # As errors call it.
    try:
        new.lock(use)
        try:
            new.truncate(0)  # Left behind by a process of the same number, which was killed.
            _take_on(old, new, status)
            yield new
            new.flush()
            old.require_name()
            new.rename(old.path, status.st_mode)
            new.flush_name()
        except BaseException as exc:
            new.remove()
            if isinstance(exc, StoreError) and exc.errno in _NO_ROOM:
                exc.message += "; in place there must be room for the new file beside the old one, which is unchanged"
            raise
    finally:
        new.close()


def _take_on(old: LocalFile, new: LocalFile, status: os.stat_result) -> None:
    """Give a file the owner and the extended attributes of another one. Raises StoreError."""
    try:
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.stat(new.path).st_gid):
            os.chown(new.path, status.st_uid, status.st_gid)
    except OSError as exc:
        raise old.failure(exc, "give the new file the owner of") from exc
    with suppress(OSError):  # Not every file system has them, and some only the system may set.
        for name in os.listxattr(old.path):
            with suppress(OSError):
                os.setxattr(new.path, name, os.getxattr(old.path, name))
