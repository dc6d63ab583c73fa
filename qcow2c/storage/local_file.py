"""`LocalFile`: a regular file by its name: opened, made, renamed, removed, and whether the name still means it."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from qcow2c.errors import StoreError
from qcow2c.storage.locks import Use
from qcow2c.storage.open_file import OpenFile, uninterrupted
from qcow2c.storage.processes import require_opener

_OPEN_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class LocalFile(OpenFile):
    """A regular file, opened by its name. A directory, FIFO, socket or device is refused before it is opened."""

    path: str

    def __init__(
        self, path: str | os.PathLike[str], *, writable: bool = False, create: bool = False, name: str | None = None
    ) -> None:
        """`create` makes the file, or leaves what it holds as it is. Errors call it `name`. Raises StoreError."""
        self.path = os.fsdecode(path)
        super().__init__(-1, self.path if name is None else name, writable=writable)
        self.created = False
        """Whether this has made the file."""
        try:
            self._open(create=create)
        except (OSError, ValueError) as exc:
            self.close()
            raise self.failure(exc, "create" if create else "open") from exc

    def _open(self, *, create: bool) -> None:
        """Open the file, if it is a regular one. Raises OSError, ValueError."""
        access = os.O_RDWR if self.writable else os.O_RDONLY
        try:
            # Looked at before it is opened: opening a FIFO or a device can block or act.
            _require_regular(os.stat(self.path))
        except FileNotFoundError:
            if not create:
                raise
            self._fd = os.open(self.path, access | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS, 0o644)
            self.created = True
        else:
            self._fd = os.open(self.path, access | _OPEN_FLAGS)
        _require_regular(os.fstat(self._fd))

    def lock(self, use: Use) -> None:
        super().lock(use)
        if use.unshared:  # Who had the lock before may have put another file in this one's place, or removed it.
            self.require_name()

    def flush_name(self) -> None:
        """Make the directory entry of the file durable. Raises StoreError."""
        try:
            directory = os.open(os.path.dirname(self.path) or os.curdir, os.O_RDONLY | os.O_CLOEXEC)
            try:
                uninterrupted(os.fsync, directory)
            finally:
                os.close(directory)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP):  # Not every file system has this.
                raise self.failure(exc, "flush the directory of") from exc

    def remove(self) -> None:
        """Remove the file, if its name still means it; what a parent made, its child leaves there."""
        with suppress(OSError, StoreError):
            require_opener(self._process, self.name)
            if os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._fd)):
                os.unlink(self.path)

    def require_name(self) -> None:
        """Raise StoreError if the name no longer means the file: it was removed or replaced."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._fd)):
                return
            problem: Exception = OSError("another file has taken its name")
        except OSError as exc:
            problem = exc
        raise self.failure(problem, "find again") from problem

    def rename(self, name: str, mode: int | None = None) -> None:
        """Give the file another name, in place of whatever has it, and a mode. Raises StoreError."""
        require_opener(self._process, self.name)
        self.require_name()
        try:
            if mode is not None:
                os.fchmod(self._fd, stat.S_IMODE(mode))
            os.rename(self.path, name)
        except OSError as exc:
            raise self.failure(exc, "rename") from exc
        self.path = name


def _require_regular(status: os.stat_result) -> None:
    """Raise OSError for what is no regular file."""
    if not stat.S_ISREG(status.st_mode):
        kinds = {
            stat.S_IFDIR: "a directory",
            stat.S_IFIFO: "a FIFO",
            stat.S_IFSOCK: "a socket",
            stat.S_IFBLK: "a block device",
            stat.S_IFCHR: "a character device",
        }
        kind = kinds.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise OSError(f"it is {kind}, not a regular file")
