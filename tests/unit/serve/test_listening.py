"""Where a server listens: nothing of another one is taken away, and nothing is left behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qcow2c.errors import StoreError, UsageError
from qcow2c.serve import listening


def test_a_port_is_local_and_may_be_any() -> None:
    with listening.tcp("127.0.0.1", 0) as (listener,):
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        assert listening.uri_of(listener, "nbd", "a b") == f"nbd://127.0.0.1:{port}/a%20b"
        with pytest.raises(StoreError, match=f"cannot listen at 127.0.0.1:{port}"), listening.tcp("127.0.0.1", port):
            pass
    with pytest.raises(StoreError, match="cannot listen"), listening.tcp("no.such.host.invalid", 0):
        pass


def test_a_socket_is_removed_in_the_end_and_one_left_over_makes_room(tmp_path: Path) -> None:
    path = str(tmp_path / "a socket")
    with listening.unix(path) as (listener,):
        assert listening.uri_of(listener, "nbd", "") == f"nbd+unix:///?socket={tmp_path}/a%20socket"
        with pytest.raises(UsageError, match="another server"), listening.unix(path):
            pass
    assert not os.path.exists(path)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    with listening.unix(path):
        assert os.path.exists(path)
    Path(path).write_text("a file")
    with pytest.raises(UsageError, match="no socket"), listening.unix(path):
        pass
    assert Path(path).read_text() == "a file"
    with pytest.raises(StoreError, match="cannot listen"), listening.unix(str(tmp_path / "no" / "socket")):
        pass


def test_a_socket_in_a_folder_of_its_own() -> None:
    with listening.unix_in_new_folder() as (listener,):
        folder = Path(listener.getsockname()).parent
        assert folder.stat().st_mode & 0o77 == 0
    assert not folder.exists()


def test_sockets_of_a_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening.handed_over() as found:
        assert found == []
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    for count in ("many", "1000"):
        monkeypatch.setenv("LISTEN_FDS", count)
        monkeypatch.setattr(listening, "_FIRST_HANDED_OVER", 1 << 20)
        with pytest.raises(UsageError, match="LISTEN_FDS"), listening.handed_over():
            pass
    with socket.socket(socket.AF_UNIX) as handed:
        monkeypatch.setattr(listening, "_FIRST_HANDED_OVER", handed.detach())
        monkeypatch.setenv("LISTEN_FDS", "1")
        with listening.handed_over() as (listener,):
            assert listener.family == socket.AF_UNIX
    assert "LISTEN_FDS" not in os.environ
