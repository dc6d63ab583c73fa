"""`qcow2://`: the disk and the snapshots of an image as files for fsspec, and for all that builds on it.

    fsspec.open("qcow2://data::s3://bucket/vm.qcow2")
    fsspec.open("qcow2://snapshots/before-update::file:///srv/vm.qcow2")
    fsspec.open("qcow2://data::file:///srv/vm.qcow2", "r+b", qcow2={"mode": "r+"})

`data` is the disk, `snapshots/NAME` that of each internal snapshot, by the names of `qcow2c.disk.entry_names`. It needs
the extra `remote`. It never opens another file but through the gate; numpy and fsspec are what importing it costs.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import fsspec
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile
from fsspec.utils import tokenize

from qcow2c.disk.entry_names import entry_names
from qcow2c.disk.opening import open_image
from qcow2c.errors import StoreError, UsageError
from qcow2c.image import Image
from qcow2c.internal_snapshots import Snapshot

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key
    from qcow2c.storage.gate import Gate

DISK = "data"
"""The name of the disk."""

SNAPSHOTS = "snapshots"

READ_AHEAD = 1 << 16
"""Bytes that a file reads ahead where its user says nothing."""


class Qcow2FileSystem(AbstractArchiveFileSystem):  # type: ignore[misc]
    """The files of one image, which stays open as long as the file system lives, or until `close`.

    Pickled, it opens its image again, which must have been given by name. Several threads may use it.
    """

    protocol = "qcow2"
    root_marker = ""
    cachable = False

    def __init__(
        self,
        fo: Any = "",
        mode: str = "r",
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        *,
        key: Key | KeyRing = None,
        gate: str | Gate = "directory",
        backing_format: str | None = None,
        on_error: Literal["raise", "zero"] = "raise",
        share: bool = False,
        **storage_options: Any,
    ) -> None:
        """Open an image: `fo` is its path or URL, of the protocol that is given or its own, or a binary file object.

        `mode` is "r", or "r+" to write to the disk of a local file, too. `target_options` are those of the file system
        that has the image, `storage_options` those of fsspec itself; the others are as for `qcow2c.open`. A backing
        file is looked for beside a path or a URL; beside what came over another file system, or with options, none is.
        Raises OSError where the image cannot be reached, and else as `qcow2c.open`.
        """
        super().__init__(**storage_options)
        self.fo = fo
        self.mode = mode
        self._given = (target_protocol, target_options)
        self._snapshots: dict[str, Snapshot[Image]] = {}
        self._states: dict[str, Image] = {}
        self._opened = ExitStack()
        with self._opened as opened, _os_errors():
            source = _source(fo, target_protocol, target_options, opened)
            options: dict[str, Any] = {"key": key, "gate": gate, "backing_format": backing_format}
            self._image = opened.enter_context(open_image(source, mode, on_error=on_error, share=share, **options))
            self.dir_cache = self._directory()
            self._opened = opened.pop_all()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Return paths as they are within the image, without slashes around them."""
        found = super()._strip_protocol(path)
        return found.lstrip("/") if isinstance(found, str) else found

    def _get_dirs(self) -> None:
        """There is nothing to find out: what is in an image was read when it was opened."""

    def ls(self, path: str, detail: bool = True, **_options: Any) -> Any:  # noqa: FBT001, FBT002 - fsspec has it so
        """Return what is in a directory: facts, or paths."""
        return super().ls(self._strip_protocol(path), detail)

    def _directory(self) -> dict[str, dict[str, Any]]:
        found = {
            DISK: {"name": DISK, "type": "file", "size": self._image.size()},
            SNAPSHOTS: {"name": SNAPSHOTS, "type": "directory", "size": 0},
        }
        snapshots = self._image.snapshots.list()
        for name, snapshot in zip(entry_names(one.name for one in snapshots), snapshots, strict=True):
            path = f"{SNAPSHOTS}/{name}"
            self._snapshots[path] = snapshot
            found[path] = {"name": path, "type": "file", "size": snapshot.disk_size, "id": snapshot.id}
        return found

    def state(self, path: str) -> Image:
        """Return the disk or the snapshot that a path names. Raises FileNotFoundError, IsADirectoryError."""
        path = self._strip_protocol(path)
        if path == DISK:
            return self._image
        if path in self._snapshots:
            return self._states.get(path) or self._states.setdefault(path, self._snapshots[path].open())
        number = errno.EISDIR if path in ("", SNAPSHOTS) else errno.ENOENT
        raise OSError(number, os.strerror(number), path)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        """Open a file: "rb"; of an image that is open for writing also "r+b", and "wb" after which all else is zeros.

        Raises FileNotFoundError, IsADirectoryError, and UnsupportedOperation for what cannot be written.
        """
        path = self._strip_protocol(path)
        options.pop("autocommit", None)
        if mode == "rb":
            self.state(path)  # What is not there is said at once.
            options = {"cache_type": "readahead", **options}
            return StateFile(self, path, mode, READ_AHEAD if block_size is None else block_size, **options)
        state = self.state(path)
        if mode not in ("r+b", "rb+", "wb") or state is not self._image:
            raise io.UnsupportedOperation(f"{path} cannot be opened with mode {mode!r}")
        if not self._image.writable():
            raise io.UnsupportedOperation("not writable: open the file system with mode='r+' (qcow2={'mode': 'r+'})")
        if mode == "wb":
            self._image.write_zeroes(0, self._image.size(), unmap=True)
        return WritableState(self, path, self._image, readable=mode != "wb")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_options: Any) -> bytes:
        """Return the bytes of a file, or some of them: negative numbers count from its end."""
        with _os_errors():
            state = self.state(path)
            first, last, _ = slice(start, end).indices(state.size())
            return state.pread(max(0, last - first), first)

    def ukey(self, path: str) -> str:
        """Return what is another one when the image has changed: of a local file, by its time and size."""
        name = self.info(path)["name"]
        local = _local_path(self.fo, self._given[0])
        if local is None:
            return str(tokenize(name, self.fo, *self._given))
        facts = os.stat(local)
        return str(tokenize(name, local, facts.st_mtime_ns, facts.st_size))

    def close(self) -> None:
        """Make durable what was written, and close the image. Raises as `Image.close`."""
        self._opened.close()

    def __enter__(self) -> Qcow2FileSystem:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_opened"):
            self.close()


class StateFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file for reading, as fsspec has them: with a cache of its own, `size` as an attribute, and pickling."""

    def __init__(self, system: Qcow2FileSystem, path: str, mode: str, block_size: int | str, **options: Any) -> None:
        super().__init__(system, path, mode, block_size, **options)
        self._state: Image | None = None

    def _fetch_range(self, start: int, end: int) -> bytes:
        with _os_errors():
            if self._state is None:
                self._state = self.fs.state(self.path)
            return self._state.pread(end - start, start)


class WritableState(io.RawIOBase):
    """The disk for writing: it keeps its size. What was written is durable after `flush` or `close`.

    Closed, it holds the file system no longer, which unlocks the image where nothing else does.
    """

    def __init__(self, system: Qcow2FileSystem, path: str, image: Image, *, readable: bool) -> None:
        super().__init__()
        self.path = path
        self.fs: Qcow2FileSystem | None = system
        self.size = image.size()
        self._image = image
        self._readable = readable
        self._position = 0

    def readable(self) -> bool:
        return self._readable

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        if bases[whence] + offset < 0:
            raise UsageError(f"cannot seek to {bases[whence] + offset}: negative")
        self._position = bases[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if not self._readable:
            raise io.UnsupportedOperation("not readable")
        with _os_errors():
            count = self._image.readinto_at(buffer, self._position)
        self._position += count
        return count

    def write(self, data: Any) -> int:
        """Write all bytes at the position. Raises OSError (ENOSPC) where they do not lie on the disk."""
        view = memoryview(data).cast("B")
        if self._position + len(view) > self.size:
            raise OSError(errno.ENOSPC, f"{len(view)} bytes at {self._position} do not lie on the disk of {self.size}")
        with _os_errors():
            self._image.pwrite(view, self._position)
        self._position += len(view)
        return len(view)

    def flush(self) -> None:
        """Make durable what was written."""
        if not self.closed and not self._image.closed:
            with _os_errors():
                self._image.flush()

    def close(self) -> None:
        """Make durable what was written. Raises OSError."""
        try:
            super().close()
        finally:
            self.fs = None


def _source(fo: Any, protocol: str | None, options: dict[str, Any] | None, opened: ExitStack) -> Any:
    """Return what `open_image` reads: a path or a URL where that is all there is to say, else a file object."""
    if not isinstance(fo, str | os.PathLike):
        # As of other archives: an fsspec.core.OpenFile, or a file, which is its owner's.
        return opened.enter_context(fo) if isinstance(fo, fsspec.core.OpenFile) else fo
    local = _local_path(fo, protocol)
    if local is not None:
        return local
    name = os.fspath(fo)
    if not options and "::" not in name:
        return name if "://" in name else f"{protocol}://{name}"
    return opened.enter_context(fsspec.open(name, mode="rb", protocol=protocol, **(options or {})))


def _local_path(fo: Any, protocol: str | None) -> str | None:
    """Return the path of a local file, None for another one."""
    if not isinstance(fo, str | os.PathLike) or protocol not in (None, "file", "local"):
        return None
    name = os.fspath(fo)
    is_local = "::" not in name and ("://" not in name or name.startswith(("file://", "local://")))
    return str(LocalFileSystem._strip_protocol(name)) if is_local else None  # noqa: SLF001 - fsspec has no other


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise errors of the system, which users of fsspec expect, as what they are."""
    try:
        yield
    except StoreError as exc:
        if exc.errno is None:
            raise
        raise OSError(exc.errno, str(exc)) from exc
