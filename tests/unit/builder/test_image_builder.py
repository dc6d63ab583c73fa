"""ImageBuilder against a bytearray: what was added is there, refcounts are right, and the magic value comes last."""

from __future__ import annotations

import random
from typing import Any

import pytest

import qcow2c
from qcow2c.builder import image_builder
from qcow2c.builder.image_builder import ImageBuilder
from qcow2c.builder.options import COMPRESSION_TYPES, CreateOptions
from qcow2c.errors import LimitExceeded, NotQcow2, StoreError, UsageError
from qcow2c.format import codecs
from qcow2c.storage.sources import WritableMemory
from qcow2c.storage.store import Buffer
from qcow2c.structs import MAGIC, Limit

MIB = 1 << 20


class Recorded(WritableMemory):
    """Memory that writes down each change, and fails at one of them."""

    def __init__(self, data: bytearray, fails_at: int = -1) -> None:
        super().__init__(data)
        self.calls: list[tuple[str, int, int]] = []
        self.fails_at = fails_at

    def _call(self, name: str, offset: int, length: int) -> None:
        if len(self.calls) == self.fails_at:
            raise StoreError("no space left")
        self.calls.append((name, offset, length))

    def pwrite(self, data: Buffer, offset: int) -> None:
        self._call("write", offset, len(data))
        super().pwrite(data, offset)

    def flush(self) -> None:
        self._call("flush", 0, 0)

    def truncate(self, size: int) -> None:
        self._call("truncate", size, 0)
        super().truncate(size)


def drawn_options(chooser: random.Random) -> tuple[int, dict[str, Any]]:
    """Return a size of a disk and options, of every kind."""
    extended = chooser.random() < 0.3
    bits = chooser.choice([14, 16, 21] if extended else [9, 9, 10, 12, 16, 21])
    old = not extended and chooser.random() < 0.2
    options: dict[str, Any] = {"cluster_size": 1 << bits, "compat": "0.10" if old else "1.1"}
    if not old:
        options["extended_l2"] = extended
        options["refcount_bits"] = 1 << chooser.randrange(7)
        options["compression_type"] = chooser.choice(["zlib", "zstd"])
    clusters = chooser.randrange(0, 1500 if bits < 12 else 200 if bits < 16 else 12)
    return max(0, (clusters << bits) - chooser.choice([0, 512])), options


