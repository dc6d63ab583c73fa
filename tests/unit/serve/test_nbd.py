"""The NBD protocol: what clients ask for is done, what is wrong is answered, and ends a connection at most."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qcow2c
from qcow2c.errors import StoreError
from qcow2c.serve.exports import Choices, ImageExport
from qcow2c.serve.nbd import Tls
from qcow2c.serve.nbd_messages import MAX_PAYLOAD, ProtocolError
from qcow2c.serve.opening import open_exports
from qcow2c.serve.wire import Disconnected
from tests import nbd_client as client
from tests.nbd_client import Client, served, text

MIB = 1 << 20
SIZE = 4 * MIB
INVAL, PERM, NOSPC, IO = 22, 1, 28, 5


def image_bytes() -> bytearray:
    """An image with data at 1 MiB, and a snapshot of it before that was there."""
    image = bytearray()
    qcow2c.create(image, SIZE)
    with qcow2c.open(image, "r+") as disk:
        disk.pwrite(b"before", 0)
        disk.snapshots.create("one")
        disk.pwrite(random.Random(1).randbytes(MIB), MIB)
    return image


@contextmanager
def connected(image: bytearray | bytes, *, structured: bool = True, **choices: object) -> Iterator[Client]:
    """Serve an image, and be in the transmission phase with it."""
    with open_exports(image, choices=Choices(**choices)) as exports, served(exports) as (found, ended):  # type: ignore[arg-type]
        found.greet()
        found.go(structured=structured)
        yield found
        found.send(client.DISC)
    assert ended == []


# --- the handshake --------------------------------------------------------------------------------------------------


def test_exports_are_listed_and_described() -> None:
    with open_exports(image_bytes(), name="disk", description="a disk") as exports, served(exports) as (found, _):
        assert found.greet() == 3
        assert found.ask(client.LIST) == [
            (2, text(b"disk") + b"a disk"),
            (2, text(b"snapshots/one") + b"snapshot 1"),
            (1, b""),
        ]
        replies = dict(found.ask(client.INFO, text(b"disk") + struct.pack(">HHHH", 3, 1, 2, 3)))
        assert replies.keys() == {3, 1}
        assert found.ask(client.ABORT) == [(1, b"")]


def test_information_comes_before_the_choice_and_with_it() -> None:
    with open_exports(image_bytes()) as exports, served(exports) as (found, _):
        found.greet()
        for kind in (client.INFO, client.GO):
            replies = found.ask(kind, text(b"") + struct.pack(">HHH", 2, 1, 2))
            facts = {struct.unpack(">H", data[:2])[0]: data[2:] for reply, data in replies if reply == 3}
            assert facts[0][:8] == struct.pack(">Q", SIZE)
            assert facts[1] == facts[2] == b""
            assert facts[3] == struct.pack(">III", 1, 65536, MAX_PAYLOAD)
        assert found.do(client.READ, 0, 6).data == b"before"


@pytest.mark.parametrize("flags", [1, 3])
def test_the_old_way_to_choose_an_export(flags: int) -> None:
    with open_exports(image_bytes()) as exports, served(exports) as (found, _):
        found.greet(flags)
        found.option(client.EXPORT_NAME)
        assert struct.unpack(">QH", found.receive(10))[0] == SIZE
        if flags == 1:
            assert found.receive(124) == bytes(124)
        assert found.do(client.READ, 0, 6).data == b"before"


def test_what_is_wrong_in_the_handshake_is_answered_and_it_goes_on() -> None:
    def invalid(kind: int, data: bytes) -> int:
        [(reply, _)] = found.ask(kind, data)
        return reply & 0x7FFFFFFF

    with open_exports(image_bytes()) as exports, served(exports) as (found, _):
        found.greet()
        assert invalid(77, b"") == 1
        assert invalid(client.LIST, b"x") == 3
        assert invalid(client.GO, b"") == 3
        assert invalid(client.GO, text(b"") + struct.pack(">HH", 2, 1)) == 3
        assert invalid(client.INFO, struct.pack(">I", 1 << 30)) == 3
        assert invalid(client.GO, text(b"other") + bytes(2)) == 6
        assert invalid(client.STARTTLS, b"") == 2
        assert invalid(client.SET_META, text(b"") + bytes(4)) == 3, "structured replies come first"
        assert invalid(client.LIST, bytes(100_000)) == 9
        assert found.ask(client.STRUCTURED) == [(1, b"")]
        assert invalid(client.SET_META, text(b"other") + bytes(4)) == 6
        assert found.go(structured=False)[-1] == (1, b"")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda found: found.socket.sendall(struct.pack(">I", 1 << 31)),
        lambda found: found.socket.sendall(struct.pack(">I", 3) + b"SOMETHING ELSE THAN AN OPTION"),
        lambda found: (found.socket.sendall(struct.pack(">I", 3)), found.option(client.EXPORT_NAME, b"other")),
        lambda found: (found.socket.sendall(struct.pack(">I", 3)), found.option(client.LIST, length=1 << 31)),
    ],
)
def test_what_cannot_be_understood_ends_the_connection(wrong: object) -> None:
    with open_exports(image_bytes()) as exports, served(exports) as (found, ended):
        found.receive(18)
        wrong(found)  # type: ignore[operator]
        with pytest.raises((EOFError, ConnectionError)):
            found.receive(1)
    assert [type(exc) for exc in ended] == [ProtocolError]


def test_a_client_that_says_nothing_is_sent_away() -> None:
    with open_exports(image_bytes()) as exports, served(exports, seconds=0.2) as (found, ended):
        found.receive(18)
        with pytest.raises(EOFError):
            found.receive(1)
    assert [type(exc) for exc in ended] == [Disconnected]


def test_where_tls_is_required_nothing_is_told_without_it() -> None:
    with open_exports(image_bytes()) as exports:
        with served(exports, Tls(required=True)) as (found, _):
            found.greet()
            for kind in (client.LIST, client.GO, client.STRUCTURED, 77):
                assert found.ask(kind)[0][0] == (1 << 31 | 5)
            assert found.ask(client.STARTTLS)[0][0] == (1 << 31 | 2)
            assert found.ask(client.ABORT) == [(1, b"")]
        with served(exports, Tls(required=True)) as (found, ended):
            found.greet()
            found.option(client.EXPORT_NAME)
            with pytest.raises(EOFError):
                found.receive(1)
        assert [type(exc) for exc in ended] == [ProtocolError]


# --- requests -------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from([client.READ, client.WRITE, client.ZEROES, client.TRIM, client.FLUSH, client.CACHE]),
        st.integers(0, SIZE - 1),
        st.integers(1, 2 * MIB),
        st.sampled_from([0, client.FUA]),
    ),
    max_size=12,
)


@given(drawn=steps, structured=st.booleans(), detect=st.sampled_from(["off", "on", "unmap"]))
def test_any_requests_do_what_they_do_to_a_bytearray(
    *, drawn: list[tuple[int, int, int, int]], structured: bool, detect: str
) -> None:
    image, model = bytearray(), bytearray(SIZE)
    qcow2c.create(image, SIZE)
    with connected(image, structured=structured, writable=True, detect_zeroes=detect) as found:
        for number, (kind, offset, most, flags) in enumerate(drawn):
            length = min(most, SIZE - offset)
            part = slice(offset, offset + length)
            if kind == client.READ:
                assert found.do(kind, offset, length).data == model[part]
            elif kind == client.WRITE:
                data = bytes([number % 3]) * length
                assert found.do(kind, offset, data=data, flags=flags).error == 0
                model[part] = data
            elif kind in (client.ZEROES, client.TRIM):
                assert found.do(kind, offset, length, flags=flags).error == 0
                if kind == client.ZEROES:
                    model[part] = bytes(length)
                else:  # Parts of clusters may stay.
                    model[part] = found.do(client.READ, offset, length).data
            else:
                assert found.do(kind, *((offset, length) if kind == client.CACHE else ())).error == 0
        assert b"".join(found.do(client.READ, at, MIB).data for at in range(0, SIZE, MIB)) == model
    assert qcow2c.check(image).exit_code == 0
    with qcow2c.open(bytes(image)) as disk:
        assert disk.readall() == model


@pytest.mark.parametrize("structured", [False, True])
def test_wrong_requests_are_answered_and_the_next_ones_are_served(*, structured: bool) -> None:
    with connected(image_bytes(), structured=structured, writable=True) as found:
        assert found.do(client.READ, SIZE, 1).error == INVAL
        assert found.do(client.READ, (1 << 64) - 1, 1).error == INVAL
        assert found.do(client.WRITE, SIZE - 1, data=b"xx").error == NOSPC
        assert found.do(client.ZEROES, SIZE - 1, 2).error == NOSPC
        assert found.do(client.TRIM, SIZE, 1).error == INVAL
        assert found.do(99, 0, 1).error == INVAL
        assert found.do(client.FLUSH, flags=client.NO_HOLE).error == INVAL
        assert found.do(client.WRITE, 0, data=b"x" * 100, flags=1 << 14).error == INVAL
        assert found.do(client.READ, 0, MAX_PAYLOAD + 1).error == INVAL
        assert found.do(client.STATUS, 0, 512).error == INVAL, "no context was agreed on"
        assert found.do(client.READ, 0, 6, flags=client.DF).error == (0 if structured else INVAL)
        assert found.do(client.READ, 0, 6).data == b"before"


def test_a_read_only_export_takes_no_writes() -> None:
    with connected(bytes(image_bytes())) as found:
        for kind, data in ((client.WRITE, b"x" * 70_000), (client.ZEROES, b""), (client.TRIM, b"")):
            assert found.do(kind, 0, 0 if data else 512, data).error == PERM
        assert found.do(client.FLUSH).error == 0
        assert found.do(client.READ, 0, 6).data == b"before"


@pytest.mark.parametrize(
    "head", [b"no request at all, but long enough", struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 1 << 31)]
)
def test_a_request_that_cannot_be_understood_ends_the_connection(head: bytes) -> None:
    with open_exports(image_bytes()) as exports, served(exports) as (found, ended):
        found.greet()
        found.go()
        found.socket.sendall(head)
        with pytest.raises((EOFError, ConnectionError)):
            found.receive(1)
    assert [type(exc) for exc in ended] == [ProtocolError]


def test_what_fails_below_is_an_error_of_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(errno: int | None) -> object:
        def fails(*_: object, **__: object) -> None:
            raise StoreError("it is broken", errno=errno)

        return fails

    with connected(image_bytes(), writable=True) as found:
        for errno, expected in ((None, IO), (28, NOSPC), (13, PERM)):
            monkeypatch.setattr(ImageExport, "read_into", failing(errno))
            monkeypatch.setattr(ImageExport, "_write", failing(errno))
            assert found.do(client.READ, 0, 512).error == expected
            assert found.do(client.READ, 0, 2 * MIB).error == expected
            assert found.do(client.WRITE, 0, data=b"x" * 3 * MIB).error == expected
        monkeypatch.undo()
        assert found.do(client.READ, 0, 6).data == b"before"


def test_a_snapshot_is_an_export_of_its_own() -> None:
    with open_exports(image_bytes()) as exports, served(exports) as (found, _):
        found.greet()
        found.go(b"snapshots/one")
        assert found.do(client.READ, MIB, MIB).data == bytes(MIB)
        assert found.do(client.READ, 0, 6).data == b"before"
        found.send(client.DISC)


# --- contexts -------------------------------------------------------------------------------------------------------


def test_contexts_are_listed_chosen_and_told() -> None:
    image = image_bytes()
    with open_exports(image, choices=Choices(allocation_depth=True)) as exports, served(exports) as (found, _):
        found.greet()
        assert found.ask(client.STRUCTURED) == [(1, b"")]

        def names(kind: int, *queries: bytes) -> list[bytes]:
            data = text(b"") + struct.pack(">I", len(queries)) + b"".join(map(text, queries))
            return [content[4:] for reply, content in found.ask(kind, data) if reply == 4]

        every = [b"base:allocation", b"qemu:allocation-depth"]
        assert names(client.LIST_META) == every
        assert names(client.LIST_META, b"qemu:") == every[1:]
        assert names(client.LIST_META, b"other:x") == []
        assert names(client.SET_META, b"qemu:") == []
        assert names(client.SET_META, *every, b"other:x") == every
        found.ask(client.GO, text(b"") + bytes(2))
        found.structured = True
        answer = found.do(client.STATUS, 0, SIZE)
        assert answer.extents == {
            0: [(65536, 0), (MIB - 65536, 3), (MIB, 0), (SIZE - 2 * MIB, 3)],
            1: [(65536, 1), (MIB - 65536, 0), (MIB, 1), (SIZE - 2 * MIB, 0)],
        }
        assert found.do(client.STATUS, 0, SIZE, flags=client.REQ_ONE).extents == {0: [(65536, 0)], 1: [(65536, 1)]}
        assert found.do(client.STATUS, 0, 0).error == INVAL
        found.send(client.DISC)


def test_contexts_of_another_export_do_not_count() -> None:
    with open_exports(image_bytes()) as exports, served(exports) as (found, _):
        found.greet()
        found.ask(client.STRUCTURED)
        found.ask(client.SET_META, text(b"") + struct.pack(">I", 1) + text(b"base:allocation"))
        found.go(b"snapshots/one", structured=False)
        found.structured = True
        assert found.do(client.STATUS, 0, 512).error == INVAL
        found.send(client.DISC)


@pytest.mark.parametrize("structured", [True, False])
def test_what_is_sent_from_the_file_is_what_is_read(*, structured: bool, tmp_path: Path) -> None:
    data = image_bytes()
    (tmp_path / "disk").write_bytes(data)
    with qcow2c.open(data) as image:
        whole = image.readall()
    with open_exports(tmp_path / "disk") as exports, served(exports) as (found, ended):
        found.greet()
        found.go(structured=structured)
        for offset, length in ((0, SIZE), (MIB, MIB), (MIB - 5, 100_000), (MIB + 7, 65_536), (MIB + 65_000, 40_000)):
            assert found.do(client.READ, offset, length).data == whole[offset : offset + length]
        os.truncate(tmp_path / "disk", len(data) // 2)
        assert found.do(client.READ, 2 * MIB - 100_000, 100_000).error == IO
        assert found.do(client.READ, MIB, 65_536).data == whole[MIB : MIB + 65_536]
        found.send(client.DISC)
    assert ended == []
