"""serve 9p: its words, what it makes, and where it is found."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from tests.ninep_client import NinePClient

Run = Callable[..., Any]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    qcow2c.create(tmp_path / "disk", 1 << 20)
    with qcow2c.open(tmp_path / "disk", "r+") as image:
        image.snapshots.create("one")
    return tmp_path / "disk"


def served(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qcow2c", "serve", "9p", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment}
    )


def test_what_would_be_served_is_listed(disk: Path) -> None:
    done = served(disk.parent, "--list", "--rw", "disk")
    assert done.stdout == "data\t1048576\tread-write\nsnapshots/one\t1048576\tread-only\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("-x name", "--export-name is for nbd alone"),
        ("-o 512", "--offset is for nbd alone"),
        ("-A", "--allocation-depth is for nbd alone"),
        ("-s name -k place", "-s, --port and --socket exclude each other"),
        ("-n 0", "a disk has some bytes"),
        ("-f raw -n 1M", "makes a qcow2 image"),
    ],
)
def test_what_makes_no_sense_is_refused(words: str, why: str, disk: Path) -> None:
    done = served(disk.parent, *words.split(), "disk")
    assert done.returncode == 1 and why in done.stderr


def test_new_is_for_9p_alone(disk: Path) -> None:
    command = [sys.executable, "-m", "qcow2c", "serve", "nbd", "-n", "1M", "disk"]
    done = subprocess.run(command, cwd=disk.parent, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "--new is for 9p alone" in done.stderr


def test_missing_image_is_made_and_one_that_is_there_stays(disk: Path) -> None:
    assert served(disk.parent, "-L", "-n", "3M", "new").stdout == "data\t3145728\tread-only\n"
    assert served(disk.parent, "-L", "-n", "5M", "new").stdout == "data\t3145728\tread-only\n"
    assert qcow2c.info(disk.parent / "new").virtual_size == 3 << 20


def test_command_is_told_where_the_server_is(disk: Path) -> None:
    done = served(disk.parent, "--run", "echo $uri; test -S $unixsocket", "disk")
    assert done.returncode == 0 and done.stdout.startswith("unix!/")
    assert served(disk.parent, "-p", "0", "--run", "echo $uri", "disk").stdout.startswith("tcp!127.0.0.1!")
    done = served(disk.parent, "-s", "vm", "--run", "echo $uri", "disk", NAMESPACE=str(disk.parent / "ns"))
    assert done.stdout == f"unix!{disk.parent / 'ns' / 'vm'}\n"
    assert served(disk.parent, "-s", "./vm", "--run", "echo $uri", "disk").stdout == f"unix!{disk.parent / 'vm'}\n"


def test_it_stops_at_a_signal_with_everything_durable(disk: Path) -> None:
    place = disk.parent / "place"
    command = [sys.executable, "-m", "qcow2c", "serve", "9p", "--rw", "-k", "place", "disk"]
    with subprocess.Popen(command, cwd=disk.parent, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert server.stderr.readline() == f"qcow2c: serving disk, 1048576 bytes, read-write, at unix!{place}\n"
        for data in (b"first", b"again"):  # It stays when a client has gone.
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(place))
                client = NinePClient(connection)
                client.version(b"9P2000.u")
                client.attach()
                client.walk(0, 1, b"data")
                client.open(1, 1)
                client.write(1, 0, data)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(place))
            client = NinePClient(connection)
            client.version(b"9P2000")
            client.attach()
            client.walk(0, 1, b"data")
            client.open(1, 1)
            client.write(1, 100, b"last")
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        assert server.stderr.read() == ""
    with qcow2c.open(disk) as image:
        assert image.pread(5, 0) == b"again" and image.pread(4, 100) == b"last"


def test_kill_leaves_what_was_synced(disk: Path) -> None:
    command = [sys.executable, "-m", "qcow2c", "serve", "9p", "--rw", "-k", "place", "disk"]
    with subprocess.Popen(command, cwd=disk.parent, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        server.stderr.readline()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(disk.parent / "place"))
            client = NinePClient(connection)
            client.version(b"9P2000.L")
            client.attach()
            client.walk(0, 1, b"data")
            client.open(1, 2)
            client.write(1, 0, b"synced")
            client.ask(50, struct.pack("<II", 1, 0))
            client.write(1, 500_000, b"lost, perhaps")
            server.kill()
            server.wait(30)
    assert qcow2c.check(disk).exit_code in (0, 3)
    with qcow2c.open(disk) as image:
        assert image.pread(6, 0) == b"synced"
