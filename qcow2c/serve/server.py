"""A server: sockets that listen, a thread for each client, and an orderly end.

It knows no protocol: `serve` does all that there is to do with one client. While as many clients are there as may be,
others wait in the queue of the system.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from qcow2c.serve.wire import Disconnected, Wire

Log = Callable[[str], object]


class Limits(NamedTuple):
    """What clients may take."""

    clients: int = 64
    handshake_seconds: float = 10.0
    """For everything that is said before a client has chosen what to use."""
    stop_seconds: float = 30.0
    """For what is being answered when the server stops."""


class Server:
    """Serves until it is stopped, or, unless `persistent`, until the last client has gone."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        serve: Callable[[Wire], None],
        *,
        limits: Limits | None = None,
        persistent: bool = True,
        log: Log = lambda _message: None,
    ) -> None:
        """`serve` may raise Disconnected; what else it raises is told to `log`, and ends its connection."""
        self._listeners = listeners
        self._serve = serve
        self._limits = limits or Limits()
        self._persistent = persistent
        self._log = log
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, Wire] = {}
        self._served = 0
        self._stopping = False
        self._waking, self._wake = os.pipe()
        os.set_blocking(self._wake, False)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> None:
        """Let `run` return soon; from any thread, or a signal handler."""
        self._stopping = True
        self._nudge()

    def _nudge(self) -> None:
        with suppress(OSError):  # It is full, which will do, or closed.
            os.write(self._wake, b"\0")

    def run(self) -> None:
        """Serve; return when that is over, and all clients are gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._waking, selectors.EVENT_READ)
            listening = False
            while not self._is_over():
                with self._lock:
                    free = len(self._clients) < self._limits.clients
                if free != listening:
                    change = selector.register if free else lambda one, _event: selector.unregister(one)
                    for listener in self._listeners:
                        change(listener, selectors.EVENT_READ)
                    listening = free
                for key, _ in selector.select():
                    if key.fd == self._waking:
                        os.read(self._waking, 4096)
                    elif isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj)
        self._finish()

    def _is_over(self) -> bool:
        with self._lock:
            return self._stopping or (not self._persistent and self._served > 0 and not self._clients)

    def _accept(self, listener: socket.socket) -> None:
        with self._lock:
            if len(self._clients) >= self._limits.clients:
                return
        try:
            connection, _ = listener.accept()
        except OSError as exc:  # It has gone meanwhile, or there are no descriptors left.
            self._log(f"a client could not be accepted: {exc}")
            return
        connection.settimeout(None)
        wire = Wire(connection, seconds=self._limits.handshake_seconds)
        thread = threading.Thread(target=self._client, args=(wire,), daemon=True)
        with self._lock:
            self._clients[thread] = wire
        thread.start()

    def _client(self, wire: Wire) -> None:
        try:
            self._serve(wire)
        except Disconnected as exc:
            self._log(f"a client has gone: {exc}")
        except Exception as exc:
            self._log(f"a client was sent away: {type(exc).__name__}: {exc}")
        finally:
            wire.close()
            with self._lock:
                del self._clients[threading.current_thread()]
                self._served += wire.served
            self._nudge()

    def _finish(self) -> None:
        """Let each client have the answer to what it has asked for, and no more."""
        with self._lock:
            left = dict(self._clients)
        for wire in left.values():
            wire.shut()
        for thread in left:
            thread.join(self._limits.stop_seconds)

    def close(self) -> None:
        """Close all that listens."""
        for listener in self._listeners:
            listener.close()
        for descriptor in (self._waking, self._wake):
            with suppress(OSError):
                os.close(descriptor)
