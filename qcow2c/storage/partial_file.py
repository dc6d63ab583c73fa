"""The partial file beside a target, `.NAME.PID.partial`: what it takes on from an old file, and what killed runs leave.

It never touches the target itself. A partial file is locked as long as its process lives.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

from qcow2c.errors import Qcow2Error
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.locks import Use

_NAME_BYTES = 200
"""Bytes of a file's name that go into the name of the new one: names have a limit."""

_MOUNTS = "/proc/self/mountinfo"
"""A line for each mount; its fifth word is the place, with octal escapes."""


def partial_name(final: str, process: int | None = None) -> str:
    """Return the path of the partial file of a target, as this process makes it, or another one."""
    directory, name = os.path.split(final)
    short = os.fsdecode(os.fsencode(name)[:_NAME_BYTES])
    return os.path.join(directory, f".{short}.{os.getpid() if process is None else process}.partial")


def partial_file(final: str, shown: str, use: Use, old: LocalFile | None) -> LocalFile | None:
    """Open the locked, empty partial file of a target; errors call it `shown`. Those of killed runs are removed.

    It has owner, group, mode, ACL and extended attributes of the old file, where there is one. None where it cannot, or
    where a new file in the place of the old one would not be the same for others. Raises StoreError, ImageLocked.
    """
    if old is not None and not _is_replaceable(final):
        return None
    remove_leftovers(final, use)
    partial = LocalFile(partial_name(final), writable=True, create=True, name=shown)
    is_kept = False
    try:
        partial.lock(use)  # Whoever else has it goes on working on it.
        is_kept = old is None or _takes_on(old.path, partial.path)
        if not is_kept:
            partial.remove()
    finally:
        if not is_kept:
            partial.close()
    return partial if is_kept else None


def remove_leftovers(final: str, use: Use) -> None:
    """Remove the partial files of a target whose processes are gone; what cannot be removed stays."""
    directory = os.path.dirname(final)
    before, after = os.path.basename(partial_name(final, 0)).rsplit("0", 1)
    pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    with suppress(OSError):
        for name in os.listdir(directory):
            found = pattern.fullmatch(name)
            if found and not _is_alive(int(found[1])):
                _remove_unlocked(os.path.join(directory, name), use)


def _is_alive(process: int) -> bool:
    """Return whether another process has this number; our own has made nothing yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove_unlocked(place: str, use: Use) -> None:
    """Remove a file, unless somebody has it locked, as one on another machine would."""
    if os.path.islink(place):
        return
    with suppress(OSError, Qcow2Error):
        file = LocalFile(place, writable=True)
        try:
            file.lock(use)
            file.remove()
        finally:
            file.close()


def _is_replaceable(final: str) -> bool:
    """Return whether another file could take the name: no device, one name, and nothing mounted there."""
    status = os.stat(final)
    if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode) or not os.access(os.path.dirname(final), os.W_OK):
        return False
    try:
        with open(_MOUNTS, "rb") as file:
            places = [line.split()[4] for line in file]
    except OSError:
        return not os.path.ismount(final)
    name = re.sub(rb"[\s\\]", lambda found: b"\\%03o" % found[0][0], os.fsencode(final))
    return name not in places


def _takes_on(old: str, new: str) -> bool:
    """Give a new file the owner, mode and extended attributes (ACL) of another one; return whether it has them all."""
    status = os.stat(old)
    try:
        made = os.stat(new)
        if (status.st_uid, status.st_gid) != (made.st_uid, made.st_gid):
            os.chown(new, status.st_uid, status.st_gid)
        os.chmod(new, stat.S_IMODE(status.st_mode))
        for name in _attributes(new) - _attributes(old):
            os.removexattr(new, name)  # An ACL of the directory's, for new files.
        for name in _attributes(old):
            value = os.getxattr(old, name)
            if name not in _attributes(new) or os.getxattr(new, name) != value:
                os.setxattr(new, name, value)
    except OSError:
        return False
    return True


def _attributes(path: str) -> set[str]:
    """Return the names of extended attributes; none where the file system has no such thing."""
    try:
        return set(os.listxattr(path))
    except OSError:
        return set()
