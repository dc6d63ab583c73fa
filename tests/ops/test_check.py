"""`check` finds each kind of damage, and says which clusters it is about."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from qcow2c import structs
from qcow2c.errors import CorruptMetadata, NotQcow2
from qcow2c.format import derived, layout
from qcow2c.references.check_result import Mismatch
from qcow2c.references.walk import Owner
from qcow2c.structs import ExtensionType
from tests.building import L1_COPIED, L2_COMPRESSED, L2_COPIED, Builder, deflate, extension

BITS = derived.INCOMPATIBLE_FEATURES
EXTENDED_L2, DATA_FILE = BITS["extended_l2"].mask, BITS["data_file"].mask


def good() -> Builder:
    builder = Builder(1 << 22, cluster_bits=12)
    for cluster in (0, 1, 2, 5):
        builder.data(cluster, b"x")
    builder.compressed(9, deflate(bytes(4096)))
    return builder


def test_a_good_image_is_clean_and_its_clusters_are_counted() -> None:
    builder = good()
    result = qcow2c.check(builder.build())
    assert (result.exit_code, result.corruptions, result.leaks, result.check_errors) == (0, 0, 0, 0)
    assert (result.total_clusters, result.allocated_clusters, result.compressed_clusters) == (1024, 5, 1)
    assert result.fragmented_clusters == 2  # One behind the L2 table, and the compressed one.
    assert result.image_end_offset == builder.end
    assert list(result.messages) == [] and result.filename == "<bytes>"


def test_a_path_is_opened_and_closed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(good().build())
    assert qcow2c.check(tmp_path / "x").filename == str(tmp_path / "x")


def test_leaks_and_low_refcounts_are_told_apart() -> None:
    builder = good()
    leaked = builder.allocate(4096) // 4096
    low = builder.data(30, b"low") // 4096
    builder.refcounts[low] = 0
    result = qcow2c.check(builder.build())
    assert result.exit_code == 2
    assert result.mismatches == [Mismatch(leaked, 1, 0), Mismatch(low, 0, 1)]
    assert (result.leaks, result.corruptions) == (1, 2)  # The copied bit contradicts the refcount as well.
    assert f"Leaked cluster {leaked} refcount=1 reference=0" in list(result.messages)
    assert f"ERROR cluster {low} refcount=0 reference=1" in list(result.messages)


def test_leaks_alone_have_their_own_status() -> None:
    builder = good()
    builder.allocate(3 * 4096)
    result = qcow2c.check(builder.build())
    assert (result.leaks, result.corruptions, result.exit_code) == (3, 0, 3)


@pytest.mark.parametrize("order", range(7))
def test_refcounts_of_every_width_are_compared(order: int) -> None:
    builder = Builder(1 << 20, cluster_bits=12, refcount_order=order)
    builder.data(0, b"x")
    assert qcow2c.check(builder.build()).exit_code == 0
    builder = Builder(1 << 20, cluster_bits=12, refcount_order=order)
    builder.allocate(4096)
    assert qcow2c.check(builder.build()).leaks == 1


@pytest.mark.parametrize("order", [0, 1])
def test_more_references_than_a_refcount_can_hold_overflow(order: int) -> None:
    builder = Builder(1 << 20, cluster_bits=12, refcount_order=order)
    offset = builder.put(b"shared")
    for cluster in range(5):
        builder.entry(cluster, offset)
    most = (1 << (1 << order)) - 1
    builder.refcounts[offset // 4096] = most
    result = qcow2c.check(builder.build())
    assert result.broken["overflow"] == 5 - most
    assert result.mismatches == []


def test_wrong_copied_bits_are_corruptions() -> None:
    builder = good()
    builder.l2[0][0] &= ~L2_COPIED
    builder.l1[0] &= ~L1_COPIED
    result = qcow2c.check(builder.build())
    assert result.broken == {"copied": 2}


BROKEN = {
    "l2.reserved": (1 << 57 | L2_COPIED, 0, 0),
    "l2.misaligned": (512 | L2_COPIED, 0, 0),
    "l2.compressed_copied": (L2_COMPRESSED | L2_COPIED | 4096, 0, 0),
    "l2.subclusters_contradict": (8 << 14 | L2_COPIED, 1 << 32 | 1, EXTENDED_L2),
    "l2.subclusters_without_cluster": (0, 1, EXTENDED_L2),
    "l2.compressed_bitmap": (L2_COMPRESSED | 4096, 1, EXTENDED_L2),
    "past_end": (1 << 40 | L2_COPIED, 0, 0),
}


@pytest.mark.parametrize(("rule", "case"), BROKEN.items())
def test_each_broken_entry_is_counted_under_its_rule(rule: str, case: tuple[int, int, int]) -> None:
    entry, bitmap, features = case
    builder = Builder(1 << 20, cluster_bits=14 if features else 12, incompatible=features)
    builder.entry(3, entry, bitmap)
    result = qcow2c.check(builder.build())
    assert result.broken[rule] == 1
    assert result.exit_code == 2
    assert [fault.rule for fault in result.faults if fault.rule == rule] == [rule]
    place = builder.fields["l1_table_offset"]
    table = builder.l1[0] & ~L1_COPIED
    where = next(fault.where for fault in result.faults if fault.rule == rule)
    assert where is not None and where.offset == table + 3 * where.length != place
    assert all(line.startswith(("ERROR", "Leaked")) for line in result.messages)


def test_compressed_clusters_of_an_external_data_file_are_counted_and_not_followed() -> None:
    builder = Builder(1 << 20, cluster_bits=12, incompatible=DATA_FILE)
    builder.entry(0, L2_COPIED)
    builder.entry(1, 4096)
    builder.entry(2, L2_COMPRESSED | 1 << 30)
    result = qcow2c.check(builder.build())
    assert result.broken == {"l2.compressed_external": 1, "copied": 1}
    assert result.allocated_clusters == 2


@pytest.mark.parametrize(("entry", "rule"), [(1 << 57, "l1.reserved"), (512, "l1.misaligned")])
def test_broken_l1_entries_are_counted(entry: int, rule: str) -> None:
    builder = good()
    builder.l1[1] = entry
    assert qcow2c.check(builder.build()).broken[rule] == 1


def refcount_table(builder: Builder) -> list[int]:
    return [int(word) for word in layout.words(builder.parts[builder.fields["refcount_table_offset"]])]


@pytest.mark.parametrize(
    ("entry", "rule", "errors"),
    [
        (1, "refcount_table.reserved", 0),
        (512, "refcount_table.misaligned", 0),
        (1 << 40, "refcount_block.outside", 0),
        (-1, "refcount_block.shared", 0),
    ],
)
def test_broken_refcount_table_entries_are_counted(entry: int, rule: str, errors: int) -> None:
    builder = good()
    builder.build()
    words = [*refcount_table(builder), 0]
    words[1] = words[0] if entry == -1 else entry
    builder.parts[builder.fields["refcount_table_offset"]] = b"".join(word.to_bytes(8, "big") for word in words)
    result = qcow2c.check(builder.build())
    assert result.broken[rule] == 1
    assert result.check_errors == errors


def test_refcounts_under_a_misaligned_block_cannot_be_checked() -> None:
    builder = good()
    builder.build()
    builder.parts[builder.fields["refcount_table_offset"]] = (512).to_bytes(8, "big")
    result = qcow2c.check(builder.build())
    assert result.check_errors == builder.end // 4096
    assert result.exit_code == 1


def test_metadata_that_something_else_claims_is_an_overlap() -> None:
    builder = good()
    builder.entry(20, 4096 | L2_COPIED)
    result = qcow2c.check(builder.build())
    assert [(item.cluster, item.owner, item.references) for item in result.overlaps] == [(1, Owner.L1_TABLE, 2)]
    assert "l1 table" in next(iter(result.messages)) or any("l1 table" in line for line in result.messages)


def test_broken_snapshots_are_counted_or_stop_the_check() -> None:
    builder = good()
    builder.snapshot(b"a", l1_table_offset=4097, l1_size=1 << 23)
    builder.snapshot(b"b", id_str=b"2", l1_size=1 << 23)
    builder.snapshot(b"c", id_str=b"3", extra_data=bytes(8))
    broken = qcow2c.check(builder.build()).broken
    assert {key: broken[key] for key in broken if key.startswith("snapshot")} == {
        "snapshot.l1_table_offset": 1,
        "snapshot.l1_size": 1,
        "snapshot.extra_data": 1,
    }
    builder = good()
    builder.snapshot(b"a", extra_data=bytes(2000))
    result = qcow2c.check(builder.build())
    assert result.failed is not None and result.exit_code == 1 and result.check_errors == 1


def test_snapshots_share_clusters_cleanly() -> None:
    builder = good()
    builder.snapshot(b"a")
    builder.snapshot(b"b", id_str=b"2")
    builder.data(40, b"new")
    result = qcow2c.check(builder.build())
    assert (result.exit_code, result.broken, result.mismatches) == (0, {}, [])


def with_bitmap(entry: int, **changes: int) -> Builder:
    builder = good()
    builder.one_bitmap(entry, **changes)
    return builder


def test_bitmaps_are_counted() -> None:
    builder = with_bitmap(0)
    assert qcow2c.check(builder.build()).exit_code == 0
    data = builder.allocate(4096)
    builder.parts[max(offset for offset in builder.parts if len(builder.parts[offset]) == 8)] = data.to_bytes(8, "big")
    builder.fields["refcount_table_offset"] = 0
    assert qcow2c.check(with_bitmap(1).build()).exit_code == 0


@pytest.mark.parametrize(("entry", "changes"), [(2, {}), (512, {}), (0, {"granularity_bits": 3})])
def test_broken_bitmaps_stop_the_check_as_in_qemu(entry: int, changes: dict[str, int]) -> None:
    result = qcow2c.check(with_bitmap(entry, **changes).build())
    assert result.exit_code == 1
    assert result.failed is not None and result.failed.startswith("Invalid argument: bitmap ")
    assert result.faults[0].where is not None


def test_a_torn_bitmap_directory_stops_the_check() -> None:
    builder = with_bitmap(0)
    fields = structs.BITMAPS_EXTENSION.parse(builder.extensions[0][8:])
    builder.extensions[0] = extension(
        ExtensionType.BITMAPS, structs.BITMAPS_EXTENSION.build(fields | {"nb_bitmaps": 2})
    )
    failed = qcow2c.check(builder.build()).failed
    assert failed is not None and failed.startswith("Invalid argument: 1 bitmaps in the directory")


def test_overlapping_l1_tables_are_not_walked_without_end() -> None:
    builder = good()
    for index in range(30):
        builder.snapshot(b"s", id_str=b"%d" % index, l1_table_offset=4096, l1_size=(1 << 22) - index)
    result = qcow2c.check(builder.build())
    assert result.failed is not None and "overlap" in result.failed
    assert result.exit_code == 1


def test_an_image_that_cannot_be_believed_is_an_error() -> None:
    with pytest.raises(NotQcow2):
        qcow2c.check(b"no image")
    builder = good()
    builder.fields["l1_table_offset"] = 77
    with pytest.raises(CorruptMetadata):
        qcow2c.check(builder.build())