def fill(builder: ImageBuilder, chooser: random.Random, size: int) -> bytearray:
    """Add data, compressed clusters and zeros in random order, with gaps; return the disk that it makes."""
    cluster_size = builder.geometry.cluster_size
    compress = codecs.compressor(COMPRESSION_TYPES[builder.options.compression_type])
    disk, at = bytearray(size), 0
    while at < size:
        length = min(size - at, chooser.randrange(1, 6) * cluster_size)
        kind = chooser.choice("dczs")
        if kind == "d":
            data = chooser.randbytes(length)
            builder.add_data(at, memoryview(data))
            disk[at : at + length] = data
        elif kind == "c":
            length = min(size - at, cluster_size)
            data = (chooser.randbytes(1) * chooser.randrange(1, 400)).ljust(length, b"c")[:length]
            packed = compress(data.ljust(cluster_size, b"\0"))
            if len(packed) < cluster_size:
                builder.add_compressed(at, packed)
            else:
                builder.add_data(at, memoryview(data))
            disk[at : at + length] = data
        elif kind == "z" and builder.geometry.has_zero_bit:
            builder.add_zeros(at, length)
        at += -(-length // cluster_size) * cluster_size
    return disk


def assert_holds(image: bytes | bytearray, disk: bytes | bytearray) -> None:
    with qcow2c.open(image) as opened:
        assert opened.size() == len(disk)
        assert opened.pread(len(disk), 0) == disk
    result = qcow2c.check(image)
    assert result.exit_code == 0, list(result.messages)[:5]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("write_bytes", [4 * MIB, 8192])
def test_a_built_image_holds_what_was_added(seed: int, write_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small writes tables and refcount blocks are placed again and again, as they are in a large image."""
    monkeypatch.setattr(image_builder, "WRITE_BYTES", write_bytes)
    chooser = random.Random(seed)
    size, options = drawn_options(chooser)
    image = bytearray()
    builder = ImageBuilder(WritableMemory(image), CreateOptions(size, **options), aligned=bool(seed & 1))
    disk = fill(builder, chooser, size)
    builder.finish()
    assert_holds(image, disk)


@pytest.mark.parametrize("aligned", [False, True])
def test_refcount_blocks_are_placed_as_soon_as_they_are_complete(
    *, aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_builder, "WRITE_BYTES", 8192)
    image = bytearray()
    options = CreateOptions(4 * MIB, cluster_size=512, refcount_bits=64)
    builder = ImageBuilder(WritableMemory(image), options, aligned=aligned)
    disk = random.Random(1).randbytes(4 * MIB)
    for at in range(0, 4 * MIB, MIB):
        builder.add_data(at, memoryview(disk)[at : at + MIB])
    builder.finish()
    assert_holds(image, disk)


def test_equal_input_makes_equal_bytes() -> None:
    made = []
    for _ in range(2):
        image = bytearray()
        builder = ImageBuilder(WritableMemory(image), CreateOptions(MIB, cluster_size=4096))
        fill(builder, random.Random(5), MIB)
        builder.finish()
        made.append(bytes(image))
    assert made[0] == made[1]


@pytest.mark.parametrize("durable", [True, False])
def test_the_magic_value_is_the_last_thing_written(*, durable: bool) -> None:
    image = bytearray()
    store = Recorded(image)
    builder = ImageBuilder(store, CreateOptions(10 * MIB), durable=durable)
    builder.add_data(0, memoryview(b"d" * 9 * MIB))
    builder.finish()
    expected = [("write", 0, 512), ("flush", 0, 0)] if durable else [("write", 0, 512)]
    assert store.calls[-len(expected) :] == expected
    last_flush = len(store.calls) - 3
    assert (store.calls[last_flush][0] == "flush") is durable
    body = [call for call in store.calls if call[0] == "write" and call[1]]
    assert all(one[1] != other[1] for one in body for other in body if one is not other), "nothing is written twice"


def build_in(store: Recorded) -> None:
    builder = ImageBuilder(store, CreateOptions(2 * MIB, cluster_size=4096))
    fill(builder, random.Random(3), 2 * MIB)
    builder.finish()


def test_a_store_that_fails_leaves_no_image_whenever_it_does() -> None:
    """But for the very last flush: whoever made the file removes it then."""
    whole = Recorded(bytearray())
    build_in(whole)
    assert whole.calls[-1] == ("flush", 0, 0)
    for number in range(len(whole.calls) - 1):
        image = bytearray()
        with pytest.raises(StoreError):
            build_in(Recorded(image, number))
        assert image[: len(MAGIC)] != MAGIC
        with pytest.raises(NotQcow2):
            qcow2c.open(image)
    with pytest.raises(StoreError):
        build_in(Recorded(bytearray(), len(whole.calls) - 1))


def test_much_data_begins_behind_room_for_all_tables() -> None:
    image = bytearray()
    store = Recorded(image)
    builder = ImageBuilder(store, CreateOptions(64 * MIB), aligned=True)
    for at in range(0, 16 * MIB, 3 * MIB):
        builder.add_data(at, memoryview(b"x" * 3 * MIB))
    builder.finish()
    first_data = next(offset for name, offset, length in store.calls if name == "write" and length >= MIB)
    assert first_data == 2 * 65536, "behind the header and the one L2 table"
    tables = [offset for name, offset, length in store.calls if name == "write" and 0 < offset < first_data]
    assert tables, "the tables fit before the data"


def test_bitmaps_of_subclusters_say_which_are_allocated() -> None:
    image = bytearray()
    builder = ImageBuilder(WritableMemory(image), CreateOptions(4 * 65536, extended_l2=True))
    builder.add_data(0, memoryview(b"x" * 65536), bitmaps=[1 << 3])
    builder.add_zeros(65536, 65536)
    builder.finish()
    disk = bytearray(4 * 65536)
    disk[3 * 2048 : 4 * 2048] = b"x" * 2048
    assert_holds(image, disk)


def test_the_size_may_be_known_only_in_the_end() -> None:
    """More L1 entries than the first guess had, data in the last one; and none at all."""
    for size in (0, 512, 40 * MIB):
        image = bytearray()
        builder = ImageBuilder(WritableMemory(image), CreateOptions(0, cluster_size=4096))
        for at in range(0, size - 511, MIB):
            builder.add_data(at, memoryview(b"x" * 512))
        builder.finish(size)
        disk = bytearray(size)
        for at in range(0, size - 511, MIB):
            disk[at : at + 512] = b"x" * 512
        assert_holds(image, disk)


def test_clusters_of_metadata_are_placed_before_the_data_while_there_is_room() -> None:
    image = bytearray()
    builder = ImageBuilder(WritableMemory(image), CreateOptions(MIB), aligned=True)
    assert builder.place(b"first") == 65536
    assert builder.place(b"second".ljust(65537)) == 2 * 65536
    assert builder.place(b"large".ljust(2 * MIB)) == 4 * 65536
    builder.set_bitmaps(None)
    builder.finish()
    assert image[65536:65541] == b"first"
    assert qcow2c.check(image).exit_code == 3, "nothing refers to them"


def test_packed_clusters_end_where_a_refcount_would_overflow() -> None:
    for bits in (1, 2, 4):
        image = bytearray()
        builder = ImageBuilder(WritableMemory(image), CreateOptions(64 * 4096, cluster_size=4096, refcount_bits=bits))
        compress = codecs.compressor(0)
        for cluster in range(64):
            builder.add_compressed(cluster * 4096, compress(bytes([cluster]) * 4096))
        builder.finish()
        assert_holds(image, b"".join(bytes([cluster]) * 4096 for cluster in range(64)))


def test_what_the_format_cannot_say_is_refused() -> None:
    with pytest.raises(UsageError, match="Cluster size must be a power of two"):
        ImageBuilder(WritableMemory(bytearray()), CreateOptions(MIB, cluster_size=1000))
    builder = ImageBuilder(WritableMemory(bytearray()), CreateOptions(MIB, cluster_size=2 * MIB))
    builder._clusters = 1 << 35  # As if 64 PiB had been appended.
    with pytest.raises(LimitExceeded, match="no entry can name compressed data at 0x100000000000000"):
        builder.add_compressed(0, b"packed")
    builder = ImageBuilder(WritableMemory(bytearray()), CreateOptions(MIB, cluster_size=512, refcount_bits=64))
    builder._clusters = Limit.REFCOUNT_TABLE_BYTES * 8  # As if as many clusters had been appended as a table describes.
    with pytest.raises(LimitExceeded, match="refcount table of more than 8388608 bytes"):
        builder.finish()
