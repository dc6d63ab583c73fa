"""The messages of the NBD protocol, fixed newstyle: numbers, and how they lie on the wire. It sends nothing.

The names are those of the protocol's documentation (doc/proto.md of the NBD project). All numbers are big-endian.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple

GREETING = b"NBDMAGICIHAVEOPT"
OPTION_MAGIC = b"IHAVEOPT"
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC = 0x25609513
_SIMPLE_REPLY_MAGIC = 0x67446698
_CHUNK_MAGIC = 0x668E33EF

MAX_STRING = 4096
"""Bytes of a name; the protocol allows no more."""

MAX_OPTION = 1 << 16
"""Bytes of an option that are looked at: names and queries have room, and nothing else has."""

MAX_PAYLOAD = 32 << 20
"""Bytes that one request reads or writes at most."""


class Handshake(enum.IntFlag):
    """Flags of the greeting, and of what a client answers to it."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class NbdOption(enum.IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """What an option is answered with."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 1 << 31 | 1
    ERR_POLICY = 1 << 31 | 2
    ERR_INVALID = 1 << 31 | 3
    ERR_TLS_REQD = 1 << 31 | 5
    ERR_UNKNOWN = 1 << 31 | 6
    ERR_SHUTDOWN = 1 << 31 | 7
    ERR_TOO_BIG = 1 << 31 | 9


class Info(enum.IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Feature(enum.IntFlag):
    """The transmission flags of an export."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(enum.IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class Flag(enum.IntFlag):
    """The flags of a request."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16


class Chunk(enum.IntEnum):
    """The types of structured replies."""

    NONE = 0
    OFFSET_DATA = 1
    BLOCK_STATUS = 5
    ERROR = 1 << 15 | 1


class Errno(enum.IntEnum):
    PERM = 1
    IO = 5
    NOMEM = 12
    INVAL = 22
    NOSPC = 28
    OVERFLOW = 75
    NOTSUP = 95
    SHUTDOWN = 108


class Request(NamedTuple):
    """What a client asks for in the transmission phase: `cookie` comes back with the answer."""

    flags: int
    type: int
    cookie: int
    offset: int
    length: int


_OPTION = struct.Struct(">8sII")
_REQUEST = struct.Struct(">IHHQQI")
_CHUNK = struct.Struct(">IHHQI")
_SIMPLE = struct.Struct(">IIQ")

OPTION_BYTES = _OPTION.size
REQUEST_BYTES = _REQUEST.size


class ProtocolError(Exception):
    """The client does not speak the protocol: nothing that it sends can be understood any more."""


def greeting(flags: Handshake) -> bytes:
    return GREETING + struct.pack(">H", flags)


def client_flags(data: bytes | bytearray) -> int:
    found: int = struct.unpack(">I", data)[0]
    return found


def option(data: bytes | bytearray) -> tuple[int, int]:
    """Return which option comes, and the length of its data. Raises ProtocolError."""
    magic, kind, length = _OPTION.unpack(data)
    if magic != OPTION_MAGIC:
        raise ProtocolError(f"an option begins with {magic!r}")
    return kind, length


def option_reply(kind: int, reply: OptionReply, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", _OPTION_REPLY_MAGIC, kind, reply, len(data)) + data


def text(data: bytes) -> bytes:
    """Return a string behind its length."""
    return struct.pack(">I", len(data)) + data


def export_facts(size: int, features: Feature) -> bytes:
    """Return size and flags of an export, as EXPORT_NAME is answered."""
    return struct.pack(">QH", size, features)


def info(kind: Info, data: bytes) -> bytes:
    return struct.pack(">H", kind) + data


def block_sizes(least: int, preferred: int, most: int) -> bytes:
    return struct.pack(">III", least, preferred, most)


def meta_context(number: int, name: bytes) -> bytes:
    return struct.pack(">I", number) + name


class OptionFields:
    """The data of an option, taken apart from its front. Each method raises ProtocolError where too little is left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, length: int) -> bytes:
        part = self._data[self._at : self._at + length]
        if len(part) < length:
            raise ProtocolError(f"an option ends after {len(self._data)} bytes, within a field")
        self._at += length
        return part

    def string(self) -> bytes:
        (length,) = struct.unpack(">I", self._take(4))
        if length > MAX_STRING:
            raise ProtocolError(f"a string of {length} bytes, more than {MAX_STRING}")
        return self._take(length)

    def number(self) -> int:
        found: int = struct.unpack(">I", self._take(4))[0]
        return found

    def kinds(self) -> list[int]:
        """Return 16-bit numbers, behind how many they are."""
        (count,) = struct.unpack(">H", self._take(2))
        return list(struct.unpack(f">{count}H", self._take(2 * count)))

    def require_end(self) -> None:
        if self._at != len(self._data):
            raise ProtocolError(f"an option has {len(self._data) - self._at} bytes behind its last field")


def request(data: bytes | bytearray) -> Request:
    """Return a request. Raises ProtocolError."""
    magic, *fields = _REQUEST.unpack(data)
    if magic != _REQUEST_MAGIC:
        raise ProtocolError(f"a request begins with {magic:#010x}")
    return Request(*fields)


def simple_reply(cookie: int, error: int = 0) -> bytes:
    return _SIMPLE.pack(_SIMPLE_REPLY_MAGIC, error, cookie)


def chunk(cookie: int, kind: Chunk, length: int, *, last: bool) -> bytes:
    """Return the head of a structured reply; so many bytes follow."""
    return _CHUNK.pack(_CHUNK_MAGIC, int(last), kind, cookie, length)


def data_chunk(cookie: int, offset: int, length: int, *, last: bool) -> bytes:
    """Return the head of a chunk of data, which follows."""
    return chunk(cookie, Chunk.OFFSET_DATA, 8 + length, last=last) + struct.pack(">Q", offset)


def error_chunk(cookie: int, error: Errno, message: str) -> bytes:
    words = message.encode(errors="replace")[:MAX_STRING]
    return chunk(cookie, Chunk.ERROR, 6 + len(words), last=True) + struct.pack(">IH", error, len(words)) + words


def status_chunk(cookie: int, context: int, extents: Iterable[tuple[int, int]], *, last: bool) -> bytes:
    """Return what one context says of adjacent ranges: length and flags of each."""
    flat = [number for extent in extents for number in extent]
    data = struct.pack(f">I{len(flat)}I", context, *flat)
    return chunk(cookie, Chunk.BLOCK_STATUS, len(data), last=last) + data


def is_asked_for(context: bytes, queries: list[bytes], *, listed: bool) -> bool:
    """Return whether queries name a context; where it is only listed, a namespace, or a part of a name, will do."""
    if context in queries:
        return True
    return listed and (not queries or any(query.endswith(b":") and context.startswith(query) for query in queries))
