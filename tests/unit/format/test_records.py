"""Snapshot table and bitmap directory, whole and broken."""

from __future__ import annotations

import pytest

from qcow2c import structs
from qcow2c.errors import LimitExceeded, Span
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapDirectory, SnapshotTable, read_bitmaps, read_snapshots
from qcow2c.storage.sources import Memory
from qcow2c.structs import ExtensionType
from tests.building import Builder, extension


def snapshots(builder: Builder) -> SnapshotTable:
    store = Memory(builder.build())
    return read_snapshots(store, Header.load(store))


def test_every_field_of_a_snapshot_is_read() -> None:
    builder = Builder(cluster_bits=12)
    extra = structs.SNAPSHOT_EXTRA_DATA.build({"vm_state_size_large": 1 << 40, "disk_size": 99, "icount": 5})
    builder.snapshot(b"name", id_str=b"42", extra_data=extra + b"later", vm_clock_nsec=8)
    builder.snapshot(b"second", id_str=b"43")
    table = snapshots(builder)
    assert table.broken is None and len(table.records) == 2
    first, second = table.records
    assert (first.id_str, first.name, first.extra_data) == (b"42", b"name", extra + b"later")
    assert (first.vm_state_size, first.disk_size, first.icount, first.vm_clock_nsec) == (1 << 40, 99, 5, 8)
    assert (first.date_sec, first.date_nsec, first.l1_size) == (1_700_000_000, 5, 1)
    assert second.span.offset == -(-first.span.end // 8) * 8
    assert second.icount is None
    assert table.size == second.span.end - first.span.offset


@pytest.mark.parametrize(
    ("length", "expected"), [(0, (7, 1 << 20, None)), (8, (1, 1 << 20, None)), (16, (1, 2, None)), (24, (1, 2, 3))]
)
def test_fields_of_the_extra_data_are_there_as_far_as_it_reaches(length: int, expected: tuple[int, int, int]) -> None:
    builder = Builder(cluster_bits=12)
    extra = structs.SNAPSHOT_EXTRA_DATA.build({"vm_state_size_large": 1, "disk_size": 2, "icount": 3})
    header = {"extra_data_size": length}
    builder.snapshot(b"x", extra_data=extra[:length], **header)
    record = snapshots(builder).records[0]
    if length < 8:
        expected = (0, *expected[1:])
    assert (record.vm_state_size, record.disk_size, record.icount) == expected


def test_too_many_snapshots_too_much_extra_data_and_too_long_a_table_stop_the_reading() -> None:
    builder = Builder(cluster_bits=12, nb_snapshots=65537)
    builder.build()
    assert snapshots(builder).broken is not None
    builder = Builder(cluster_bits=12)
    builder.snapshot(b"good")
    builder.snapshot(b"bad", extra_data=bytes(1025))
    table = snapshots(builder)
    assert [record.name for record in table.records] == [b"good"]
    assert table.broken is not None and table.broken.error is LimitExceeded
    assert "1025" in table.broken.message


def test_a_table_above_64_mib_stops_the_reading() -> None:
    record = structs.SNAPSHOT_HEADER.build(
        dict.fromkeys(
            [
                "l1_table_offset",
                "l1_size",
                "date_sec",
                "date_nsec",
                "vm_clock_nsec",
                "vm_state_size",
                "extra_data_size",
            ],
            0,
        )
        | {"id_str_size": 65535, "name_size": 65535}
    )
    length = -(-(40 + 2 * 65535) // 8) * 8
    data = bytearray(600 * length + 4096)
    builder = Builder(cluster_bits=12, nb_snapshots=600, snapshots_offset=1 << 20)
    whole = bytearray(builder.build().ljust(1 << 20, b"\0"))
    for index in range(600):
        data[index * length : index * length + 40] = record
    store = Memory(bytes(whole + data))
    table = read_snapshots(store, Header.load(store))
    assert table.broken is not None and "64" not in table.broken.rule
    assert table.broken.error is LimitExceeded
    assert len(table.records) == (64 << 20) // length


def test_records_past_the_end_of_the_file_are_zeros_as_for_qemu() -> None:
    builder = Builder(cluster_bits=12, nb_snapshots=2, snapshots_offset=1 << 30)
    table = snapshots(builder)
    assert table.broken is None
    assert [(record.name, record.l1_size) for record in table.records] == [(b"", 0)] * 2


def directory(*names: bytes, count: int | None = None, tail: bytes = b"", size: int | None = None) -> BitmapDirectory:
    builder = Builder(cluster_bits=12, autoclear_features=1)
    data = b""
    for name in names:
        header = {
            "bitmap_table_offset": 1 << 16,
            "bitmap_table_size": 1,
            "flags": 2,
            "type": 1,
            "granularity_bits": 16,
            "name_size": len(name),
            "extra_data_size": 0,
        }
        record = structs.BITMAP_DIRECTORY_RECORD.build({"header": header, "extra_data": b"", "name": name})
        data += record + bytes(-len(record) % 8)
    data += tail
    fields = {
        "nb_bitmaps": len(names) if count is None else count,
        "reserved": 0,
        "bitmap_directory_size": len(data) if size is None else size,
        "bitmap_directory_offset": builder.put(data or b"\0"),
    }
    builder.extensions.append(extension(ExtensionType.BITMAPS, structs.BITMAPS_EXTENSION.build(fields)))
    store = Memory(builder.build())
    return read_bitmaps(store, Header.load(store))


def test_bitmaps_are_read_in_order() -> None:
    found = directory(b"one", b"another name")
    assert found.broken is None
    assert [record.name for record in found.records] == [b"one", b"another name"]
    first = found.records[0]
    assert first.auto and not first.in_use and first.unknown_flags == 0
    assert (first.span.length, first.granularity_bits, first.bitmap_table_offset) == (32, 16, 1 << 16)


@pytest.mark.parametrize(
    ("arguments", "complaint", "read"),
    [
        ({"count": 1}, "more bitmaps", 1),
        ({"count": 3}, "declares 3", 2),
        ({"tail": b"torn"}, "torn", 2),
        ({"size": 40}, "torn", 1),
        ({"size": 60}, "leaves the directory", 1),
    ],
)
def test_a_broken_directory_says_why_and_keeps_what_was_read(
    arguments: dict[str, int], complaint: str, read: int
) -> None:
    found = directory(b"one", b"another name", **arguments)  # type: ignore[arg-type]
    assert found.broken is not None and complaint in found.broken.message
    assert len(found.records) == read
    assert isinstance(found.broken.where, Span)


def test_without_consistent_bitmaps_there_are_none() -> None:
    store = Memory(Builder().build())
    assert read_bitmaps(store, Header.load(store)) == BitmapDirectory((), None)
