"""The messages of 9P2000, 9P2000.u and 9P2000.L: numbers, and how they lie on the wire. It sends nothing.

The names are those of the manual (intro(5) of Plan 9) and of diod's protocol.md. All numbers are little-endian.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

HEAD_BYTES = 7
"""Size, type and tag, before what a message has of its own."""

DATA_OVERHEAD = 24
"""What a message with data has beside it, at most (IOHDRSZ)."""

MIN_MESSAGE = 512
MAX_MESSAGE = (1 << 20) + DATA_OVERHEAD
"""Bytes of a message; a client may choose within them."""

MAX_WALK = 16
"""Names in one walk."""

NO_TAG = 0xFFFF
NO_FID = 0xFFFFFFFF


class Dialect(enum.Enum):
    """What both sides have agreed to speak."""

    PLAIN = b"9P2000"
    UNIX = b"9P2000.u"
    LINUX = b"9P2000.L"


class NinepRequest(enum.IntEnum):
    """The requests; the number of an answer is one more."""

    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    OPEN = 112
    CREATE = 114
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122
    STAT = 124
    WSTAT = 126


R_LERROR, R_ERROR = 7, 107

DIRECTORY = 0x80
"""The kind of a directory in a qid; files have 0."""

MODE_DIRECTORY = 0x80000000


class Qid(NamedTuple):
    """What a file is, for the server: its number never means another one, its version changes with its bytes."""

    type: int
    version: int
    path: int

    def packed(self) -> bytes:
        return struct.pack("<BIQ", self.type, self.version & 0xFFFFFFFF, self.path)


class Malformed(Exception):
    """A message that says less or more than its kind does."""


class MessageFields:
    """The fields of a message, one after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> memoryview:
        """Return the next bytes. Raises Malformed."""
        found = self._data[self._at : self._at + length]
        if len(found) < length:
            raise Malformed(f"{length} bytes are due at {self._at}, and {len(found)} are there")
        self._at += length
        return found

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def text(self) -> bytes:
        return bytes(self.take(self.number(2)))

    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        """Raise Malformed if anything is left."""
        if self.left():
            raise Malformed(f"{self.left()} bytes are left over")


def text(value: bytes) -> bytes:
    return struct.pack("<H", len(value)) + value


def message(kind: int, tag: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """Return a message in parts."""
    size = HEAD_BYTES + sum(map(len, parts))
    return [struct.pack("<IBH", size, kind, tag), *parts]


class Stat(NamedTuple):
    """What 9P2000 says of a file. Times are seconds since 1970."""

    qid: Qid
    mode: int
    time: int
    length: int
    name: bytes
    owner: bytes
    uid: int
    gid: int

    def packed(self, dialect: Dialect) -> bytes:
        mode = self.mode | (MODE_DIRECTORY if self.qid.type & DIRECTORY else 0)
        body = (
            struct.pack("<HI", 0, 0) + self.qid.packed() + struct.pack("<IIIQ", mode, self.time, self.time, self.length)
        )
        body += text(self.name) + text(self.owner) + text(self.owner) + text(self.owner)
        if dialect is Dialect.UNIX:
            body += text(b"") + struct.pack("<III", self.uid, self.gid, self.uid)
        return struct.pack("<H", len(body)) + body


def attributes(stat: Stat) -> bytes:
    """Return what 9P2000.L says of a file."""
    kind = 0o040000 if stat.qid.type & DIRECTORY else 0o100000
    basic = 0x7FF
    head = struct.pack("<Q", basic) + stat.qid.packed() + struct.pack("<III", kind | stat.mode, stat.uid, stat.gid)
    sizes = struct.pack("<QQQQQ", 1, 0, stat.length, 4096, -(-stat.length // 512))
    return head + sizes + struct.pack("<QQQQQQQQ", *(stat.time, 0) * 3, 0, 0) + struct.pack("<QQ", 0, 0)


def file_system(size: int, files: int) -> bytes:
    """Return what 9P2000.L says of the whole."""
    return struct.pack("<IIQQQQQQI", 0x01021997, 4096, -(-size // 4096), 0, 0, files, 0, 0, 255)
