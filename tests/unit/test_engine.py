"""The write engine on images made by `create`, in memory: what is written is read, and check stays clean."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c import structs
from qcow2c.errors import CorruptMetadata, LimitExceeded, MissingKey, StoreError, UsageError
from qcow2c.format import derived, layout
from qcow2c.format.header import Header, field_span
from qcow2c.format.tables import Kind
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.writer.mapping import Mapping
from tests.building import Builder, deflate

KIB = 1024
UNKNOWN_AUTOCLEAR = 1 << 17
DIRTY = derived.INCOMPATIBLE_FEATURES["dirty"].mask


def made(size: int = 1024 * KIB, **options: Any) -> bytearray:
    """Return a new image in memory."""
    data = bytearray()
    qcow2c.create(data, size, **{"cluster_size": 4096, **options})
    return data


def clean(data: bytearray) -> bool:
    return qcow2c.check(bytes(data)).exit_code == 0


def header(data: bytearray) -> Header:
    return Header.load(Memory(bytes(data)))


def patched(data: bytearray, name: str, value: int) -> bytearray:
    span = field_span(name)
    data[span.offset : span.end] = layout.stored_integer(value, span.length)
    return data


class Slow(io.BytesIO):
    """Counts flushes."""

    flushes = 0

    def flush(self) -> None:
        self.flushes += 1
        super().flush()


def test_what_is_written_is_read_at_once_and_after_closing() -> None:
    data = made()
    with qcow2c.open(data, "r+") as image:
        assert image.writable() and image.readable() and image.seekable()
        assert image.pwrite(b"hello", 10_000) == 5
        assert image.pread(7, 9_999) == b"\0hello\0"
    with qcow2c.open(data) as image:
        assert not image.writable()
        assert image.pread(7, 9_999) == b"\0hello\0"
    assert clean(data)


def test_it_is_a_file() -> None:
    data = made()
    with qcow2c.open(data, "rb+") as image:
        image.seek(100)
        assert image.write(b"abc") == 3
        assert image.tell() == 103
        writer = io.BufferedRandom(image)
        writer.seek(5000)
        writer.write(b"buffered")
        writer.flush()
        image.seek(100)
        assert image.read(3) == b"abc"
        assert image.pread(8, 5000) == b"buffered"
        writer.detach()


@pytest.mark.parametrize("mode", ["w", "a", "x", "rw", ""])
def test_a_mode_that_is_none_is_an_error(mode: str) -> None:
    with pytest.raises(UsageError, match="mode"):
        qcow2c.open(made(), mode)


def test_salvage_and_sharing_are_for_reading() -> None:
    with pytest.raises(UsageError):
        qcow2c.open(made(), "r+", on_error="zero")
    with pytest.raises(UsageError):
        qcow2c.open(made(), "r+", share=True)
    with pytest.raises(UsageError, match="bytearray"):
        qcow2c.open(bytes(made()), "r+")


def test_a_read_only_image_is_not_written() -> None:
    data = made()
    before = bytes(data)
    with qcow2c.open(data) as image:
        for act in (
            lambda: image.pwrite(b"x", 0),
            lambda: image.write(b"x"),
            lambda: image.write_zeroes(0, 1),
            lambda: image.discard(0, 1),
            lambda: image.write_compressed(bytes(4096), 0),
        ):
            with pytest.raises(io.UnsupportedOperation):
                act()
        image.flush()
    assert data == before


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (1024 * KIB, 1), (1024 * KIB - 1, 2), (1 << 70, 1)])
def test_nothing_is_written_outside_the_disk(offset: int, length: int) -> None:
    data = made()
    with qcow2c.open(data, "r+") as image:
        for act in (image.pwrite, image.write_compressed):
            with pytest.raises(UsageError):
                act(bytes(length), offset)
        for zero in (image.write_zeroes, image.discard):
            with pytest.raises(UsageError):
                zero(offset, length)


def test_opening_and_closing_changes_nothing() -> None:
    data = made(lazy_refcounts=True)
    patched(data, "autoclear_features", UNKNOWN_AUTOCLEAR)
    before = bytes(data)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"", 0)
        image.write_zeroes(5, 0)
        image.discard(5, 0)
        image.write_compressed(b"", 4096)
        image.discard(1, 4000)
        image.flush()
    assert data == before


def test_unknown_autoclear_bits_are_cleared_before_the_first_change() -> None:
    data = patched(made(), "autoclear_features", UNKNOWN_AUTOCLEAR)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"x", 0)
        assert header(data).autoclear_features == 0
    assert header(data).autoclear_features == 0


def test_lazy_refcounts_mark_the_image_dirty_while_it_is_written() -> None:
    data = made(lazy_refcounts=True)
    image = qcow2c.open(data, "r+")
    image.pwrite(b"x", 0)
    assert header(data).dirty
    image.flush()
    assert header(data).dirty
    crashed = bytearray(data)
    image.close()
    assert not header(data).dirty and clean(data)
    assert qcow2c.check(bytes(crashed)).exit_code in (0, 3)
    with qcow2c.open(crashed, "r+") as image:
        assert image.pread(1, 0) == b"x"
        image.pwrite(b"y", 1)
    assert not header(crashed).dirty


def test_a_dirty_image_with_low_refcounts_is_counted_again() -> None:
    builder = Builder(64 * KIB, incompatible=DIRTY)
    for guest in range(4):
        offset = builder.data(guest, bytes([guest + 1]) * 4096)
        builder.refcounts[offset // builder.cluster_size] = 0
    data = bytearray(builder.build())
    assert qcow2c.check(bytes(data)).exit_code == 2
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"new", 50_000)
        assert image.pread(1, 0) == b"\1"
    assert clean(data) and not header(data).dirty
    with qcow2c.open(data) as image:
        assert [image.pread(1, guest * 4096) for guest in range(4)] == [b"\1", b"\2", b"\3", b"\4"]


def test_an_image_with_low_refcounts_is_refused_and_says_what_helps() -> None:
    builder = Builder(64 * KIB)
    offset = builder.data(0, b"data" * 1024)
    builder.refcounts[offset // builder.cluster_size] = 0
    data = bytearray(builder.build())
    before = bytes(data)
    with pytest.raises(CorruptMetadata, match="check -r") as caught:
        qcow2c.open(data, "r+")
    assert caught.value.where is not None and caught.value.where.offset == offset
    with qcow2c.open(data, "r+", trust=True) as image, pytest.raises(CorruptMetadata, match="check -r"):
        image.pwrite(b"x", 0)
    assert data == before


def test_with_trust_a_cluster_that_is_a_table_is_not_written() -> None:
    builder = Builder(64 * KIB)
    builder.data(0, b"data" * 1024)
    builder.entry(1, builder.l1[0])  # The L2 table itself, as guest data.
    data = bytearray(builder.build())
    with pytest.raises(CorruptMetadata):
        qcow2c.open(data, "r+")
    with qcow2c.open(data, "r+", trust=True) as image:
        with pytest.raises(CorruptMetadata, match="overlaps metadata"):
            image.pwrite(b"x", 4096)
        image.pwrite(b"fine", 8192)
        assert image.pread(4, 0) == b"data"


def test_an_encrypted_image_needs_its_key() -> None:
    with pytest.raises(MissingKey):
        qcow2c.open(bytearray(Builder(64 * KIB, crypt_method=1).build()), "r+")


def test_a_write_within_a_cluster_keeps_the_rest_of_the_backing_file() -> None:
    base = made()
    with qcow2c.open(base, "r+") as image:
        image.pwrite(b"b" * 10_000, 0)
    over = made(backing_file="base", backing_fmt="qcow2", check_backing=False)
    with qcow2c.open(base) as below, qcow2c.open(over, "r+", backing=below) as image:
        image.pwrite(b"top", 5000)
        image.pwrite(b"across" * 1000, 3000)
        image.write_zeroes(4096, 4096)
        assert image.pread(3000, 0) == b"b" * 3000
        assert image.pread(1096, 3000) == (b"across" * 1000)[:1096]
        assert image.pread(4096, 4096) == bytes(4096)
        image.discard(0, 4096)
        assert image.pread(4096, 0) == bytes(4096)
    assert clean(over)


def test_an_old_image_over_a_backing_file_has_no_zero_clusters() -> None:
    base = made(compat="v2")
    with qcow2c.open(base, "r+") as image:
        image.pwrite(b"b" * 20_000, 0)
    over = made(compat="v2", backing_file="base", backing_fmt="qcow2", check_backing=False)
    with qcow2c.open(base) as below, qcow2c.open(over, "r+", backing=below) as image:
        image.write_zeroes(4000, 9000)
        assert image.pread(20_000, 0) == b"b" * 4000 + bytes(9000) + b"b" * 7000
        image.discard(0, 20_000)
        assert image.pread(20_000, 0) == b"b" * 4000 + bytes(9000) + b"b" * 7000
    assert clean(over)


@pytest.mark.parametrize("unmap", [False, True])
def test_zeroing_keeps_or_frees_the_clusters(*, unmap: bool) -> None:
    data = made()
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"z" * 40_960, 0)
        image.write_zeroes(4096, 8192, unmap=unmap)
        kind = image.layer.run_at(4096, 4096).kind
        assert kind is (Kind.ZERO if unmap else Kind.ZERO_ALLOCATED)
        image.write_zeroes(4096, 8192, unmap=unmap)
        image.flush()
        size = len(data)
        image.pwrite(b"again" * 100, 5000)
        assert image.pread(600, 4950) == bytes(50) + b"again" * 100 + bytes(50)
        image.flush()
        assert len(data) <= size
    assert clean(data)


def test_freed_clusters_are_used_again_but_not_before_a_flush() -> None:
    data = made()
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"a" * 409_600, 0)
        image.flush()
        size = len(data)
        image.discard(0, 409_600)
        image.pwrite(b"b" * 8192, 600_000 // 4096 * 4096)
        assert len(data) > size, "nothing that is still named may be overwritten"
        image.flush()
        size = len(data)
        image.pwrite(b"c" * 204_800, 700_000 // 4096 * 4096)
        image.flush()
        assert len(data) == size
    assert clean(data)


@pytest.mark.parametrize("method", ["zlib", "zstd"])
@pytest.mark.parametrize("refcount_bits", [1, 2, 16])
def test_compressed_clusters_are_packed_where_refcounts_allow(method: str, refcount_bits: int) -> None:
    data = made(compression_type=method, refcount_bits=refcount_bits)
    text = b"".join(b"line %06d\n" % number for number in range(20_000))[: 200 * KIB]
    with qcow2c.open(data, "r+") as image:
        image.write_compressed(text, 0)
        assert image.pread(len(text), 0) == text
        image.write_compressed(text[4096:8192], 0)
        image.pwrite(b"over", 4100)
        assert image.pread(4, 4100) == b"over" and image.pread(4, 4096) == text[4096:4100]
    assert clean(data)
    result = qcow2c.check(bytes(data))
    assert result.compressed_clusters == 49
    assert (len(data) < 120 * KIB) == (refcount_bits > 1)


def test_what_does_not_compress_is_written_as_it_is() -> None:
    import random

    noise = random.Random(1).randbytes(8192)
    data = made()
    with qcow2c.open(data, "r+") as image:
        assert image.write_compressed(noise, 4096) == 8192
        assert image.layer.run_at(4096, 8192).kind is Kind.DATA
        assert image.pread(8192, 4096) == noise
    assert clean(data)


@pytest.mark.parametrize(("offset", "length"), [(1, 4096), (0, 100), (4096, 5000)])
def test_compressed_writes_are_whole_clusters(offset: int, length: int) -> None:
    with qcow2c.open(made(), "r+") as image, pytest.raises(UsageError, match="whole clusters"):
        image.write_compressed(bytes(length), offset)


def test_the_last_cluster_may_be_cut_short() -> None:
    data = made(10_000)
    with qcow2c.open(data, "r+") as image:
        assert image.size() == 10_240
        image.write_compressed(b"q" * 2048, 8192)
        image.write_zeroes(9000, 1240)
        image.pwrite(b"end", 10_237)
        assert image.pread(100, 10_200) == bytes(37) + b"end"
        image.discard(8192, 2048)
        assert image.pread(2048, 8192) == bytes(2048)
    assert clean(data)


def test_an_external_data_file_has_each_cluster_at_its_guest_offset(tmp_path: Path) -> None:
    image_data, guest = made(data_file=tmp_path / "guest"), bytearray()
    with qcow2c.open(image_data, "r+", data_file=guest) as image:
        image.pwrite(b"data", 50_000)
        with pytest.raises(UsageError, match="external data file"):
            image.write_compressed(bytes(4096), 0)
        image.write_zeroes(50_002, 1)
        image.pwrite(b"x", 0)
        image.write_zeroes(0, 8192, unmap=True)
        image.pwrite(b"y", 1)
        assert image.pread(2, 0) == b"\0y"
    assert guest[50_000:50_004] == b"da\0a"
    assert clean(image_data)


@pytest.mark.parametrize("extended", [False, True])
def test_a_raw_data_file_never_grows_beyond_the_disk(*, extended: bool) -> None:
    size, image_data, guest = 100_352, bytearray(), io.BytesIO()
    options: dict[str, Any] = {"data_file": "guest", "data_file_raw": True, "extended_l2": extended}
    qcow2c.create(image_data, size, guest_data=guest, **options)
    with qcow2c.open(image_data, "r+", data_file=guest) as image:
        image.discard(0, size)
        image.pwrite(b"last", size - 4)
        image.write_zeroes(65536, size - 65536)
        image.pwrite(b"first", 65536)
    assert guest.getvalue() == bytes(65536) + b"first".ljust(size - 65536, b"\0")
    assert clean(image_data)


def test_a_raw_data_file_is_always_the_disk(tmp_path: Path) -> None:
    image_data, guest = made(data_file=tmp_path / "guest", data_file_raw=True), bytearray(1024 * KIB)
    with qcow2c.open(image_data, "r+", data_file=guest) as image:
        image.pwrite(b"d" * 20_000, 1000)
        image.write_zeroes(2000, 9000, unmap=True)
        image.discard(12_000, 9000)
        assert image.pread(1024 * KIB, 0) == bytes(guest)
    assert clean(image_data)


def test_subclusters_are_written_alone() -> None:
    data = made(cluster_size=16384, extended_l2=True)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"s" * 600, 1000)
        assert [run.kind for run in image.layer.runs(0, 16384)] == [
            Kind.UNALLOCATED_IN_CLUSTER,
            Kind.DATA,
            Kind.UNALLOCATED_IN_CLUSTER,
        ]
        image.write_zeroes(512, 512)
        image.write_zeroes(8192, 1024)
        assert image.pread(2048, 0) == bytes(1024) + b"s" * 576 + bytes(448)
        image.write_compressed(b"k" * 16384, 16384)
        image.write_zeroes(17_000, 2000)
        image.pwrite(b"m", 30_000)
        assert image.pread(16384, 16384) == b"k" * 616 + bytes(2000) + b"k" * 11_000 + b"m" + b"k" * 2767
        image.write_zeroes(0, 16384, unmap=True)
        image.discard(16384, 16384)
        assert image.pread(32768, 0) == bytes(32768)
    assert clean(data)


def test_shared_clusters_are_copied_once_and_the_snapshot_stays() -> None:
    builder = Builder(64 * KIB)
    builder.data(0, b"shared" * 600)
    builder.compressed(1, deflate(b"p" * 4096))
    builder.snapshot(b"one")
    data = bytearray(builder.build())
    assert clean(data)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"new", 100)
        image.pwrite(b"new", 200)
        image.pwrite(b"new", 5000)
        assert image.pread(6, 0) == b"shared"
        with image.snapshots["one"].open() as snapshot:
            assert snapshot.pread(6, 96) == b"shared"
            assert snapshot.pread(4096, 4096) == b"p" * 4096
    assert clean(data)


@pytest.mark.parametrize("refcount_bits", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("cluster_size", [512, 4096])
def test_refcount_blocks_and_their_table_grow(refcount_bits: int, cluster_size: int) -> None:
    size = 5 << 20
    data = made(size, cluster_size=cluster_size, refcount_bits=refcount_bits)
    old = header(data)
    with qcow2c.open(data, "r+") as image:
        for start in range(0, size, 300_000):
            image.pwrite(bytes([start % 251 + 1]) * min(300_000, size - start), start)
        image.pwrite(b"x", 7)
    assert clean(data)
    if (refcount_bits, cluster_size) == (64, 512):
        assert header(data).refcount_table_clusters > old.refcount_table_clusters
        assert header(data).refcount_table_offset != old.refcount_table_offset
    with qcow2c.open(data, "r+") as image:
        assert all(image.pread(1, start + 9) == bytes([start % 251 + 1]) for start in range(0, size, 300_000))


def test_there_is_an_end_to_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structs.Limit, "REFCOUNT_TABLE_BYTES", 512)
    data = made(5 << 20, cluster_size=512, refcount_bits=64)
    with qcow2c.open(data, "r+") as image:
        with pytest.raises(LimitExceeded, match="refcount table"):
            for start in range(0, 5 << 20, 65536):
                image.pwrite(b"f" * 65536, start)
        written = image.pread(5 << 20, 0).count(b"f")
        assert written > 1 << 20
    assert clean(data)
    with qcow2c.open(data) as image:
        assert image.pread(5 << 20, 0).count(b"f") == written


def test_room_for_compressed_data_that_no_entry_can_name_is_taken_back() -> None:
    with qcow2c.open(made(4 << 20, cluster_size=2 << 20), "r+") as image:
        allocator, cache = image.engine.allocator, image.engine.cache
        allocator._scanned = (1 << 49) >> 21 >> 20  # As if everything below had been in use.
        with pytest.raises(LimitExceeded, match="no entry can name compressed data at 0x2000000200000"):
            allocator.allocate_bytes(700)
        block, data = (1 << 49) >> 21, (0x2000000200000) >> 21
        assert (cache.refcount(block), cache.refcount(data)) == (1, 0)


def test_little_memory_is_enough() -> None:
    data = made(4 << 20, cluster_size=512)
    with qcow2c.open(data, "r+") as image:
        image.layer.l2_tables_limit = 2
        image.engine.cache._block_limit = 2
        for start in range(0, 4 << 20, 40_960):
            image.pwrite(start.to_bytes(8, "big") * 3, start)
        for start in range(0, 4 << 20, 40_960):
            assert image.pread(8, start) == start.to_bytes(8, "big")
        assert len(image.layer.l2_tables) <= 4
    assert clean(data)


def test_threads_take_turns() -> None:
    data = made(1 << 20)
    with qcow2c.open(data, "r+") as image:

        def work(part: int) -> None:
            for number in range(40):
                image.pwrite(bytes([part]) * 3000, part * 131_072 + number * 3000)
                assert image.pread(3000, part * 131_072 + number * 3000) == bytes([part]) * 3000
                if number % 10 == 9:
                    image.flush()

        threads = [threading.Thread(target=work, args=(part,)) for part in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert clean(data)
    with qcow2c.open(data) as image:
        assert all(image.pread(120_000, part * 131_072) == bytes([part]) * 120_000 for part in range(8))


def test_a_flush_with_nothing_to_do_does_nothing() -> None:
    file = Slow(bytes(made()))
    with qcow2c.open(file, "r+") as image:
        image.flush()
        assert file.flushes == 0
        image.pwrite(b"x", 0)
        image.flush()
        after = file.flushes
        image.flush()
        assert file.flushes == after > 0
        image.pwrite(b"y", 0)
        image.flush()
        assert file.flushes == after + 1, "overwriting in place is one flush"


class Failing(WritableMemory):
    """Fails the next write, or the next flush."""

    fail_write = fail_flush = False

    def pwrite(self, data: bytes, offset: int) -> None:  # type: ignore[override]
        if self.fail_write:
            raise StoreError("no space", where=None)
        super().pwrite(data, offset)

    def flush(self) -> None:
        if self.fail_flush:
            raise StoreError("it is broken")
        super().flush()


def test_after_a_failed_write_the_handle_goes_on() -> None:
    store = Failing(made())
    with qcow2c.open(store, "r+") as image:
        image.pwrite(b"before", 0)
        store.fail_write = True
        with pytest.raises(StoreError):
            image.pwrite(b"x" * 10_000, 20_000)
        with pytest.raises(StoreError):
            image.write_compressed(bytes(4096), 40_960)
        with pytest.raises(StoreError):
            image.flush()
        store.fail_write = False
        image.pwrite(b"after", 30_000)
        assert image.pread(6, 0) == b"before"
        assert image.pread(5, 30_000) == b"after"
        assert image.pread(10_000, 20_000) == bytes(10_000), "the mapping is as it was"
    assert clean(store._data)


def test_after_a_failed_flush_nothing_succeeds_any_more() -> None:
    store = Failing(made())
    image = qcow2c.open(store, "r+")
    image.pwrite(b"flushed", 0)
    image.flush()
    image.pwrite(b"lost", 100_000)
    store.fail_flush = True
    with pytest.raises(StoreError, match="broken"):
        image.flush()
    store.fail_flush = False
    for act in (image.flush, lambda: image.pwrite(b"x", 0), lambda: image.write_zeroes(0, 4096)):
        with pytest.raises(StoreError, match="earlier flush"):
            act()
            image.flush()
    for read in (lambda: image.pread(7, 0), lambda: image.readinto_at(bytearray(7), 0), lambda: image.read(7)):
        with pytest.raises(StoreError, match="earlier flush"):
            read()
    with pytest.raises(StoreError):
        image.close()
    assert image.closed
    image.close()
    assert qcow2c.check(bytes(store._data)).exit_code in (0, 3)
    with qcow2c.open(bytes(store._data)) as again:
        assert again.pread(7, 0) == b"flushed"


def test_a_closed_image_is_closed() -> None:
    image = qcow2c.open(made(), "r+")
    image.close()
    with pytest.raises(ValueError, match="closed"):
        image.pwrite(b"x", 0)
    with pytest.raises(ValueError, match="closed"):
        image.pread(1, 0)


@pytest.mark.parametrize("extended", [False, True])
def test_a_large_range_over_a_backing_file_is_zeroed_at_once(*, extended: bool) -> None:
    size = 64 << 20
    base = made(size)
    with qcow2c.open(base, "r+") as image:
        image.pwrite(b"b" * 100_000, 32 << 20)
    over = made(
        size, cluster_size=65536, extended_l2=extended, backing_file="b", backing_fmt="qcow2", check_backing=False
    )
    with qcow2c.open(base) as below, qcow2c.open(over, "r+", backing=below) as image:
        image.write_zeroes(65536, size - 65536)
        assert image.pread(100_000, 32 << 20) == bytes(100_000)
        image.pwrite(b"on top", 33 << 20)
        image.write_zeroes(32 << 20, 2 << 20)
        assert image.pread(8, 33 << 20) == bytes(8)
    assert clean(over)


def test_an_interrupt_between_two_steps_of_a_change_ends_all_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    data = made(1 << 20, cluster_size=4096)
    with pytest.raises(KeyboardInterrupt) as raised, qcow2c.open(data, "r+") as image:
        image.pwrite(b"kept" * 1024, 0)
        image.snapshots.create("before")
        monkeypatch.setattr(Mapping, "release", interrupted)
        image.pwrite(b"lost" * 1024, 0)
    assert "what was not flushed before is not in the image" in raised.value.__notes__[0]
    assert qcow2c.check(bytes(data)).exit_code in (0, 3)
    with qcow2c.open(bytes(data)) as image:
        assert image.pread(4096, 0) == b"kept" * 1024


def test_after_an_interrupt_each_later_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    image = qcow2c.open(made(1 << 20, cluster_size=4096), "r+")
    monkeypatch.setattr(Mapping, "point", interrupted)
    with pytest.raises(KeyboardInterrupt):
        image.pwrite(b"lost", 0)
    monkeypatch.undo()
    for call in (lambda: image.pwrite(b"x", 0), image.flush, lambda: image.snapshots.create("s"), image.close):
        with pytest.raises(StoreError, match=r"was interrupted, so that nothing more is written.*KeyboardInterrupt"):
            call()
    assert image.closed
