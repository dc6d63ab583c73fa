"""A server: many clients at once, a bound on them, and an end in which each has its answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qcow2c.serve.listening import unix
from qcow2c.serve.server import Limits, Server
from qcow2c.serve.wire import Wire


def echo(wire: Wire) -> None:
    """Send each byte back; "!" is a fault."""
    wire.wait_forever()
    while True:
        data = wire.receive(1)
        assert data != b"!", "what a client may do"
        wire.send(data)


@contextmanager
def running(
    tmp_path: Path, serve: Callable[[Wire], None] = echo, **how: object
) -> Iterator[tuple[str, Server, threading.Thread, list[str]]]:
    said: list[str] = []
    path = str(tmp_path / "socket")
    with unix(path) as listeners, Server(listeners, serve, log=said.append, **how) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield path, server, thread, said
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()


def connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(20)
    connection.connect(path)
    return connection


def talk(connection: socket.socket, byte: bytes = b"x") -> bytes:
    connection.sendall(byte)
    return connection.recv(1)


def test_clients_are_served_at_once_and_what_one_does_is_no_others_end(tmp_path: Path) -> None:
    with running(tmp_path) as (path, _, thread, said):
        with connect(path) as one, connect(path) as other:
            assert talk(one) == talk(other) == b"x"
            assert talk(one, b"!") == b""
            assert talk(other) == b"x"
        with connect(path) as third:
            assert talk(third) == b"x"
        assert thread.is_alive()
    assert any("AssertionError" in line for line in said)


def test_who_comes_when_all_places_are_taken_waits(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(clients=1)) as (path, *_), connect(path) as one, connect(path) as waiting:
        assert talk(one) == b"x"
        waiting.settimeout(0.2)
        waiting.sendall(b"y")
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        one.close()
        waiting.settimeout(20)
        assert waiting.recv(1) == b"y"


def test_it_ends_with_its_last_client_if_it_should(tmp_path: Path) -> None:
    with running(tmp_path, persistent=False) as (path, _, thread, _):
        thread.join(0.2)
        assert thread.is_alive(), "nobody has come yet"
        with connect(path) as one:
            assert talk(one) == b"x"
            thread.join(0.2)
            assert thread.is_alive()
        thread.join(20)
        assert not thread.is_alive()


def test_a_client_that_never_chose_anything_does_not_end_it(tmp_path: Path) -> None:
    with running(tmp_path, lambda wire: wire.receive(1) and None, persistent=False) as (path, _, thread, _):
        connect(path).close()
        thread.join(0.3)
        assert thread.is_alive()


def test_at_the_end_what_is_being_answered_is_answered(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(wire: Wire) -> None:
        wire.wait_forever()
        while True:
            data = wire.receive(1)
            begun.set()
            go_on.wait(20)
            wire.send(data)

    with running(tmp_path, slow) as (path, server, thread, _), connect(path) as one:
        one.sendall(b"x")
        assert begun.wait(20)
        server.stop()
        thread.join(0.2)
        assert thread.is_alive(), "the client waits for its answer"
        go_on.set()
        assert one.recv(1) == b"x"
        assert one.recv(1) == b""


def test_without_descriptors_it_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as (path, server, _, said):
        listener = server._listeners[0]
        broken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        broken.close()
        server._accept(broken)
        assert any("could not be accepted" in line for line in said)
        with connect(path) as one:
            assert talk(one) == b"x"
        assert listener.fileno() >= 0
