"""What lies in free space: each kind is told, adjacent pieces are one, and what is too much is not read."""

from __future__ import annotations

import gzip
import random
import struct
import zlib

import pytest

from qcow2c.errors import Span
from qcow2c.forensic.free_space import free_section, kind_of_bytes
from qcow2c.forensic.nodes import Node
from qcow2c.storage.sources import Memory

NOISE = random.Random(1).randbytes(4096)
PACKER = zlib.compressobj(9, zlib.DEFLATED, -15)
PACKED = (
    PACKER.compress(b"".join(b"%d %d\n" % (number, number * 7919 % 10007) for number in range(9000))) + PACKER.flush()
)

KINDS = {
    "zero": bytes(4096),
    "text": (b"a line of text\n" * 40).ljust(4096, b"\0"),
    "table of offsets": struct.pack(">512Q", *(0x8000000000000000 | number << 12 for number in range(1, 513))),
    "refcounts": struct.pack(">2048H", *[1] * 1000, *[0] * 1000, *[2] * 48),
    "qcow2 header": b"QFI\xfb" + NOISE[:4092],
    "vmdk header": b"KDMV" + bytes(4092),
    "compressed, gzip": gzip.compress(NOISE),
    "compressed, deflate": PACKED[:4096],
    "high entropy": NOISE,
    "data": bytes(range(48)) * 85,
}


@pytest.mark.parametrize(("kind", "data"), KINDS.items(), ids=KINDS)
def test_each_kind_is_told(kind: str, data: bytes) -> None:
    assert kind_of_bytes(data, 4 << 20)[0] == kind


def test_entropy_is_in_bits_a_byte() -> None:
    assert kind_of_bytes(bytes(range(256)) * 16, 1 << 20)[1] == pytest.approx(8)
    assert kind_of_bytes(b"\xff" * 4096, 1 << 20)[1] == 0


@pytest.mark.parametrize("data", [b"\x01", b"\0\x01", b"\xff" * 7, b"text"])
def test_short_pieces_are_something(data: bytes) -> None:
    assert kind_of_bytes(data, 100)[0] in ("data", "text", "refcounts")


def of_map(*parts: tuple[str, int, int]) -> list[Node]:
    return [Node("x", Span(at, length), use) for use, at, length in parts]


def test_adjacent_pieces_are_one_and_what_is_owned_is_left_out() -> None:
    store = Memory(bytes(8192) + NOISE + NOISE + bytes(4096))
    nodes = of_map(("owned", 0, 4096), ("free", 4096, 8192), ("leak", 12288, 4096), ("free", 16384, 9999))
    found = [(node.name, node.value, node.span) for node in free_section(lambda: nodes, store, 4096).children]
    assert found == [
        ("zero", "free", Span(4096, 4096)), ("high entropy", "free", Span(8192, 4096)),
        ("high entropy", "leak", Span(12288, 4096)), ("zero", "free", Span(16384, 4096)),
    ]  # fmt: skip


def test_no_more_is_read_than_may_be() -> None:
    store = Memory(NOISE * 4)
    nodes = of_map(("free", 0, 4 * 4096))
    found = [node.name for node in free_section(lambda: nodes, store, 4096, most_bytes=8192).children]
    assert found == ["high entropy", "not looked at"]
