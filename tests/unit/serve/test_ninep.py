"""The 9P server, with a client that says right things and wrong ones."""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qcow2c
from qcow2c.serve.folder import Folder, open_folder
from qcow2c.serve.ninep_fids import MAX_FIDS
from tests.ninep_client import NinePClient, NinePError, connected, files, text

MIB = 1 << 20
DIALECTS = [b"9P2000", b"9P2000.u", b"9P2000.L"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    qcow2c.create(tmp_path / "disk", MIB)
    with qcow2c.open(tmp_path / "disk", "r+") as image:
        image.pwrite(b"before", 1000)
        image.snapshots.create("one")
        image.snapshots.create("a/b")
        image.pwrite(b"after!", 1000)
    return tmp_path / "disk"


@pytest.fixture
def folder(path: Path) -> Iterator[Folder]:
    with open_folder(path) as folder:
        yield folder


@pytest.fixture
def writable(path: Path) -> Iterator[Folder]:
    with open_folder(path, writable=True) as folder:
        yield folder


@pytest.mark.parametrize("dialect", DIALECTS)
def test_disk_and_snapshots_are_read(dialect: bytes, folder: Folder) -> None:
    with connected(folder, dialect) as client:
        assert client.walk(0, 1, b"data") == 1 and client.walk(0, 2, b"snapshots", b"one") == 2
        assert client.open(1) == 65536 - 24
        client.open(2)
        assert client.read(1, 1000, 6) == b"after!" and client.read(2, 1000, 6) == b"before"
        assert client.read(1, MIB - 3, 100) == bytes(3) and client.read(1, MIB, 1) == b"" == client.read(1, 1 << 63, 9)
        assert len(client.read(1, 0, MIB)) == 65536 - 24
        client.clunk(1)
        with pytest.raises(NinePError):
            client.read(1, 0, 1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_disk_is_written_and_durable_once_it_is_closed(dialect: bytes, writable: Folder, path: Path) -> None:
    with connected(writable, dialect) as client:
        client.walk(0, 1, b"data")
        client.open(1, os.O_RDWR)
        assert client.write(1, 5, b"written") == 7 and client.read(1, 4, 9) == b"\0written\0"
        assert client.write(1, MIB - 2, b"1234") == 2
        with pytest.raises(NinePError) as caught:
            client.write(1, MIB, b"x")
        assert caught.value.number in (0, errno.ENOSPC)
        assert client.write(1, MIB, b"") == 0
        client.clunk(1)
        with qcow2c.open(path, share=True) as image:
            assert image.pread(7, 5) == b"written"
        client.walk(0, 2, b"snapshots", b"one")
        with pytest.raises(NinePError):
            client.open(2, os.O_WRONLY)


def test_what_a_client_wrote_that_went_away_is_durable(writable: Folder, path: Path) -> None:
    with connected(writable) as client:
        client.walk(0, 1, b"data")
        client.open(1, 1)
        client.write(1, 0, b"kept")
        with pytest.raises(NinePError, match="not open for reading"):
            client.read(1, 0, 1)
    with qcow2c.open(path, share=True) as image:
        assert image.pread(4, 0) == b"kept"


def test_files_say_what_they_are(folder: Folder) -> None:
    with connected(folder) as client:
        root = client.stat(0)
        assert root.is_directory and root.mode == 0o555
        client.open(0)
        shown = files(client.read(0, 0, 4096))
        assert [(one.name, one.is_directory, one.length, one.mode) for one in shown] == [
            (b"data", False, MIB, 0o444), (b"snapshots", True, 0, 0o555)
        ]  # fmt: skip
        client.walk(0, 1, b"snapshots")
        client.open(1)
        whole = client.read(1, 0, 4096)
        names = [one.name for one in files(whole)]
        assert names == [b"one", b"a%2Fb"]
        first = client.read(1, 0, len(whole) - 1)
        assert [one.name for one in files(first)] == [b"one"]
        assert files(client.read(1, len(first), 4096))[0].name == b"a%2Fb" and client.read(1, len(whole), 100) == b""
        with pytest.raises(NinePError, match="no entry begins at 3"):
            client.read(1, 3, 4096)
        assert client.walk(0, 2, b"snapshots", b"..", b"data") == 3 and client.stat(2).name == b"data"


def test_linux_dialect_lists_and_describes(folder: Folder) -> None:
    with connected(folder, b"9P2000.L") as client:
        client.walk(0, 1)
        client.open(1, os.O_DIRECTORY)
        rest = client.ask(40, struct.pack("<IQI", 1, 0, 4096))[4:]
        names, cookies = [], []
        while rest:
            cookie, kind, length = struct.unpack("<QBH", rest[13:24])
            names.append((rest[24 : 24 + length], kind))
            cookies.append(cookie)
            rest = rest[24 + length :]
        assert names == [(b".", 4), (b"..", 4), (b"data", 8), (b"snapshots", 4)] and cookies == [1, 2, 3, 4]
        assert client.ask(40, struct.pack("<IQI", 1, 4, 4096)) == bytes(4)
        client.walk(0, 2, b"data")
        found = client.ask(24, struct.pack("<IQ", 2, 0x7FF))
        valid, mode, size = found[:8], found[21:25], found[49:57]
        assert struct.unpack("<QIQ", valid + mode + size) == (0x7FF, 0o100444, MIB) and len(found) == 153
        assert len(client.ask(8, struct.pack("<I", 0))) == 60


def test_what_changes_the_files_themselves_is_refused(writable: Folder) -> None:
    with connected(writable, b"9P2000.L") as client:
        client.walk(0, 1, b"data")
        for kind, body in (
            (14, struct.pack("<I", 0) + text(b"new") + bytes(12)),
            (76, struct.pack("<I", 0) + text(b"data") + bytes(4)),
            (72, struct.pack("<I", 0) + text(b"dir") + bytes(8)),
        ):
            with pytest.raises(NinePError) as caught:
                client.ask(kind, body)
            assert caught.value.number == errno.EPERM
        set_size = struct.pack("<IIIIIQ", 1, 8, 0, 0, 0, 5) + bytes(32)
        with pytest.raises(NinePError) as caught:
            client.ask(26, set_size)
        assert caught.value.number == errno.EPERM
        for size in (0, MIB):
            client.ask(26, struct.pack("<IIIIIQ", 1, 8, 0, 0, 0, size) + bytes(32))
        client.ask(50, struct.pack("<II", 1, 0))
        with pytest.raises(NinePError) as caught:
            client.ask(122, struct.pack("<I", 1))
        assert caught.value.number == errno.EPERM
        with pytest.raises(NinePError) as caught:
            client.clunk(1)
        assert caught.value.number == errno.EBADF


def test_wstat_takes_what_changes_nothing(writable: Folder) -> None:
    same = bytes(2) + b"\xff" * 39

    def wstat(name: bytes, length: bytes = b"\xff" * 8) -> bytes:
        stat = same[:33] + length + text(name) + text(b"") * 3
        return struct.pack("<I", 1) + text(stat)

    with connected(writable) as client:
        client.walk(0, 1, b"data")
        client.open(1, 1)
        client.ask(126, wstat(b""))
        client.ask(126, wstat(b"data", bytes(8)))
        for body, why in ((wstat(b"other"), "names are"), (wstat(b"", b"\1" + bytes(7)), "keeps its size")):
            with pytest.raises(NinePError, match=why):
                client.ask(126, body)


def test_versions_are_agreed_on(folder: Folder) -> None:
    with connected(folder, None) as client:
        with pytest.raises(NinePError, match="no version was agreed on"):
            client.attach()
        assert client.version(b"9P1999") == (65536, b"unknown")
        assert client.version(b"9P2000.x") == (65536, b"9P2000")
        assert client.version(b"9P2000.L", 1 << 31) == ((1 << 20) + 24, b"9P2000.L")
        client.attach(7)
        assert client.version(b"9P2000", 8192) == (8192, b"9P2000")
        with pytest.raises(NinePError, match="there is no fid 7"):
            client.stat(7)
        with pytest.raises(NinePError, match="less than 512"):
            client.version(b"9P2000", 100)


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        (99, b"", "no request has the number 99"),
        (24, bytes(12), "9P2000 has no getattr"),
        (102, struct.pack("<I", 5) + text(b"") * 2, "nobody is asked"),
        (116, bytes(5), "a message that is none"),
        (124, bytes(9), "5 bytes are left over"),
        (110, struct.pack("<IIH", 0, 1, 17) + text(b"x") * 17, "17 names"),
        (110, struct.pack("<IIH", 0, 1, 1) + text(b"x"), "No such file"),
        (110, struct.pack("<IIH", 9, 1, 0), "there is no fid 9"),
        (104, struct.pack("<II", 1, 2) + text(b"") * 2, "nobody is asked"),
        (104, struct.pack("<II", 1, 0xFFFFFFFF) + text(b"") + text(b"etc"), "one tree"),
        (104, struct.pack("<II", 0, 0xFFFFFFFF) + text(b"") * 2, "fid 0 is in use"),
        (118, struct.pack("<IQI", 0, 0, 1000) + b"short", "a message that is none"),
        (116, struct.pack("<IQI", 0, 0, 10), "not open"),
        (112, struct.pack("<IB", 0, 1), "Is a directory"),
        (112, struct.pack("<IB", 0, 0x40), "nothing can be removed"),
    ],
)
def test_wrong_requests_are_answered(kind: int, body: bytes, why: str, folder: Folder) -> None:
    with connected(folder) as client:
        with pytest.raises(NinePError, match=why):
            client.ask(kind, body)
        assert client.stat(0).is_directory


