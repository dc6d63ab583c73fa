"""The files that 9P shows of an image: `data`, the disk, and `snapshots/NAME`. It knows no message."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from qcow2c.serve.folder import Entry, Folder
from qcow2c.serve.ninep_messages import DIRECTORY, Qid, Stat

DATA = b"data"
_SNAPSHOTS = b"snapshots"
_SECONDS_BITS = 0xFFFFFFFF


class ServedNode:
    """A file, or a directory with what is in it. Several connections may use it."""

    def __init__(self, name: bytes, number: int, parent: ServedNode | None, entry: Entry | None = None) -> None:
        self.name = name
        self.number = number
        self.parent = parent or self
        self.entry = entry
        self.inside: dict[bytes, ServedNode] = {}
        self._version = 0
        self._time = int(time.time()) & _SECONDS_BITS

    @property
    def qid(self) -> Qid:
        return Qid(DIRECTORY if self.entry is None else 0, self._version, self.number)

    def changed(self) -> None:
        """Let others see that the bytes are not the same any more."""
        self._version += 1
        self._time = int(time.time()) & _SECONDS_BITS

    def stat(self) -> Stat:
        if self.entry is None:
            mode, size = 0o555, 0
        else:
            mode, size = 0o644 if self.entry.writable else 0o444, self.entry.size
        return Stat(self.qid, mode, self._time, size, self.name, b"qcow2c", os.getuid(), os.getgid())

    def step(self, name: bytes) -> ServedNode | None:
        """Return what a name leads to from here, None where there is no such file."""
        if name == b"..":
            return self.parent
        return self if name == b"." and self.entry is None else self.inside.get(name)


def tree_of(folder: Folder) -> ServedNode:
    """Return the root of what is served."""
    root = ServedNode(b"/", 0, None)
    root.inside[DATA] = ServedNode(DATA, 1, root, folder.entries["disk"])
    names = folder.directories.get("snapshots")
    if names:
        snapshots = root.inside[_SNAPSHOTS] = ServedNode(_SNAPSHOTS, 2, root)
        for number, name in enumerate(names, 3):
            shown = os.fsencode(name)
            snapshots.inside[shown] = ServedNode(shown, number, snapshots, folder.entries[f"snapshots/{name}"])
    return root


def files_below(node: ServedNode, path: bytes = b"") -> Iterator[tuple[bytes, Entry]]:
    """Yield the files below a directory, with their paths."""
    for name, inner in node.inside.items():
        if inner.entry is None:
            yield from files_below(inner, path + name + b"/")
        else:
            yield path + name, inner.entry
