"""A new file in place of another: written beside it, and renamed over it when it is complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from qcow2c.errors import StoreError, UsageError
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Store, opened

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
    place = os.path.join(directory, f".{short}.{os.getpid()}.partial")
    new = LocalFile(place, writable=True, create=True, name=old.name)
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
                hint = "in place there must be room for the new file beside the old one, which is unchanged"
                raise StoreError(
                    f"{exc.message}; {hint}", where=exc.where, errno=exc.errno, filename=exc.filename
                ) from exc
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


@contextmanager
def new_file(
    path: str | os.PathLike[str] | Any, use: Use, *, nocow: bool = False, durable: bool = True
) -> Iterator[Store]:
    """Open a file to be written from its start: locked, then emptied. What fails removes it if it was not there.

    With `durable`, its name is so in the end; without, nothing is. Raises StoreError, ImageLocked.
    """
    if not isinstance(path, str | os.PathLike):
        with opened(path, use) as store:
            store.truncate(0)
            yield store
        return
    path = plain_path(path)
    file = LocalFile(os.path.realpath(path), writable=True, create=True, name=os.fsdecode(path))
    try:
        file.lock(use)
        if file.size():  # ext4 writes a file out when it is closed, if it was ever emptied.
            file.truncate(0)
        if nocow:
            file.set_no_copy_on_write()
        if not durable:
            file.expect_no_flush()
        yield file
        file.require_name()
        if durable:
            file.flush_name()
    except BaseException:
        if file.created:
            file.remove()
        raise
    finally:
        file.close()


@contextmanager
def complete_file(
    path: str | os.PathLike[str] | Any, use: Use, *, nocow: bool = False, durable: bool = True
) -> Iterator[Store]:
    """Open a new file that takes its name only when it is complete: what has no magic value always looks complete.

    A file that is there is locked and removed at once, so that there is room; its mode stays. Where no other file can
    be made beside it, it is written itself. Raises StoreError, ImageLocked.
    """
    path = plain_path(path)
    final = os.path.realpath(path) if isinstance(path, str | os.PathLike) else ""
    directory, name = os.path.split(os.fsdecode(final))
    if not final or (os.path.exists(final) and not os.access(directory, os.W_OK)):
        with new_file(path, use, nocow=nocow, durable=durable) as store:
            yield store
        return
    with ExitStack() as stack:
        mode = None
        if os.path.exists(final):
            old = LocalFile(final, writable=True)
            stack.callback(old.close)
            old.lock(use)
            mode = os.stat(final).st_mode
            old.remove()
        short = os.fsdecode(os.fsencode(name)[:_NAME_BYTES])
        place = os.path.join(directory, f".{short}.{os.getpid()}.partial")
        partial = LocalFile(place, writable=True, create=True, name=os.fsdecode(path))
        stack.callback(partial.close)
        partial.lock(use)  # Another process that has it goes on working on it.
        try:
            if partial.size():  # Left behind by a process of the same number, which was killed.
                partial.truncate(0)
            if nocow:
                partial.set_no_copy_on_write()
            if not durable:
                partial.expect_no_flush()
            yield partial
            partial.rename(os.fsdecode(final), mode)
            if durable:
                partial.flush_name()
        except BaseException:
            partial.remove()
            raise
