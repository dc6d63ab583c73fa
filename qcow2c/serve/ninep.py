"""The 9P protocol with one client: 9P2000, 9P2000.u and 9P2000.L. Threads share the files.

Requests are answered one after the other, so that there is never one to be flushed. What is wrong but understood is
answered with an error; only a message that cannot be one ends the connection. Memory is bounded by MAX_MESSAGE twice a
connection, and MAX_FIDS.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from contextlib import suppress

from qcow2c.errors import Qcow2Error, StoreError
from qcow2c.serve import ninep_messages as p9
from qcow2c.serve.folder import OpenDisk
from qcow2c.serve.ninep_fids import Fid, Fids, RequestFailed, passed_by
from qcow2c.serve.ninep_files import ServedNode
from qcow2c.serve.ninep_messages import Dialect, MessageFields, NinepRequest
from qcow2c.serve.wire import Disconnected, Wire

_LONGEST = 64 << 20
"""Bytes of a message that is too long and dropped; one that says more is none."""

_WRITE, _READ_WRITE, _EXECUTE, _ACCESS = 1, 2, 3, 3
_REMOVE_ON_CLOSE = 0x40
_SIZE_CHANGE = 8
"""The bit of Tsetattr that says that a size is given."""

_SAME = (1 << 64) - 1
"""A length in Twstat that says: as it is."""

_COMMON = {
    NinepRequest.VERSION,
    NinepRequest.AUTH,
    NinepRequest.ATTACH,
    NinepRequest.FLUSH,
    NinepRequest.WALK,
    NinepRequest.READ,
    NinepRequest.WRITE,
    NinepRequest.CLUNK,
    NinepRequest.REMOVE,
}
_CLASSIC = _COMMON | {NinepRequest.OPEN, NinepRequest.CREATE, NinepRequest.STAT, NinepRequest.WSTAT}
_REFUSED = {
    NinepRequest.CREATE,
    NinepRequest.LCREATE,
    NinepRequest.SYMLINK,
    NinepRequest.MKNOD,
    NinepRequest.RENAME,
    NinepRequest.LINK,
    NinepRequest.MKDIR,
    NinepRequest.RENAMEAT,
    NinepRequest.UNLINKAT,
}
"""What would change which files there are."""


class NinepSession:
    """What one client does."""

    def __init__(self, wire: Wire, root: ServedNode) -> None:
        self._wire = wire
        self._root = root
        self._dialect: Dialect | None = None
        self._limit = p9.MIN_MESSAGE * 16
        self._fids = Fids()
        self._buffer = bytearray(self._limit)

    def run(self) -> None:
        """Answer requests until the client leaves. Raises Disconnected."""
        try:
            while True:
                self._answer()
        finally:
            with suppress(Qcow2Error):  # Whoever closes the image is told.
                self._fids.close_all()

    def _answer(self) -> None:
        size, kind, tag = struct.unpack("<IBH", self._wire.receive(p9.HEAD_BYTES))
        if not p9.HEAD_BYTES <= size <= _LONGEST:
            raise Disconnected(f"a message of {size} bytes")
        length = size - p9.HEAD_BYTES
        try:
            if size > self._limit:
                self._wire.drop(length)
                raise RequestFailed(errno.EMSGSIZE, f"a message of {size} bytes, more than {self._limit}")
            body = memoryview(self._buffer)[:length]
            self._wire.receive_into(body)
            parts = self._obey(kind, MessageFields(body), tag)
        except RequestFailed as failed:
            self._fail(tag, failed.code, str(failed))
        except p9.Malformed as exc:
            self._fail(tag, errno.EINVAL, f"a message that is none: {exc}")
        except MemoryError:
            self._fail(tag, errno.ENOMEM, os.strerror(errno.ENOMEM))
        except Qcow2Error as exc:
            self._fail(tag, _code_of(exc), str(exc))
        else:
            self._wire.send(*p9.message(kind + 1, tag, *parts))

    def _fail(self, tag: int, code: int, message: str) -> None:
        if self._dialect is Dialect.LINUX:
            self._wire.send(*p9.message(p9.R_LERROR, tag, struct.pack("<I", code)))
            return
        shown = p9.text(message.encode("utf-8", "backslashreplace")[: min(256, self._limit // 2)])
        number = struct.pack("<I", code) if self._dialect is Dialect.UNIX else b""
        self._wire.send(*p9.message(p9.R_ERROR, tag, shown, number))

    def _obey(self, kind: int, fields: MessageFields, tag: int) -> tuple[bytes | memoryview, ...]:
        """Do what a request says; return what the answer has. Raises RequestFailed, Malformed, Qcow2Error."""
        try:
            request = NinepRequest(kind)
        except ValueError:
            raise RequestFailed(errno.EOPNOTSUPP, f"no request has the number {kind}") from None
        if request is NinepRequest.VERSION:
            return self._version(fields, tag)
        if self._dialect is None:
            raise RequestFailed(errno.EPROTO, "no version was agreed on")
        if (self._dialect is Dialect.LINUX and request in _CLASSIC - _COMMON) or (
            self._dialect is not Dialect.LINUX and request not in _CLASSIC
        ):
            raise RequestFailed(errno.EOPNOTSUPP, f"{self._dialect.value.decode()} has no {request.name.lower()}")
        if request is NinepRequest.AUTH:  # diod's clients go on after this error alone.
            raise RequestFailed(errno.ENOENT, "nobody is asked who they are")
        if request in _REFUSED:
            raise RequestFailed(errno.EPERM, "the files are those of the image")
        doing: dict[NinepRequest, Callable[[MessageFields], tuple[bytes | memoryview, ...]]] = {
            NinepRequest.ATTACH: self._attach,
            NinepRequest.FLUSH: self._forget_request,
            NinepRequest.WALK: self._walk,
            NinepRequest.OPEN: self._open,
            NinepRequest.LOPEN: self._lopen,
            NinepRequest.READ: self._read,
            NinepRequest.READDIR: self._readdir,
            NinepRequest.WRITE: self._write,
            NinepRequest.CLUNK: self._clunk,
            NinepRequest.REMOVE: self._remove,
            NinepRequest.STAT: self._stat,
            NinepRequest.WSTAT: self._wstat,
            NinepRequest.GETATTR: self._getattr,
            NinepRequest.SETATTR: self._setattr,
            NinepRequest.STATFS: self._statfs,
            NinepRequest.FSYNC: self._fsync,
        }
        if request not in doing:
            raise RequestFailed(errno.EOPNOTSUPP, f"{request.name.lower()} is not offered")
        return doing[request](fields)

    # --- who is there ---

    def _version(self, fields: MessageFields, tag: int) -> tuple[bytes, ...]:
        limit, wanted = fields.number(4), fields.text()
        fields.end()
        if tag != p9.NO_TAG:
            raise RequestFailed(errno.EINVAL, f"a version with tag {tag}")
        if limit < p9.MIN_MESSAGE:
            raise RequestFailed(errno.EMSGSIZE, f"messages of {limit} bytes, less than {p9.MIN_MESSAGE}")
        self._dialect = None
        self._fids.close_all()
        self._limit = min(limit, p9.MAX_MESSAGE)
        self._buffer = bytearray(self._limit)
        known = {dialect.value: dialect for dialect in Dialect}
        base = wanted.partition(b".")[0]
        self._dialect = known.get(wanted) or known.get(base)
        agreed = b"unknown" if self._dialect is None else self._dialect.value
        return (struct.pack("<I", self._limit), p9.text(agreed))

    def _forget_request(self, fields: MessageFields) -> tuple[bytes, ...]:
        """All that came before is answered."""
        fields.number(2)
        fields.end()
        return ()

    def _attach(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid, authority, _user, path = fields.number(4), fields.number(4), fields.text(), fields.text()
        if self._dialect is not Dialect.PLAIN and fields.left():
            fields.number(4)
        fields.end()
        if authority != p9.NO_FID:
            raise RequestFailed(errno.EINVAL, "nobody is asked who they are")
        if path.strip(b"/"):
            raise RequestFailed(errno.ENOENT, "there is one tree, without a name")
        self._fids.add(fid, self._root)
        if not self._wire.served:
            self._wire.wait_forever()
        return (self._root.qid.packed(),)

    def _fid(self, fields: MessageFields) -> Fid:
        return self._fids.known(fields.number(4))

    # --- files by name ---

    def _walk(self, fields: MessageFields) -> tuple[bytes, ...]:
        start, new, count = fields.number(4), fields.number(4), fields.number(2)
        old = self._fids.known(start)
        if count > p9.MAX_WALK:
            raise RequestFailed(errno.EINVAL, f"{count} names, more than {p9.MAX_WALK}")
        names = [fields.text() for _ in range(count)]
        fields.end()
        if old.is_open and new == start:  # Else some clients do it, and every server lets them.
            raise RequestFailed(errno.EBUSY, f"fid {start} is open")
        node, passed = passed_by(old.node, names)
        if len(passed) == len(names):
            if new == start:
                old.node = node
            else:
                self._fids.add(new, node)
        return (struct.pack("<H", len(passed)), *passed)

    def _open(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid, mode = self._fid(fields), fields.number(1)
        fields.end()
        if mode & _REMOVE_ON_CLOSE:
            raise RequestFailed(errno.EPERM, "nothing can be removed")
        access = mode & _ACCESS
        return self._opened(fid, 0 if access == _EXECUTE else access)

    def _lopen(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid, flags = self._fid(fields), fields.number(4)
        fields.end()
        if flags & os.O_DIRECTORY and fid.node.entry is not None:
            raise RequestFailed(errno.ENOTDIR)
        return self._opened(fid, flags & _ACCESS)

    def _opened(self, fid: Fid, access: int) -> tuple[bytes, ...]:
        entry = fid.node.entry
        if fid.is_open:
            raise RequestFailed(errno.EINVAL, "it is open already")
        if access and entry is None:
            raise RequestFailed(errno.EISDIR)
        if entry is not None:
            if access and not entry.writable:
                raise RequestFailed(errno.EROFS if fid.node.name == b"data" else errno.EACCES)
            fid.file = entry.open()
        fid.is_open, fid.access = True, access
        return (fid.node.qid.packed(), struct.pack("<I", self._limit - p9.DATA_OVERHEAD))

    def _clunk(self, fields: MessageFields) -> tuple[bytes, ...]:
        number = fields.number(4)
        fields.end()
        self._fids.close(number)
        return ()

    def _remove(self, fields: MessageFields) -> tuple[bytes, ...]:
        self._clunk(fields)  # Also where it is refused.
        raise RequestFailed(errno.EPERM, "nothing can be removed")

    # --- bytes ---

    def _read(self, fields: MessageFields) -> tuple[bytes | memoryview, ...]:
        fid, offset, count = self._fid(fields), fields.number(8), fields.number(4)
        fields.end()
        count = min(count, self._limit - p9.DATA_OVERHEAD)
        if not fid.is_open or fid.access == _WRITE:
            raise RequestFailed(errno.EBADF, "it is not open for reading")
        if fid.file is None:
            if self._dialect is Dialect.LINUX:
                raise RequestFailed(errno.EISDIR)
            found: bytes | memoryview = self._entries(fid.node, offset, count)
        else:
            buffer = memoryview(bytearray(max(0, min(count, fid.node.stat().length - offset))))
            found = buffer[: fid.file.read_into(buffer, offset)] if buffer else b""
        return (struct.pack("<I", len(found)), found)

    def _entries(self, node: ServedNode, offset: int, count: int) -> bytes:
        """Return whole entries of a directory, from one on that begins at an offset."""
        assert self._dialect is not None, "it was agreed on"
        at, found = 0, b""
        for inner in node.inside.values():
            entry = inner.stat().packed(self._dialect)
            if at >= offset:
                if at > offset and not found:
                    raise RequestFailed(errno.EINVAL, f"no entry begins at {offset}")
                if len(found) + len(entry) > count:
                    break
                found += entry
            at += len(entry)
        return found

    def _readdir(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid, offset, count = self._fid(fields), fields.number(8), fields.number(4)
        fields.end()
        if not fid.is_open or fid.node.entry is not None:
            raise RequestFailed(errno.ENOTDIR if fid.is_open else errno.EBADF)
        count = min(count, self._limit - p9.DATA_OVERHEAD)
        node, found = fid.node, b""
        places = [(b".", node), (b"..", node.parent), *node.inside.items()]
        for number, (name, inner) in enumerate(places[min(offset, len(places)) :], offset + 1):
            kind = 4 if inner.entry is None else 8  # DT_DIR, DT_REG
            entry = inner.qid.packed() + struct.pack("<QB", number, kind) + p9.text(name)
            if len(found) + len(entry) > count:
                break
            found += entry
        return (struct.pack("<I", len(found)), found)

    def _write(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid, offset, count = self._fid(fields), fields.number(8), fields.number(4)
        data = fields.take(count)
        fields.end()
        if not isinstance(fid.file, OpenDisk) or fid.access not in (_WRITE, _READ_WRITE):
            raise RequestFailed(errno.EBADF, "it is not open for writing")
        done = fid.file.write(data, offset)
        if done:
            fid.node.changed()
        elif count:
            raise RequestFailed(errno.ENOSPC, "it lies behind the end of the disk")
        return (struct.pack("<I", done),)

    def _fsync(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid = self._fid(fields)
        if fields.left():
            fields.number(4)
        fields.end()
        self._flush(fid)
        return ()

    def _flush(self, fid: Fid) -> None:
        if isinstance(fid.file, OpenDisk) and fid.file.export.writable:
            fid.file.flush()

    # --- what files are ---

    def _stat(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid = self._fid(fields)
        fields.end()
        assert self._dialect is not None, "it was agreed on"
        return (p9.text(fid.node.stat().packed(self._dialect)),)

    def _wstat(self, fields: MessageFields) -> tuple[bytes, ...]:
        """Take what changes nothing that matters, with which clients make durable what they wrote."""
        fid = self._fid(fields)
        stat = MessageFields(fields.take(fields.number(2)))
        fields.end()
        stat.take(33)  # size, type, dev, qid, mode, times
        length, name = stat.number(8), stat.text()
        if name not in (b"", fid.node.name):
            raise RequestFailed(errno.EPERM, "names are those of the image")
        if length != _SAME:
            self._require_size(fid.node, length)
        self._require_writable(fid.node)
        self._flush(fid)
        return ()

    def _require_size(self, node: ServedNode, size: int) -> None:
        """Raise RequestFailed for another size; 0 is what programs say that write a file anew, and means nothing."""
        self._require_writable(node)
        if node.entry is None or size not in (0, node.entry.size):
            raise RequestFailed(errno.EPERM, "a disk keeps its size")

    def _require_writable(self, node: ServedNode) -> None:
        if node.entry is None or not node.entry.writable:
            raise RequestFailed(errno.EROFS)

    def _getattr(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid, _wanted = self._fid(fields), fields.number(8)
        fields.end()
        return (p9.attributes(fid.node.stat()),)

    def _setattr(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid, valid, _owner, size = self._fid(fields), fields.number(4), fields.take(12), fields.number(8)
        fields.take(32)
        fields.end()
        self._require_writable(fid.node)
        if valid & _SIZE_CHANGE:
            self._require_size(fid.node, size)
        return ()

    def _statfs(self, fields: MessageFields) -> tuple[bytes, ...]:
        fid = self._fid(fields)
        fields.end()
        entry = fid.node.entry or self._root.inside[b"data"].entry
        return (p9.file_system(entry.size if entry is not None else 0, len(self._root.inside) + 1),)


def _code_of(exc: Qcow2Error) -> int:
    """Return the system's number for an error."""
    return (exc.errno if isinstance(exc, StoreError) else None) or errno.EIO


def serve_ninep_client(wire: Wire, root: ServedNode) -> None:
    """Do all that there is to do with a client. Raises Disconnected when it ends."""
    NinepSession(wire, root).run()
