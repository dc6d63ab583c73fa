"""Copy on write: with what it says must be written, clusters hold the new data and all they held before."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qcow2c
from qcow2c.format import derived, layout
from qcow2c.format.tables import L2_OFFSET, L2_ZERO, Table
from qcow2c.layers.reader import Reader
from qcow2c.storage.sources import WritableMemory
from qcow2c.writer import cow
from qcow2c.writer.cow import GuestBytes
from qcow2c.writer.mapping import Mapping
from tests.building import L1_COPIED, Builder, deflate, packed_words

EXTENDED_L2 = derived.INCOMPATIBLE_FEATURES["extended_l2"].mask
CLUSTERS = 8
JUNK = b"\xa5"


@cache
def made(*, extended: bool, backing: bool) -> tuple[bytes, int, bytes]:
    """Return an image with clusters of all kinds, where its L2 table is, and what lies below."""
    bits = 14 if extended else 12
    size, chooser = 1 << bits, random.Random(1)
    builder = Builder(CLUSTERS * size, cluster_bits=bits, incompatible=EXTENDED_L2 if extended else 0)
    if extended:
        for cluster, bitmap in ((1, 0x0F0F << 32 | 0xF0F0), (2, 0xFFFFFFFF), (5, 1 << 32 | 6), (6, 0)):
            builder.data(cluster, chooser.randbytes(size), bitmap)
        builder.entry(3, 0, 0xFF << 32)
    else:
        for cluster in (1, 2, 6):
            builder.data(cluster, chooser.randbytes(size))
        builder.entry(3, L2_ZERO)
    builder.compressed(4, deflate(b"packed".ljust(size, b"!")))
    if backing:
        builder.backing_file = b"below"
    return builder.build(), builder.l1[0] & ~L1_COPIED, chooser.randbytes(5 * size + 100)


class Subject:
    """An image of eight clusters, over a backing file or not, and the L2 table that maps them."""

    def __init__(self, *, extended: bool = False, backing: bool = True) -> None:
        image, self.table_offset, below = made(extended=extended, backing=backing)
        self.size = 1 << (14 if extended else 12)
        self.below = below if backing else False
        self.data = bytearray(image)
        self.reader = self.open()
        self.table = Table(layout.words(image[self.table_offset : self.table_offset + self.size]), self.table_offset)

    @property
    def mapping(self) -> Mapping:
        return qcow2c.open(WritableMemory(self.data), "r+", backing=self.below, trust=True).engine.mapping

    def open(self) -> Reader:
        return qcow2c.open(WritableMemory(self.data), backing=self.below).layer

    def disk(self) -> bytearray:
        found = bytearray(CLUSTERS * self.size)
        self.open().read_into(memoryview(found), 0)
        return found

    def write(self, guest_offset: int, data: bytes, *, in_place: bool, fresh: bool) -> None:
        """Do what the engine does with the pieces: to new clusters, or to those of the first cluster."""
        base = guest_offset // self.size * self.size
        end = -(-(guest_offset + len(data)) // self.size) * self.size
        if in_place:
            words = self.table.words[base // self.size * self.reader.geometry.l2_entry_words]
            host = words & L2_OFFSET
        else:
            host = len(self.data)
            self.data += (b"\0" if fresh else JUNK) * (end - base)
        pieces = cow.pieces(self.reader, self.table, guest_offset, memoryview(data), in_place=in_place, fresh=fresh)
        assert [piece.guest_offset for piece in pieces] == sorted(piece.guest_offset for piece in pieces)
        for piece in pieces:
            at = host + piece.guest_offset - base
            self.data[at : at + len(piece.data)] = piece.data
        self.mapping.point(self.table, guest_offset, guest_offset + len(data), host)
        self.data[self.table_offset : self.table_offset + self.size] = packed_words(self.table.words)


@pytest.mark.parametrize("extended", [False, True])
@given(data=st.data())
def test_a_write_to_new_clusters_changes_no_other_byte(*, extended: bool, data: st.DataObject) -> None:
    subject = Subject(extended=extended, backing=data.draw(st.booleans()))
    total = CLUSTERS * subject.size
    start = data.draw(st.integers(0, total - 1))
    length = data.draw(st.one_of(st.just(1), st.just(512), st.integers(1, 2 * subject.size)))
    content = b"new" * subject.size
    content = content[: min(length, total - start)]
    expected = subject.disk()
    expected[start : start + len(content)] = content
    subject.write(start, content, in_place=False, fresh=data.draw(st.booleans()))
    assert subject.disk() == expected


@pytest.mark.parametrize("extended", [False, True])
@given(cluster=st.sampled_from([1, 2, 6]), data=st.data())
def test_a_write_in_place_changes_no_other_byte(*, extended: bool, cluster: int, data: st.DataObject) -> None:
    subject = Subject(extended=extended)
    start = data.draw(st.integers(0, subject.size - 1))
    content = b"new" * subject.size
    content = content[: data.draw(st.integers(1, subject.size - start))]
    expected = subject.disk()
    start += cluster * subject.size
    expected[start : start + len(content)] = content
    subject.write(start, content, in_place=True, fresh=False)
    assert subject.disk() == expected


def pieces_of(
    subject: Subject, start: int, length: int, *, in_place: bool = False, fresh: bool = False
) -> list[GuestBytes]:
    data = memoryview(b"n" * length)
    return cow.pieces(subject.reader, subject.table, start, data, in_place=in_place, fresh=fresh)


def lengths(pieces: list[GuestBytes]) -> list[tuple[int, int]]:
    return [(piece.guest_offset, len(piece.data)) for piece in pieces]


def test_no_more_is_copied_than_must_be() -> None:
    subject = Subject(backing=False)
    size = subject.size
    assert lengths(pieces_of(subject, 2 * size + 10, 5, in_place=True)) == [(2 * size + 10, 5)]
    assert lengths(pieces_of(subject, 2 * size, size)) == [(2 * size, size)]
    assert lengths(pieces_of(subject, 7 * size + 10, 5, fresh=True)) == [(7 * size + 10, 5)]
    assert lengths(pieces_of(subject, 2 * size + 10, 5)) == [(2 * size, size)], "a whole cluster at once"
    over_two = pieces_of(subject, 2 * size - 10, 20)
    assert lengths(over_two) == [(size, size - 10), (2 * size - 10, 20), (2 * size + 10, size - 10)]


def test_only_subclusters_that_are_touched_are_filled_up() -> None:
    subject = Subject(extended=True)
    unit = subject.size // 32
    start = 6 * subject.size + 3 * unit + 100
    assert lengths(pieces_of(subject, start, 10, in_place=True)) == [
        (start - 100, 100),
        (start, 10),
        (start + 10, unit - 110),
    ]
    moved = lengths(pieces_of(subject, start - subject.size, 10))
    assert moved[0] == (5 * subject.size + unit, 2 * unit + 100), "its two subclusters with data come along"


def test_zeros_are_told_by_the_tables_of_all_layers_alone() -> None:
    subject = Subject()
    size = subject.size
    reads = [cow.reads_as_zeros(subject.reader, cluster * size, size) for cluster in range(CLUSTERS)]
    assert reads == [False, False, False, True, False, False, False, True]
    assert cow.reads_as_zeros(subject.reader, 6 * size + 10 * size, size), "behind the disk"
    assert not cow.reads_as_zeros(subject.reader, 3 * size - 1, 2)


def test_pieces_that_lie_together_are_written_together() -> None:
    found = [GuestBytes(0, b"ab"), GuestBytes(2, b"c"), GuestBytes(9, b"d"), GuestBytes(10, b"e")]
    assert list(cow.together(found)) == [found[:2], found[2:]]
    assert list(cow.together([])) == []


@pytest.mark.parametrize("length", range(8))
def test_buffers_are_cut_where_the_disk_ends(length: int) -> None:
    assert b"".join(cow.cut([b"abc", b"", bytearray(b"defg")], length)) == b"abcdefg"[:length]