def test_limits(folder: Folder) -> None:
    with connected(folder) as client:
        with pytest.raises(NinePError, match="more than 65536"):
            client.ask(118, bytes(200_000))
        for fid in range(1, MAX_FIDS):
            client.walk(0, fid)
        with pytest.raises(NinePError, match="more than 4096 fids"):
            client.walk(0, MAX_FIDS)
        client.clunk(5)
        client.walk(0, MAX_FIDS)
        assert client.ask(108, struct.pack("<H", 1)) == b""
        client.socket.sendall(struct.pack("<IBH", 6, 100, 0))
        with pytest.raises((EOFError, ConnectionError)):
            client.answer()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1 << 32), dialect=st.sampled_from(DIALECTS))
def test_no_message_ends_the_server(seed: int, dialect: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("fuzz") / "disk"
    qcow2c.create(place, MIB)
    chance = random.Random(seed)
    with open_folder(place, writable=True) as folder:
        with connected(folder, dialect) as client:
            for fid in (1, 2):
                client.walk(0, fid, b"data")
                client.open(fid, 2)
            for _ in range(30):
                _send_something(client, chance)
        with connected(folder, dialect) as client:
            assert client.walk(0, 1, b"data") == 1
    assert qcow2c.check(place).exit_code == 0


KINDS = [8, 12, 14, 22, 24, 26, 30, 40, 50, 52, 54, 72, 102, 104, 108, 110, 112, 114, 116, 118, 120, 122, 124, 126]


def _send_something(client: NinePClient, chance: random.Random) -> None:
    kind = chance.choice(KINDS) if chance.random() < 0.9 else chance.randrange(256)
    words = [chance.choice((0, 1, 2, 3, 255, 4096, MIB, (1 << 32) - 1)) for _ in range(chance.randrange(6))]
    body = b"".join(struct.pack(chance.choice(("<I", "<Q")), word) for word in words)
    body += chance.randbytes(chance.randrange(20))
    with suppress(NinePError):
        client.ask(kind, body)


def test_clients_at_once_see_one_disk(writable: Folder, path: Path) -> None:
    piece, rounds = 4096, 60
    failed: list[str] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        model = bytearray(MIB // 4)
        with connected(writable, DIALECTS[number % 3]) as client:
            client.walk(0, 1, b"data")
            client.open(1, 2)
            for _ in range(rounds):
                at = chance.randrange(len(model) - piece)
                data = chance.randbytes(chance.randrange(1, piece))
                client.write(1, number * len(model) + at, data)
                model[at : at + len(data)] = data
                at = chance.randrange(len(model) - piece)
                if client.read(1, number * len(model) + at, piece) != model[at : at + piece]:
                    failed.append(f"client {number} at {at}")
            client.clunk(1)
        with qcow2c.open(path, share=True) as image:
            if image.pread(len(model), number * len(model)) != model:
                failed.append(f"client {number} in the end")

    with qcow2c.open(path, share=True) as image:
        assert image.pread(6, 1000) == b"after!"
    with connected(writable) as client:
        client.walk(0, 1, b"data")
        client.open(1, 1)
        client.write(1, 1000, bytes(6))
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
