"""An NBD client for tests: it sends what it is told, right or wrong, and takes answers apart by code of its own."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

from qcow2c.serve.exports import Export
from qcow2c.serve.nbd import Tls, serve_client
from qcow2c.serve.wire import Disconnected, Wire

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16


class Answer(NamedTuple):
    """`error` is 0 for success; `data` what was read; `extents` by context."""

    error: int
    data: bytes = b""
    extents: Mapping[int, list[tuple[int, int]]] = MappingProxyType({})


class Client:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(20)
        self.structured = False
        self._cookie = 0

    def receive(self, length: int) -> bytes:
        parts = b""
        while len(parts) < length:
            part = self.socket.recv(length - len(parts))
            if not part:
                raise EOFError(f"{len(parts)} of {length} bytes")
            parts += part
        return parts

    def greet(self, flags: int = 3) -> int:
        """Read the greeting and answer it; return the server's flags."""
        assert self.receive(16) == b"NBDMAGICIHAVEOPT"
        offered: int = struct.unpack(">H", self.receive(2))[0]
        self.socket.sendall(struct.pack(">I", flags))
        return offered

    def option(self, kind: int, data: bytes = b"", length: int | None = None) -> None:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", kind, len(data) if length is None else length) + data)

    def reply(self) -> tuple[int, int, bytes]:
        """Return option, type and data of a reply."""
        magic, kind, reply, length = struct.unpack(">QIII", self.receive(20))
        assert magic == 0x3E889045565A9
        return kind, reply, self.receive(length)

    def ask(self, kind: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; return the replies up to the last one."""
        self.option(kind, data)
        found = []
        while True:
            answered, reply, content = self.reply()
            assert answered == kind
            found.append((reply, content))
            if reply == 1 or reply >> 31:
                return found

    def go(self, name: bytes = b"", *, structured: bool = True) -> list[tuple[int, bytes]]:
        """Choose an export; return the replies."""
        if structured:
            assert self.ask(STRUCTURED) == [(1, b"")]
            self.structured = True
        return self.ask(GO, text(name) + struct.pack(">H", 0))

    def send(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> int:
        self._cookie += 1
        head = struct.pack(">IHHQQI", 0x25609513, flags, kind, self._cookie, offset, length or len(data))
        self.socket.sendall(head + data)
        return self._cookie

    def do(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> Answer:
        """Send a request; return its answer."""
        cookie = self.send(kind, offset, length, data, flags)
        found, extents = bytearray(length if kind == READ else 0), {}
        while True:
            (magic,) = struct.unpack(">I", self.receive(4))
            if magic == 0x67446698:
                assert not (self.structured and kind == READ)
                error, answered = struct.unpack(">IQ", self.receive(12))
                assert answered == cookie
                return Answer(error, self.receive(length) if kind == READ and not error else b"")
            assert magic == 0x668E33EF and self.structured
            last, which, answered, size = struct.unpack(">HHQI", self.receive(16))
            assert answered == cookie
            content = self.receive(size)
            if which == 1 << 15 | 1:
                return Answer(struct.unpack(">I", content[:4])[0])
            if which == 1:
                (at,) = struct.unpack(">Q", content[:8])
                found[at - offset : at - offset + size - 8] = content[8:]
            if which == 5:
                numbers = struct.unpack(f">{len(content) // 4}I", content)
                extents[numbers[0]] = list(zip(numbers[1::2], numbers[2::2], strict=True))
            if last & 1:
                return Answer(0, bytes(found), extents)


def text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


@contextmanager
def served(
    exports: Mapping[bytes, Export], encryption: Tls | None = None, seconds: float = 20
) -> Iterator[tuple[Client, list[BaseException]]]:
    """Serve one client in a thread; what ended it is in the list then."""
    near, far = socket.socketpair()
    ended: list[BaseException] = []

    def serve() -> None:
        wire = Wire(far, seconds=seconds)
        try:
            serve_client(wire, exports, encryption or Tls())
        except BaseException as exc:
            ended.append(exc)
        finally:
            wire.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with near:
        yield Client(near), ended
    thread.join(20)
    assert not thread.is_alive()
    assert all(isinstance(exc, (Disconnected, Exception)) for exc in ended)
