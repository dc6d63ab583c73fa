"""`serve` as a command: where it listens, when it ends, and what it refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from tests import nbd_client as client
from tests.nbd_client import Client

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk"
    qcow2c.create(image, SIZE)
    with qcow2c.open(image, "r+") as disk:
        disk.pwrite(b"first", 0)
        disk.snapshots.create("one")
    return image


def serve(*words: str | Path, **how: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qcow2c", "serve", "nbd", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)  # type: ignore[call-overload, no-any-return]


@contextmanager
def at(place: str, name: bytes = b"") -> Iterator[Client]:
    """Connect to a socket as soon as it is there."""
    for _ in range(400):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(place)
            break
        except OSError:
            connection.close()
            time.sleep(0.05)
    with connection:
        found = Client(connection)
        found.greet()
        found.go(name)
        yield found
        found.send(client.DISC)


def test_it_ends_with_the_last_client_and_what_was_written_is_there(path: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "socket")
    with serve("--rw", "-k", place, path) as server:
        with at(place) as found:
            assert found.do(client.WRITE, 100, data=b"written").error == 0
        assert server.wait(30) == 0
        assert server.stderr is not None and "read-write, at nbd+unix:///?socket=" in server.stderr.read()
    assert not os.path.exists(place)
    with qcow2c.open(path) as disk:
        assert disk.pread(7, 100) == b"written"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number: signal.Signals, path: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "socket")
    with serve("--rw", "-t", "-k", place, "--pid-file", str(tmp_path / "pid"), path) as server, at(place) as found:
        assert found.do(client.WRITE, 0, data=b"w" * 65536).error == 0
        assert (tmp_path / "pid").read_text() == f"{server.pid}\n"
        server.send_signal(number)
        assert server.wait(30) == 0
        found.send = lambda *_: 0  # type: ignore[method-assign, assignment]
    assert not (tmp_path / "pid").exists()
    with qcow2c.open(path) as disk:
        assert disk.pread(65536, 0) == b"w" * 65536
    assert qcow2c.check(path).exit_code == 0


def test_killed_at_any_time_it_leaves_a_sound_image(path: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "socket")
    with serve("--rw", "-t", "-k", place, path) as server, at(place) as found:
        for number in range(16):
            assert found.do(client.WRITE, number * 65536, data=b"w" * 65536).error == 0
            if number == 8:
                assert found.do(client.FLUSH).error == 0
        server.kill()
        server.wait(30)
        found.send = lambda *_: 0  # type: ignore[method-assign, assignment]
    assert qcow2c.check(path).exit_code in (0, 3)
    with qcow2c.open(path) as disk:
        assert disk.pread(9 * 65536, 0) == b"w" * 9 * 65536, "it was flushed"


def test_it_goes_to_the_background_when_it_is_ready(path: Path, tmp_path: Path) -> None:
    place, pid = str(tmp_path / "socket"), tmp_path / "pid"
    with serve("--fork", "--pid-file", str(pid), "-k", place, path) as parent:
        assert parent.wait(30) == 0
    with at(place) as found:
        assert found.do(client.READ, 0, 5).data == b"first"
    with serve("--fork", "-k", place, tmp_path / "none") as parent:
        assert parent.wait(30) == 1
        assert parent.stderr is not None and "No such file" in parent.stderr.read()


def test_a_command_has_the_place_and_its_status_is_ours(path: Path) -> None:
    script = 'test -S "$unixsocket" && echo "$uri"; exit 3'
    with serve("--run", script, path) as server:
        out, err = server.communicate(timeout=60)
    assert (server.returncode, err) == (3, "")
    assert out.startswith("nbd+unix:///?socket=/")


def test_what_would_be_served_is_listed(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nbd", "--list", "-x", "disk", str(path)]) == 0
    assert capfd.readouterr().out == f"disk\t{SIZE}\tread-only\nsnapshots/one\t{SIZE}\tread-only\n"


def test_a_port_of_the_machine_alone(path: Path) -> None:
    with serve("-p", "0", path) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert f"{SIZE} bytes, read-only, at nbd://127.0.0.1:" in line
        port = int(line.rsplit(":", 1)[1].rstrip("/\n"))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            found = Client(connection)
            found.greet()
            found.go(b"snapshots/one")
            assert found.do(client.READ, 0, 5).data == b"first"
            found.send(client.DISC)
        assert server.wait(30) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rw", "-r"], "exclude each other"),
        (["-e", "0"], "between 1 and"),
        (["-p", "70000"], "below 65536"),
        (["-p", "1", "-k", "x"], "exclude each other"),
        (["-s", "one", "-l", "one"], "exclude each other"),
        (["--tls", "on"], "need each other"),
        (["--tls", "on", "--tls-certificates", "/nowhere"], "cannot be used"),
        (["--run", "true", "--fork"], "exclude each other"),
        (["--rw", "-U"], "exclude each other"),
        (["-B", "none"], "there is no bitmap"),
        (["-s", "two"], "Can't find snapshot"),
        (["-o", "2M"], "do not lie on the disk"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], message: str, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "nbd", *words, str(path)]) == 1
    said = capfd.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_a_file_that_is_written_by_another_is_not_served(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with qcow2c.open(path, "r+"):
        assert main(["serve", "nbd", "--run", "true", str(path)]) == 1
    assert 'Failed to get shared "write" lock' in capfd.readouterr().err
