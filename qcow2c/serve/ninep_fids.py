"""What a 9P client refers to: its fids, open or not, and where its walks lead."""

from __future__ import annotations

import errno
import os

from qcow2c.errors import Qcow2Error
from qcow2c.serve.folder import OpenDisk, OpenEntry
from qcow2c.serve.ninep_files import ServedNode
from qcow2c.serve.ninep_messages import NO_FID

MAX_FIDS = 4096
"""Files that a client refers to at a time."""


class RequestFailed(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message or os.strerror(code))
        self.code = code


class Fid:
    """A file that a client refers to by a number, open or not."""

    def __init__(self, node: ServedNode) -> None:
        self.node = node
        self.file: OpenEntry | None = None
        self.is_open = False
        self.access = 0

    def close(self) -> None:
        """Release the file; what was written through it is durable then. Raises Qcow2Error."""
        file, self.file = self.file, None
        if file is not None:
            try:
                if isinstance(file, OpenDisk) and file.export.writable:
                    file.flush(always=False)
            finally:
                file.close()


class Fids:
    """The fids of one client, by number."""

    def __init__(self) -> None:
        self._fids: dict[int, Fid] = {}

    def known(self, number: int) -> Fid:
        """Return what a number stands for. Raises RequestFailed."""
        if number not in self._fids:
            raise RequestFailed(errno.EBADF, f"there is no fid {number}")
        return self._fids[number]

    def add(self, number: int, node: ServedNode) -> None:
        """Let a new number stand for a file. Raises RequestFailed."""
        if number in self._fids or number == NO_FID:
            raise RequestFailed(errno.EINVAL, f"fid {number} is in use")
        if len(self._fids) >= MAX_FIDS:
            raise RequestFailed(errno.EMFILE, f"more than {MAX_FIDS} fids")
        self._fids[number] = Fid(node)

    def close(self, number: int) -> None:
        """Let a number stand for nothing any more, whatever fails. Raises RequestFailed, Qcow2Error."""
        self.known(number)
        self._fids.pop(number).close()

    def close_all(self) -> None:
        """Let no number stand for anything. Raises the first Qcow2Error."""
        failed = None
        for number in list(self._fids):
            try:
                self.close(number)
            except Qcow2Error as exc:
                failed = failed or exc
        if failed is not None:
            raise failed


def passed_by(node: ServedNode, names: list[bytes]) -> tuple[ServedNode, list[bytes]]:
    """Return where names lead, as far as they do, and the qids on the way.

    Raises RequestFailed where the first name leads nowhere.
    """
    qids: list[bytes] = []
    for name in names:
        found = node.step(name)
        if found is None:
            if not qids:
                raise RequestFailed(errno.ENOENT if node.entry is None else errno.ENOTDIR)
            break
        node = found
        qids.append(node.qid.packed())
    return node, qids
