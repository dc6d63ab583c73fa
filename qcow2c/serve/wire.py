"""One connection: bytes in and out, with a deadline while a client has not said yet what it wants."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress


class Disconnected(Exception):
    """The other side has gone, or has been told to, or was too slow."""


class Wire:
    """A stream socket. Its methods raise Disconnected, and nothing else, when it can be used no more."""

    def __init__(self, connection: socket.socket, *, seconds: float | None = None) -> None:
        """`seconds` are those in which everything must have come and gone, until `wait_forever`."""
        self._socket = connection
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self.served = False
        """Whether the other side has chosen what to use."""
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def encrypted(self) -> bool:
        return isinstance(self._socket, ssl.SSLSocket)

    def wait_forever(self) -> None:
        """Let the other side take the time it wants from now on."""
        self.served = True
        self._deadline = None
        self._limit()

    def encrypt(self, context: ssl.SSLContext) -> None:
        """Begin TLS, as the server."""
        self._limit()
        try:
            self._socket = context.wrap_socket(self._socket, server_side=True)
        except (OSError, ValueError) as exc:
            raise Disconnected(f"TLS failed: {exc}") from exc

    def receive(self, length: int) -> bytearray:
        """Return exactly so many bytes."""
        data = bytearray(length)
        self.receive_into(memoryview(data))
        return data

    def receive_into(self, buffer: memoryview) -> None:
        """Fill a buffer."""
        while buffer:
            self._limit()
            try:
                count = self._socket.recv_into(buffer)
            except (OSError, ValueError) as exc:
                raise Disconnected(str(exc)) from exc
            if not count:
                raise Disconnected("the client has gone")
            buffer = buffer[count:]

    def drop(self, length: int) -> None:
        """Receive bytes that nobody wants."""
        buffer = memoryview(bytearray(min(length, 1 << 16)))
        while length:
            part = buffer[: min(length, len(buffer))]
            self.receive_into(part)
            length -= len(part)

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send everything, in order."""
        self._limit()
        try:
            if self.encrypted or len(parts) == 1:
                for part in parts:
                    self._socket.sendall(part)
            else:
                self._send_together([memoryview(part) for part in parts if len(part)])
        except (OSError, ValueError) as exc:
            raise Disconnected(str(exc)) from exc

    def _send_together(self, parts: Sequence[memoryview]) -> None:
        left = list(parts)
        while left:
            count = self._socket.sendmsg(left)
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]

    def send_file(self, head: bytes, descriptor: int, offset: int, length: int) -> None:
        """Send a head, and behind it bytes of a file that this process does not look at.

        Not on an encrypted connection. A file that has become shorter ends the connection.
        """
        self._limit()
        try:
            self._socket.sendall(head, socket.MSG_MORE)
            end = offset + length
            while offset < end:
                count = os.sendfile(self._socket.fileno(), descriptor, offset, end - offset)
                if not count:
                    raise Disconnected("the file has become shorter while it was sent")
                offset += count
        except (OSError, ValueError) as exc:
            raise Disconnected(str(exc)) from exc

    def _limit(self) -> None:
        if self._deadline is None:
            left = None
        else:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise Disconnected("the client was too slow")
        try:
            self._socket.settimeout(left)
        except OSError as exc:
            raise Disconnected(str(exc)) from exc

    def shut(self) -> None:
        """Let nothing more come in, from another thread: what is being answered is answered."""
        with suppress(OSError):  # It is closed already.
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self._socket.close()
