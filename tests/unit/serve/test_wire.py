"""A connection: everything comes in and goes out whole, and whatever ends it is Disconnected."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qcow2c.serve.wire import Disconnected, Wire


@contextmanager
def pair(seconds: float | None = None) -> Iterator[tuple[Wire, socket.socket]]:
    near, far = socket.socketpair()
    wire = Wire(near, seconds=seconds)
    with far:
        yield wire, far
    wire.close()


def test_parts_go_out_in_order_and_whole() -> None:
    parts = [bytes([number]) * 300_000 for number in range(5)] + [b""]
    got = bytearray()
    with pair() as (wire, far):

        def read() -> None:
            while part := far.recv(10_000):
                got.extend(part)

        reader = threading.Thread(target=read)
        reader.start()
        wire.send(*parts)
        wire.send(b"end")
        wire.close()
        reader.join(20)
    assert got == b"".join(parts) + b"end"


def test_bytes_come_in_whole_or_not_at_all() -> None:
    with pair() as (wire, far):
        far.sendall(b"abc" + bytes(100_000) + b"def")
        assert wire.receive(3) == b"abc"
        wire.drop(100_000)
        assert wire.receive(3) == b"def"
        far.sendall(b"gh")
        far.close()
        with pytest.raises(Disconnected, match="has gone"):
            wire.receive(3)


def test_time_is_limited_for_all_together_until_it_is_not() -> None:
    with pair(0.2) as (wire, far):
        begin = time.monotonic()
        far.sendall(b"a")
        assert wire.receive(1) == b"a"
        with pytest.raises(Disconnected):
            wire.receive(1)
        assert time.monotonic() - begin < 10
        with pytest.raises(Disconnected, match="too slow"):
            wire.send(b"x")
        assert not wire.served
        wire.wait_forever()
        assert wire.served
        wire.send(b"x")
        assert far.recv(1) == b"x"


def test_what_is_shut_or_closed_is_closed_for_all_methods() -> None:
    with pair() as (wire, far):
        wire.shut()
        with pytest.raises(Disconnected):
            wire.receive(1)
        wire.send(b"the answer")
        assert far.recv(100) == b"the answer"
        wire.close()
        wire.shut()
        for call in (lambda: wire.receive(1), lambda: wire.send(b"x"), lambda: wire.send(b"x", b"y")):
            with pytest.raises(Disconnected):
                call()


def test_a_part_of_a_file_is_sent_behind_a_head(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file, pair() as (wire, far):
        got = bytearray()

        def take() -> None:
            while part := far.recv(1 << 20):
                got.extend(part)

        taking = threading.Thread(target=take)
        taking.start()
        wire.send_file(b"head", file.fileno(), 1000, 900_000)
        with pytest.raises(Disconnected, match="shorter"):
            wire.send_file(b"next", file.fileno(), len(data) - 3, 4)
        wire.close()
        taking.join()
        assert got == b"head" + data[1000:901_000] + b"next" + data[-3:]
        with pytest.raises(Disconnected):
            wire.send_file(b"head", file.fileno(), 0, 10)
