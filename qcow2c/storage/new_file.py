"""A new file in place of another: written beside it, and renamed over it when it is complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from qcow2c.errors import StoreError, UsageError
from qcow2c.light import TYPE_CHECKING, NamedTuple
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.locks import Use
from qcow2c.storage.named_file import file_at
from qcow2c.storage.partial_file import partial_file, partial_name
from qcow2c.storage.sources import Store, opened
from qcow2c.storage.store import lacks_room

if TYPE_CHECKING:
    from typing import Any


_COPY_BYTES = 1 << 20


class FileHints(NamedTuple):
    """What the file system is asked to do with a new file; where it cannot, nothing happens."""

    nocow: bool = False
    extent_size: int | None = None

    def give(self, file: LocalFile) -> None:
        """Give them to a file that is empty still."""
        if self.nocow:
            file.set_no_copy_on_write()
        if self.extent_size:
            file.set_extent_size_hint(self.extent_size)


NO_HINTS = FileHints()


def _resolved(path: str | os.PathLike[str]) -> str:
    """Return a path without links; of what is no file, such as a pipe by its descriptor, the path as it is."""
    real = os.path.realpath(path)
    return os.fsdecode(real if os.path.exists(real) or not os.path.exists(path) else path)


@contextmanager
def replacement(old: LocalFile, use: Use) -> Iterator[LocalFile]:
    """Open an empty file that takes the name, mode, owner and extended attributes of another one in the end.

    `old` is open and locked by the caller, by a path without links; where something is mounted at it, its content is
    replaced (see `_takes_name`). Durable order: all of the new file, the rename, the directory. A crash, an error or an
    interrupt before the rename leaves the old file as it is (a crash leaves the half-made one, too, under a name that
    begins with a dot). Raises UsageError where the file has several names, StoreError, ImageLocked.
    """
    status = os.stat(old.path)
    if status.st_nlink > 1:
        message = f"{old.name!r} has {status.st_nlink} names (hard links): the others would keep the old file"
        raise UsageError(message)
    place = partial_name(old.path)
    new = LocalFile(place, writable=True, create=True, name=old.name)
    try:
        new.lock(use)
        try:
            new.truncate(0)  # Left behind by a process of the same number, which was killed.
            _take_on(old, new, status)
            yield new
            new.flush()
            old.require_name()
            if _takes_name(new, old.path, old, status.st_mode):
                new.flush_name()
        except BaseException as exc:
            if not isinstance(exc, _HalfWritten):
                new.remove()
            if isinstance(exc, StoreError) and lacks_room(exc):
                raise _no_room_beside(exc) from exc
            raise
    finally:
        new.close()


def _no_room_beside(error: StoreError) -> StoreError:
    hint = "there must be room for the new file beside the old one, which is unchanged"
    return StoreError(f"{error.message}; {hint}", where=error.where, errno=error.errno, filename=error.filename)


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
    path: str | os.PathLike[str] | Any, use: Use, *, hints: FileHints = NO_HINTS, durable: bool = True
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
    file = file_at(_resolved(path), writable=True, create=True, name=os.fsdecode(path))
    try:
        file.lock(use)
        if file.size():  # ext4 writes a file out when it is closed, if it was ever emptied.
            file.truncate(0)
        hints.give(file)
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
    path: str | os.PathLike[str] | Any, use: Use, *, hints: FileHints = NO_HINTS, durable: bool = True
) -> Iterator[Store]:
    """Open a new file that takes its name only when it is complete: what has no magic value always looks complete.

    A file that is there is locked, and stays until then; the new one takes on its owner, group, mode, ACL and extended
    attributes. Where it cannot (hard links, a mount point, a directory or an owner that is another's), the file itself
    is emptied and written: a crash then leaves the beginning of the new content. Durable order: the file, its name.
    Raises StoreError, ImageLocked.
    """
    path = plain_path(path)
    if not isinstance(path, str | os.PathLike):
        with new_file(path, use, hints=hints, durable=durable) as store:
            yield store
        return
    final, shown = _resolved(path), os.fsdecode(path)
    with ExitStack() as stack:
        old = None
        if os.path.exists(final):
            old = stack.enter_context(closing(file_at(final, writable=True, name=shown)))
            old.lock(use)
        partial = partial_file(final, shown, use, old)
        if partial is not None:
            stack.enter_context(_named_in_the_end(partial, final, old, durable=durable))
        file = partial or old
        assert file is not None, "only a file that is there can have no partial one"
        if partial is None and file.size():
            file.truncate(0)
        hints.give(file)
        if not durable:
            file.expect_no_flush()
        yield file
        file.require_name()


class _HalfWritten(StoreError):
    """The old file holds but the beginning of the new content, all of which is in the partial file."""


def is_there(target: object) -> bool:
    """Return whether a target is the path of something that is there."""
    return isinstance(target, str | os.PathLike) and os.path.exists(plain_path(target))


def _takes_name(new: LocalFile, final: str, old: LocalFile | None, mode: int | None = None) -> bool:
    """Give a complete file its name; return False where only its content could take the place of the old one's.

    So it is with a name at which something is mounted, as containers have them. Durable order: the new file, the old
    one; then the new one goes. A crash leaves the old file, or the beginning of the new content in it, with the whole
    of that in the partial file beside it. Raises StoreError.
    """
    try:
        new.rename(final, mode)
    except StoreError as exc:
        if old is None or exc.errno != errno.EBUSY:
            raise
        new.flush()
        try:
            _write_over(old, new)
        except StoreError as failed:
            hint = f"the whole of it is in {new.path!r}: move it away before the next attempt"
            raise _HalfWritten(f"{failed.message}; {hint}", errno=failed.errno, filename=failed.filename) from failed
        new.remove()
        return False
    return True


def _write_over(old: LocalFile, new: LocalFile) -> None:
    """Let a file hold what another one does, holes included; it is durable then. Raises StoreError."""
    size = new.size()
    old.truncate(0)
    for span, is_data in new.extents(0, size) if size else ():
        for at in range(span.offset, span.end, _COPY_BYTES) if is_data else ():
            old.pwrite(new.pread(min(_COPY_BYTES, span.end - at), at), at)
    if old.size() < size:
        old.truncate(size)
    old.flush()


@contextmanager
def _named_in_the_end(partial: LocalFile, final: str, old: LocalFile | None, *, durable: bool) -> Iterator[None]:
    """Give a partial file its name once it is complete; what fails removes it. Raises StoreError."""
    try:
        yield
        if old is not None:
            old.require_name()
        if _takes_name(partial, final, old) and durable:
            partial.flush_name()
    except BaseException as exc:
        if not isinstance(exc, _HalfWritten) and (
            old is None or partial.path != final
        ):  # Once it has replaced the old file, it is all there is.
            partial.remove()
        if old is not None and isinstance(exc, StoreError) and lacks_room(exc):
            raise _no_room_beside(exc) from exc
        raise
    finally:
        partial.close()
