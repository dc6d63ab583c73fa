"""A folder as a file system: what the kernel asks of FUSE, answered from a `Folder`.

`Answers` knows what FUSE asks; `run` lets libfuse ask it, by the library `mfusepy`, which is imported only there. With
libfuse 3, which is preferred, files have SEEK_DATA and SEEK_HOLE. A request that fails is answered with an error
number, and told to `complain`; none ends the file system.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from qcow2c.errors import MissingKey, Qcow2Error, StoreError, UsageError
from qcow2c.serve.folder import Entry, Folder, OpenDisk, OpenEntry

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
"""Modes of fallocate."""

SEEK_DATA, SEEK_HOLE = 3, 4

PROCESS = "user.qcow2c.process"
"""Extended attribute of the directory: the number of the process that answers."""

LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3", "libfuse.so.2")

ENDED_BY_SIGNAL = 8
"""Status of libfuse 3."""

THREADS = 10
"""That many threads are kept: the default of libfuse 3, which some versions of it call an error."""

_Given = ParamSpec("_Given")
_Reply = TypeVar("_Reply")


def _answered(
    method: Callable[Concatenate[Answers, _Given], _Reply],
) -> Callable[Concatenate[Answers, _Given], _Reply]:
    """Let a method raise OSError, as FUSE wants it, for what else it raises."""

    def answer(self: Answers, /, *given: _Given.args, **named: _Given.kwargs) -> _Reply:
        try:
            return method(self, *given, **named)
        except Qcow2Error as exc:
            self.complain(str(exc))
            raise OSError(_errno_of(exc), str(exc)) from exc
        except MemoryError as exc:
            raise OSError(errno.ENOMEM, "there is not enough memory") from exc

    answer.__name__ = method.__name__
    return answer


def _errno_of(exc: Qcow2Error) -> int:
    if isinstance(exc, MissingKey):
        return errno.EACCES
    if isinstance(exc, StoreError) and exc.errno:
        return exc.errno
    return errno.EINVAL if isinstance(exc, UsageError) else errno.EIO


class Answers:
    """What libfuse asks, by the names that it has for it. Raises OSError. Several threads ask."""

    use_ns = True

    def __init__(
        self,
        folder: Folder,
        *,
        changed_at: int | None = None,
        directory: int | None = None,
        ready: Callable[[], None] = lambda: None,
        complain: Callable[[str], object] = lambda _message: None,
    ) -> None:
        """`changed_at`, when the image was changed, is in nanoseconds since 1970; `ready` is called once mounted.

        `directory` is a descriptor of the working directory, which libfuse leaves: images may have relative names.
        """
        self._folder = folder
        self._ready = ready
        self.complain = complain
        self._time = time.time_ns() if changed_at is None else changed_at
        self._directory = directory
        self._open: dict[int, OpenEntry] = {}
        self._numbers = itertools.count(1)
        self.mounted = False

    def init(self, _path: str) -> None:
        if self._directory is not None:  # Not by its name, which may be that of what is being mounted.
            os.fchdir(self._directory)
        self.mounted = True
        self._ready()

    def getattr(self, path: str, _handle: Any = None) -> dict[str, int]:
        found = self._found(path)
        facts = self._facts()
        if found is None:
            return {**facts, "st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2, "st_size": 0}
        return {**facts, **self._file_facts(found)}

    def _facts(self) -> dict[str, int]:
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._time)
        return {**times, "st_uid": os.getuid(), "st_gid": os.getgid()}

    @_answered
    def _file_facts(self, entry: Entry) -> dict[str, int]:
        mode = stat.S_IFREG | (0o644 if entry.writable else 0o444)
        blocks = -(-entry.used_size // 512)
        return {"st_mode": mode, "st_nlink": 1, "st_size": entry.size, "st_blocks": blocks, "st_blksize": 1 << 16}

    def _found(self, path: str) -> Entry | None:
        """Return a file, None for a directory."""
        path = path.removeprefix("/")
        if path in self._folder.directories:
            return None
        entry = self._folder.entries.get(path)
        if entry is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return entry

    def readdir(self, path: str, _handle: Any) -> Iterator[str]:
        return iter([".", "..", *self._folder.directories[path.removeprefix("/")]])

    def getxattr(self, path: str, name: str, *_position: int) -> bytes:
        if path != "/" or name != PROCESS:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return str(os.getpid()).encode()

    @_answered
    def open(self, path: str, info: Any) -> int:
        entry = self._found(path)
        if entry is None:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if info.flags & (os.O_WRONLY | os.O_RDWR) and not entry.writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        info.fh = next(self._numbers)
        self._open[info.fh] = entry.open()
        info.direct_io, info.keep_cache = int(entry.changing), int(not entry.changing)
        return 0

    def _disk(self, number: int) -> OpenDisk:
        found = self._open[number]
        if not isinstance(found, OpenDisk):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return found

    @_answered
    def read(self, buffer: memoryview, offset: int, number: int) -> int:
        return self._open[number].read_into(buffer, offset)

    @_answered
    def write(self, data: memoryview, offset: int, number: int) -> int:
        count = self._disk(number).write(data, offset)
        if data and not count:
            raise OSError(errno.ENOSPC, f"offset {offset} is behind the disk")
        self._time = time.time_ns()
        return count

    @_answered
    def flush(self, _path: str, info: Any) -> int:
        """A descriptor is closed, which may fail: what was written is durable then."""
        found = self._open[info.fh]
        if isinstance(found, OpenDisk):
            found.flush(always=False)
        return 0

    @_answered
    def fsync(self, _path: str, _only_data: int, info: Any) -> int:
        found = self._open[info.fh]
        if isinstance(found, OpenDisk):
            found.flush()
        return 0

    @_answered
    def release(self, _path: str, info: Any) -> int:
        """Nobody uses an open file any more; what a mapping of it wrote last came after `flush`."""
        found = self._open.pop(info.fh)
        if isinstance(found, OpenDisk):
            found.flush(always=False)
        found.close()
        return 0

    def truncate(self, path: str, length: int, _info: Any = None) -> int:
        """A disk keeps its size; O_TRUNC, which `open` ignores as block devices do, is none of this."""
        entry = self._found(path)
        if entry is None or length != entry.size:
            raise OSError(errno.EINVAL, "a disk keeps its size")
        return 0

    @_answered
    def fallocate(self, _path: str, mode: int, offset: int, length: int, info: Any) -> int:
        """Punch a hole, or make zeros, which stay allocated."""
        disk = self._disk(info.fh)
        if mode not in (PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if not mode & KEEP_SIZE and offset + length > disk.export.size:
            raise OSError(errno.ENOSPC, "a disk keeps its size")
        disk.write_zeroes(offset, length, unmap=bool(mode & PUNCH_HOLE))
        self._time = time.time_ns()
        return 0

    @_answered
    def lseek(self, offset: int, whence: int, number: int) -> int:
        if whence not in (SEEK_DATA, SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        found = self._open[number].seek(offset, data=whence == SEEK_DATA)
        if found is None:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return found


def library() -> Any:
    """Return the module mfusepy, with the newest libfuse. Raises UsageError where one of them is not installed.

    FUSE_LIBRARY_PATH and FUSE_LIBRARY_NAME of the environment, which mfusepy reads, say otherwise.
    """
    try:
        if not os.environ.get("FUSE_LIBRARY_PATH") and not os.environ.get("FUSE_LIBRARY_NAME"):
            os.environ["FUSE_LIBRARY_PATH"] = _installed()
        import mfusepy
    except ImportError as exc:
        raise UsageError(f"mounting needs the library mfusepy: pip install 'qcow2c[fuse]' ({exc})") from exc
    except (OSError, AttributeError) as exc:
        raise UsageError(f"mounting needs libfuse (Debian: fuse3, or libfuse2): {exc}") from exc
    return mfusepy


def _installed() -> str:
    """Return the name of a libfuse. Raises OSError where there is none."""
    import ctypes

    for name in LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    raise OSError(f"there is none of {', '.join(LIBRARIES)}")


def run(answers: Answers, directory: str, *, name: str, writable: bool, allow_other: bool = False) -> None:
    """Mount and answer until it is unmounted, or a signal comes. Raises StoreError where it cannot be mounted.

    `name` is what the system shows as its source.
    """
    mfusepy = library()
    options: dict[str, Any] = {"ro": not writable, "allow_other": allow_other, "default_permissions": True}
    if mfusepy.fuse_version_major == 2:
        options |= {"big_writes": True, "atomic_o_trunc": True}
    else:
        options["max_idle_threads"] = THREADS
    shown = name.replace("\\", "\\\\").replace(",", "\\,")
    try:
        _door(mfusepy)(
            answers, os.path.abspath(directory), raw_fi=True, foreground=True, fsname=shown, subtype="qcow2c", **options
        )
    except RuntimeError as exc:
        if not answers.mounted:
            raise StoreError(f"cannot be mounted at {directory!r} (libfuse: status {exc})") from exc
        if exc.args != (ENDED_BY_SIGNAL,):
            answers.complain(f"libfuse ended with status {exc}")


def _door(mfusepy: Any) -> Any:
    """Return the class that passes on what libfuse asks: reads and writes without copies, and lseek."""
    import ctypes

    def memory(place: Any, size: int) -> memoryview:
        return memoryview((ctypes.c_ubyte * size).from_address(ctypes.addressof(place.contents))).cast("B")

    class Door(mfusepy.FUSE):  # type: ignore[misc]
        def read(self, _path: bytes, place: Any, size: int, offset: int, info: Any) -> int:
            return int(self.operations.read(memory(place, size), offset, info.contents.fh))

        def write(self, _path: bytes, place: Any, size: int, offset: int, info: Any) -> int:
            return int(self.operations.write(memory(place, size), offset, info.contents.fh))

        def lseek(self, _path: bytes, offset: int, whence: int, info: Any) -> int:
            return int(self.operations.lseek(offset, whence, info.contents.fh))

    return Door
