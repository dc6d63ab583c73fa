"""A 9P client for tests: it sends what it is told, right or wrong, and takes answers apart by code of its own."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from qcow2c.serve.folder import Folder
from qcow2c.serve.ninep import serve_ninep_client
from qcow2c.serve.ninep_files import tree_of
from qcow2c.serve.wire import Disconnected, Wire

NO_FID = 0xFFFFFFFF


class NinePError(Exception):
    """The server's answer is an error: its number, 0 where 9P2000 has none, and its words."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(f"{number}: {words}")
        self.number = number


class File(NamedTuple):
    """What 9P2000 says of a file."""

    is_directory: bool
    version: int
    path: int
    mode: int
    length: int
    name: bytes


def text(value: bytes) -> bytes:
    return struct.pack("<H", len(value)) + value


class NinePClient:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(20)
        self.dialect = b""
        self._tag = 0

    def receive(self, length: int) -> bytes:
        parts = b""
        while len(parts) < length:
            part = self.socket.recv(length - len(parts))
            if not part:
                raise EOFError(f"{len(parts)} of {length} bytes")
            parts += part
        return parts

    def send(self, kind: int, tag: int, body: bytes) -> None:
        self.socket.sendall(struct.pack("<IBH", 7 + len(body), kind, tag) + body)

    def answer(self) -> tuple[int, int, bytes]:
        """Return type, tag and the rest of an answer."""
        size, kind, tag = struct.unpack("<IBH", self.receive(7))
        return kind, tag, self.receive(size - 7)

    def ask(self, kind: int, body: bytes, tag: int | None = None) -> bytes:
        """Send a request; return the rest of its answer. Raises NinePError."""
        self._tag = self._tag % 1000 + 1
        tag = self._tag if tag is None else tag
        self.send(kind, tag, body)
        answered, answered_tag, rest = self.answer()
        assert answered_tag == tag
        if answered == 7:
            raise NinePError(struct.unpack("<I", rest)[0], "")
        if answered == 107:
            words = rest[2 : 2 + struct.unpack("<H", rest[:2])[0]]
            number = rest[2 + len(words) :]
            raise NinePError(struct.unpack("<I", number)[0] if number else 0, words.decode())
        assert answered == kind + 1
        return rest

    def version(self, dialect: bytes, limit: int = 65536) -> tuple[int, bytes]:
        rest = self.ask(100, struct.pack("<I", limit) + text(dialect), 0xFFFF)
        self.dialect = rest[6:]
        return struct.unpack("<I", rest[:4])[0], rest[6:]

    def attach(self, fid: int = 0) -> None:
        number = b"" if self.dialect == b"9P2000" else struct.pack("<I", 0)
        self.ask(104, struct.pack("<II", fid, NO_FID) + text(b"me") + text(b"") + number)

    def walk(self, fid: int, new: int, *names: bytes) -> int:
        """Return how many of the names led somewhere."""
        rest = self.ask(110, struct.pack("<IIH", fid, new, len(names)) + b"".join(map(text, names)))
        return int(struct.unpack("<H", rest[:2])[0])

    def open(self, fid: int, mode: int = 0) -> int:
        """Return how much one message reads or writes."""
        is_linux = self.dialect == b"9P2000.L"
        rest = self.ask(12, struct.pack("<II", fid, mode)) if is_linux else self.ask(112, struct.pack("<IB", fid, mode))
        return int(struct.unpack("<I", rest[13:])[0])

    def read(self, fid: int, offset: int, count: int) -> bytes:
        rest = self.ask(116, struct.pack("<IQI", fid, offset, count))
        assert struct.unpack("<I", rest[:4])[0] == len(rest) - 4
        return rest[4:]

    def write(self, fid: int, offset: int, data: bytes) -> int:
        rest = self.ask(118, struct.pack("<IQI", fid, offset, len(data)) + data)
        return int(struct.unpack("<I", rest)[0])

    def clunk(self, fid: int) -> None:
        assert self.ask(120, struct.pack("<I", fid)) == b""

    def stat(self, fid: int) -> File:
        rest = self.ask(124, struct.pack("<I", fid))
        assert struct.unpack("<H", rest[:2])[0] == len(rest) - 2
        return files(rest[2:])[0]


def files(data: bytes) -> list[File]:
    """Take stat records apart."""
    found = []
    while data:
        size = struct.unpack("<H", data[:2])[0] + 2
        record, data = data[:size], data[size:]
        kind, version, path, mode, _, _, length, name = struct.unpack("<BIQIIIQH", record[8:43])
        found.append(File(bool(kind & 0x80), version, path, mode & 0o777, length, record[43 : 43 + name]))
    return found


@contextmanager
def connected(folder: Folder, dialect: bytes | None = b"9P2000") -> Iterator[NinePClient]:
    """Serve a folder to one client, which is attached as fid 0 where a dialect is given."""
    ours, theirs = socket.socketpair()
    failed: list[BaseException] = []

    def serve() -> None:
        wire = Wire(theirs, seconds=20)
        try:
            serve_ninep_client(wire, tree_of(folder))
        except Disconnected:
            pass
        except BaseException as exc:
            failed.append(exc)
        finally:
            wire.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours:
            client = NinePClient(ours)
            if dialect is not None:
                client.version(dialect)
                client.attach()
            yield client
    finally:
        thread.join(20)
    assert not failed, failed
