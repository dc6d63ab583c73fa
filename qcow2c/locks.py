"""Image locks as QEMU takes them, so that programs that use one image at the same time exclude each other.

Each permission has two bytes of the file: 100 + i is locked by who uses it, 200 + i by who does not share it. All are
held as read locks of the open file description, which do not conflict; who comes later tests with a write lock whether
another holds the opposite byte. Closing the descriptor lets go of them. Knows nothing of the format.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
from typing import NamedTuple

from qcow2c.errors import StoreError


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

    @property
    def used(self) -> frozenset[Permission]:
        return self.value[0]

    @property
    def unshared(self) -> frozenset[Permission]:
        return self.value[1]


class ImageLocked(StoreError):
    """Another open file description holds a lock that excludes this one."""


class _Flock(NamedTuple):
    """`struct flock` of the operating system."""

    type: int
    whence: int
    start: int
    length: int
    pid: int


_FLOCK = struct.Struct("hhqqi4x")

_UNSUPPORTED = {errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""The file system, or the system, knows no such locks: QEMU goes on without, and so does this."""


def lock(fd: int, use: Use, name: str) -> None:
    """Lock an open file for a use. Raises ImageLocked; the file is as it was."""
    bytes_held = [_USED_BASE + permission for permission in use.used]
    bytes_held += [_UNSHARED_BASE + permission for permission in use.unshared]
    try:
        for offset in bytes_held:
            _control(fd, fcntl.F_OFD_SETLK, _Flock(fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0))
        for permission in sorted(use.used):
            if _held_by_others(fd, _UNSHARED_BASE + permission):
                raise _conflict(name, f'"{permission.label}"')
        for permission in sorted(use.unshared):
            if _held_by_others(fd, _USED_BASE + permission):
                raise _conflict(name, f'shared "{permission.label}"')
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            raise _conflict(name, "a") from exc
        if exc.errno not in _UNSUPPORTED:
            raise StoreError(f"Could not lock {name!r}: {exc.strerror}") from exc


def _held_by_others(fd: int, offset: int) -> bool:
    found = _control(fd, fcntl.F_OFD_GETLK, _Flock(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    return found.type != fcntl.F_UNLCK


def _control(fd: int, command: int, flock: _Flock) -> _Flock:
    return _Flock(*_FLOCK.unpack(fcntl.fcntl(fd, command, _FLOCK.pack(*flock))))


def _conflict(name: str, which: str) -> ImageLocked:
    hint = "is another process using the image? Reading is possible with -U (share=True)"
    return ImageLocked(f"Failed to get {which} lock of {name!r}: {hint}")
