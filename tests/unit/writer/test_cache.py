"""The cache of metadata: nothing reaches the file before a commit, and then all of it in one order."""

from __future__ import annotations

from array import array

import pytest

import qcow2c
from qcow2c.errors import CorruptMetadata
from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.format.tables import L1_COPIED, L2_COPIED, Table
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Memory
from qcow2c.writer.cache import MetadataCache
from tests.building import Builder, packed_words
from tests.crash.recording import Event, Kind, Recorder, RecordingStore

SIZE = 4096


class Opened:
    """A cache over an image in memory whose writes are recorded."""

    def __init__(self, builder: Builder) -> None:
        self.recorder = Recorder()
        self.store: RecordingStore = self.recorder.store(builder.build())
        header = Header.load(self.store)
        words = layout.words(self.store.pread(header.l1_size * 8, header.l1_table_offset))
        self.l1 = Table(words, header.l1_table_offset)
        self.l2: dict[int, Table] = {}
        medium = Medium(self.store)
        self.cache = MetadataCache(medium, medium, header, self.l1, self.l2)
        self.freed: list[tuple[int, int]] = []
        self.cache.report_free(self.freed.extend)

    def log(self) -> list[Event]:
        return self.recorder.log

    def time_of(self, offset: int) -> int:
        """Return when the cluster at an offset was written, -1 if it was not."""
        writes = [time for time, event in enumerate(self.log()) if event.kind is Kind.WRITE]
        return next((time for time in writes if self.log()[time].offset // SIZE == offset // SIZE), -1)

    def flushed_between(self, first: int, then: int) -> bool:
        """Return whether a flush came between the first writes of two clusters."""
        one, other = self.time_of(first), self.time_of(then)
        assert one >= 0 and other >= 0
        return any(event.kind is Kind.FLUSH for event in self.log()[one:other])

    def stored_refcount(self, cluster: int) -> int:
        """Return a refcount as the file says."""
        header = Header.load(self.store)
        table = int.from_bytes(self.store.pread(8, header.refcount_table_offset), "big")
        return int.from_bytes(self.store.pread(2, table + 2 * cluster), "big")


@pytest.fixture
def opened() -> Opened:
    builder = Builder(1 << 22)
    builder.data(0, b"x")
    return Opened(builder)


def block_offset(opened: Opened) -> int:
    return opened.cache.refcount_table.words[0]


def test_refcounts_change_in_memory_alone(opened: Opened) -> None:
    cache = opened.cache
    assert [cache.refcount(cluster) for cluster in (0, 1, 100)] == [1, 1, 0]
    cache.set_refcounts(100, 103, 7)
    assert [cache.refcount(cluster) for cluster in range(99, 104)] == [0, 7, 7, 7, 0]
    assert opened.log() == [] and opened.stored_refcount(100) == 0


def test_clusters_without_a_block_have_refcount_0(opened: Opened) -> None:
    far = 5 << opened.cache.geometry.refcount_block_bits
    assert opened.cache.refcount(far) == opened.cache.refcount(1 << 50) == 0
    assert opened.cache.has_block(0) and not opened.cache.has_block(5)


def test_a_commit_without_changes_writes_nothing(opened: Opened) -> None:
    opened.cache.commit()
    assert opened.log() == []


def test_raised_refcounts_and_new_tables_are_durable_before_anything_names_them(opened: Opened) -> None:
    new = 200 * SIZE
    opened.cache.set_refcounts(200, 201, 1)
    opened.l2[1] = Table(array("Q", [L2_COPIED | 100 * SIZE, *[0] * 511]), new, reachable=False)
    opened.l1.set(1, new | L1_COPIED)
    opened.cache.commit()
    assert opened.flushed_between(block_offset(opened), opened.l1.host_offset)
    assert opened.flushed_between(new, opened.l1.host_offset)
    assert opened.log()[-1].kind is Kind.FLUSH, "the mapping is durable in the end"
    assert opened.store.pread(8, opened.l1.host_offset + 8) == packed_words([new | L1_COPIED])
    assert opened.l2[1].reachable and not opened.l2[1].dirty


def test_only_sectors_that_changed_are_written(opened: Opened) -> None:
    opened.cache.set_refcounts(300, 301, 1)
    opened.cache.commit()
    assert [(event.offset, len(event.data)) for event in opened.log() if event.kind is Kind.WRITE] == [
        (block_offset(opened) + 2 * 300 // 512 * 512, 512)
    ]


def test_references_go_only_after_the_mapping_that_let_them_go_is_durable(opened: Opened) -> None:
    opened.l1.set(0, 0)
    opened.cache.release(1)
    assert opened.cache.refcount(1) == 1 and opened.freed == []
    opened.cache.commit()
    assert opened.flushed_between(opened.l1.host_offset, block_offset(opened))
    assert opened.cache.refcount(1) == opened.stored_refcount(1) == 0
    assert opened.freed == [(1, 2)] and opened.cache.releases == 0


def test_releases_of_neighbours_wait_as_one_run(opened: Opened) -> None:
    opened.cache.release(10, 2)
    opened.cache.release(12)
    assert opened.cache.releases == 1
    opened.cache.release(13, discard=True)
    opened.cache.release(20)
    assert opened.cache.releases == 3


@pytest.mark.parametrize(("refcount", "discard", "punched"), [(1, True, True), (1, False, False), (2, True, False)])
def test_space_is_given_back_where_that_was_asked_for_and_nothing_else_refers_to_it(
    opened: Opened, refcount: int, *, discard: bool, punched: bool
) -> None:
    opened.cache.set_refcounts(100, 101, refcount)
    opened.cache.release(100, discard=discard)
    opened.cache.commit()
    assert any(event.kind is Kind.PUNCH and event.offset == 100 * SIZE for event in opened.log()) == punched
    assert opened.cache.refcount(100) == refcount - 1


def test_a_refcount_of_0_gets_no_lower(opened: Opened) -> None:
    """Damaged metadata, opened with trust, may let go of what was never counted."""
    opened.cache.release(100)
    opened.cache.commit()
    assert opened.cache.refcount(100) == 0 and opened.freed == []


def test_what_nothing_ever_referred_to_is_free_at_once(opened: Opened) -> None:
    opened.cache.set_refcounts(100, 103, 1)
    opened.cache.lower_at_once(100, 103)
    assert opened.freed == [(100, 101), (101, 102), (102, 103)] and opened.cache.refcount(101) == 0


def test_a_new_refcount_block_is_durable_before_the_mapping(opened: Opened) -> None:
    bits = opened.cache.geometry.refcount_block_bits
    first = 1 << bits
    opened.cache.add_block(1, first * SIZE)
    opened.cache.set_refcounts(first, first + 1, 1)
    opened.l1.set(1, first * SIZE + SIZE)
    opened.cache.commit()
    assert opened.flushed_between(first * SIZE, opened.l1.host_offset)
    header = Header.load(opened.store)
    table = layout.words(opened.store.pread(16, header.refcount_table_offset))
    assert table[1] == first * SIZE
    assert opened.store.pread(2, first * SIZE) == b"\0\1"


def test_a_longer_refcount_table_is_durable_before_the_header_names_it(opened: Opened) -> None:
    old, new = opened.cache.refcount_table.host_offset, 300 * SIZE
    opened.cache.set_refcounts(300, 302, 1)
    opened.cache.move_refcount_table(new, 1024)
    opened.cache.commit()
    assert opened.flushed_between(new, 0), "the header lies in the first cluster"
    header = Header.load(opened.store)
    assert (header.refcount_table_offset, header.refcount_table_clusters) == (new, 2)
    assert opened.cache.refcount(old // SIZE) == 0
    assert (old // SIZE, old // SIZE + 1) in opened.freed


@pytest.mark.parametrize("entry", [512, 1 << 40])
def test_a_block_that_cannot_be_is_an_error_that_names_the_entry(entry: int) -> None:
    builder = Builder(1 << 22)
    builder.build()
    at = builder.fields["refcount_table_offset"]
    builder.parts[at] = builder.parts[at] + packed_words([entry])
    opened = Opened(builder)
    with pytest.raises(CorruptMetadata, match="refcount block 1") as caught:
        opened.cache.refcount(1 << opened.cache.geometry.refcount_block_bits)
    assert caught.value.where is not None and caught.value.where.offset == at + 8


def test_guest_data_elsewhere_is_durable_first() -> None:
    recorder = Recorder()
    builder = Builder(1 << 22)
    store, outside = recorder.store(builder.build()), recorder.store(bytes(SIZE))
    header = Header.load(store)
    l1 = Table(layout.words(store.pread(header.l1_size * 8, header.l1_table_offset)), header.l1_table_offset)
    cache = MetadataCache(Medium(store), Medium(outside), header, l1, {})
    cache.data_medium.write([b"data"], 0)
    l1.set(0, 100 * SIZE)
    cache.commit()
    assert [(event.store, event.kind) for event in recorder.log] == [
        (1, Kind.WRITE),
        (1, Kind.FLUSH),
        (0, Kind.WRITE),
        (0, Kind.FLUSH),
    ]


def test_what_is_committed_is_sound() -> None:
    data = bytearray()
    qcow2c.create(data, 1 << 22, cluster_size=SIZE)
    with qcow2c.open(data, "r+") as image:
        for at in range(0, 1 << 22, 1 << 19):
            image.pwrite(b"x" * 100, at)
            image.flush()
            assert qcow2c.check(Memory(bytes(data))).exit_code == 0
