"""Image locks as QEMU takes them, so that programs that use one image at the same time exclude each other.

Each permission has two bytes of the file: 100 + i is locked by its user, 200 + i by a user who does not share it. All
are held as read locks of the open file description, which do not conflict; a later user tests with a write lock whether
another holds the opposite byte. Of two users at once both may be refused, never both let in. Closing the descriptor
releases the locks. Knows nothing of the format.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
from contextlib import suppress

from qcow2c.errors import ImageLocked, StoreError


class Permission(enum.IntEnum):
    """What a program does with a file, in QEMU's words; the value is the distance from the first lock byte."""

    CONSISTENT_READ = 0
    WRITE = 1
    WRITE_UNCHANGED = 2
    RESIZE = 3

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ")


_USED_BASE = 100
_UNSHARED_BASE = 200

_READ = frozenset({Permission.CONSISTENT_READ})
_WRITE = frozenset({Permission.CONSISTENT_READ, Permission.WRITE, Permission.RESIZE})
_NO_CHANGE = frozenset({Permission.WRITE, Permission.RESIZE})
_NO_RESIZE = frozenset({Permission.RESIZE})


class Use(enum.Enum):
    """What is used and what is not shared, as QEMU has it for each role that a file can have."""

    SHARED = (_READ, frozenset[Permission]())
    """Reading whatever others do: with -U, and raw files at the bottom of a chain."""
    IMAGE = (_READ, _NO_CHANGE)
    WRITABLE_IMAGE = (_WRITE, _NO_CHANGE)
    DATA_FILE = (_READ, _NO_RESIZE)
    WRITABLE_DATA_FILE = (_WRITE, _NO_RESIZE)

    @classmethod
    def of_reader(cls, *, share: bool) -> Use:
        """Return what a program takes that reads an image, or with `share` whatever others do to it."""
        return cls.SHARED if share else cls.IMAGE

    @property
    def used(self) -> frozenset[Permission]:
        return self.value[0]

    @property
    def unshared(self) -> frozenset[Permission]:
        return self.value[1]

    @property
    def writes(self) -> bool:
        return Permission.WRITE in self.used


_FLOCK = struct.Struct("hhqqi4x")
"""`struct flock` of the operating system: type, whence, start, length, process."""

_UNSUPPORTED = {errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""The file system, or the system, knows no such locks: QEMU goes on without, and so does this."""

_HINT = "is another process using the image? Reading is possible all the same with -U (share=True)"


def lock(fd: int, use: Use, name: str, held: set[int]) -> None:
    """Lock an open file for a use, besides the bytes `held` already; they then have those of the use, too.

    Raises ImageLocked, StoreError; then what was held is held, and nothing else.
    """
    wanted = {_USED_BASE + permission for permission in use.used}
    wanted |= {_UNSHARED_BASE + permission for permission in use.unshared}
    taken: set[int] = set()
    try:
        for offset in sorted(wanted - held):
            _take(fd, offset, name)
            taken.add(offset)
        _require_compatible(fd, use, name)
        held |= taken
    except ImageLocked:
        raise
    except (OSError, ValueError) as exc:  # ValueError: the file is closed.
        code = exc.errno if isinstance(exc, OSError) else errno.EBADF
        if code not in _UNSUPPORTED:
            message = f"Could not lock {name!r}: {os.strerror(code or errno.EIO)}"
            raise StoreError(message, errno=code, filename=name) from exc
    finally:
        for offset in taken - held:
            with suppress(OSError):
                _control(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, offset)


def release(fd: int) -> None:
    """Release all locks, also where a child process holds the open file, too."""
    with suppress(OSError, ValueError):
        _control(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, _USED_BASE, 2 * (_UNSHARED_BASE - _USED_BASE))


def _take(fd: int, offset: int, name: str) -> None:
    """Lock one byte for reading. Raises ImageLocked where another has a write lock, which QEMU never has; OSError."""
    try:
        _control(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, offset)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            message = f"Failed to lock byte {offset} of {name!r}: {_HINT}"
            raise ImageLocked(message, errno=exc.errno, filename=name) from exc
        raise


def _require_compatible(fd: int, use: Use, name: str) -> None:
    """Raise ImageLocked where another does not share what is used, or uses what is not shared."""
    for permission in sorted(use.used):
        if _held_by_others(fd, _UNSHARED_BASE + permission):
            raise ImageLocked(f'Failed to get "{permission.label}" lock of {name!r}: {_HINT}', filename=name)
    for permission in sorted(use.unshared):
        if _held_by_others(fd, _USED_BASE + permission):
            raise ImageLocked(f'Failed to get shared "{permission.label}" lock of {name!r}: {_HINT}', filename=name)


def _held_by_others(fd: int, offset: int) -> bool:
    return _control(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, offset) != fcntl.F_UNLCK


def _control(fd: int, command: int, kind: int, offset: int, length: int = 1) -> int:
    """Set or test a lock of bytes, one by itself; return its kind as the system answers. Raises OSError."""
    answer = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, offset, length, 0))
    answered: int = _FLOCK.unpack(answer)[0]
    return answered
