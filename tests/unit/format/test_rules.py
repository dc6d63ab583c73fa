"""Each rule has an image that breaks it, and a good image breaks none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qcow2c import structs
from qcow2c.errors import Span, UnsupportedFeature
from qcow2c.format import derived, rules
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapRecord, SnapshotRecord
from qcow2c.storage.sources import Memory
from qcow2c.structs import ExtensionType, Limit
from tests.building import Builder, extension

BITS = derived.INCOMPATIBLE_FEATURES
EXTENDED = BITS["extended_l2"].mask
DATA_FILE = BITS["data_file"].mask


def findings(builder: Builder) -> dict[str, Finding]:
    return {found.rule: found for found in rules.header_findings(Header.load(Memory(builder.build())))}


def with_fields(**fields: object) -> Builder:
    builder = Builder(cluster_bits=12)
    builder.build()
    builder.fields |= fields
    return builder


def with_extension(kind: int, data: bytes, **fields: object) -> Builder:
    builder = with_fields(**fields)
    builder.extensions.append(extension(kind, data))
    return builder


def bitmaps(**fields: int) -> bytes:
    good = {"nb_bitmaps": 1, "reserved": 0, "bitmap_directory_size": 32, "bitmap_directory_offset": 1 << 19}
    return bytes(structs.BITMAPS_EXTENSION.build(good | fields))


def pointer(offset: int, length: int = 592) -> bytes:
    return bytes(structs.ENCRYPTION_HEADER_POINTER.build({"offset": offset, "length": length}))


def _duplicate() -> Builder:
    builder = with_extension(7, b"one")
    builder.extensions.append(extension(7, b"two"))
    return builder


FATAL, ERROR, WARNING, NOTE = Severity.FATAL, Severity.ERROR, Severity.WARNING, Severity.NOTE
BROKEN: list[tuple[str, Severity, Callable[[], Builder]]] = [
    ("header.cluster_bits", FATAL, lambda: with_fields(cluster_bits=8)),
    ("header.cluster_bits", FATAL, lambda: with_fields(cluster_bits=22)),
    ("header.l1_size", FATAL, lambda: with_fields(l1_size=Limit.L1_TABLE_BYTES // 8 + 1)),
    ("header.nb_snapshots", FATAL, lambda: with_fields(nb_snapshots=65537)),
    ("header.refcount_order", FATAL, lambda: with_fields(refcount_order=7)),
    ("header.subcluster_size", FATAL, lambda: with_fields(incompatible_features=EXTENDED)),
    ("header.header_length", FATAL, lambda: with_fields(header_length=103)),
    ("header.header_length", FATAL, lambda: with_fields(header_length=4104)),
    ("header.header_length_multiple", WARNING, lambda: with_fields(header_length=113)),
    ("header.backing_file_offset", FATAL, lambda: with_fields(backing_file_offset=4097)),
    ("header.backing_file_size", FATAL, lambda: with_fields(backing_file_offset=200, backing_file_size=1024)),
    ("header.backing_file_size", FATAL, lambda: with_fields(backing_file_offset=4000, backing_file_size=97)),
    (
        "header.raw_data_with_backing",
        WARNING,
        lambda: with_fields(
            incompatible_features=DATA_FILE, autoclear_features=2, backing_file_offset=200, backing_file_size=4
        ),
    ),
    ("header.compression_type", FATAL, lambda: with_fields(compression_type=2)),
    ("header.compression_bit", FATAL, lambda: with_fields(compression_type=1)),
    ("header.compression_bit", FATAL, lambda: with_fields(incompatible_features=BITS["compression_type"].mask)),
    ("header.incompatible_features", FATAL, lambda: with_fields(incompatible_features=1 << 63)),
    ("header.compatible_features", NOTE, lambda: with_fields(compatible_features=1 << 9)),
    ("header.autoclear_features", NOTE, lambda: with_fields(autoclear_features=1 << 9)),
    ("header.l1_too_small", FATAL, lambda: with_fields(size=1 << 40)),
    ("header.refcount_table_size", FATAL, lambda: with_fields(refcount_table_clusters=2049)),
    ("header.no_refcount_table", ERROR, lambda: with_fields(refcount_table_clusters=0)),
    ("header.l1_table_offset", FATAL, lambda: with_fields(l1_table_offset=4097)),
    ("header.l1_table_offset", FATAL, lambda: with_fields(l1_table_offset=(1 << 64) - 4096)),
    ("header.refcount_table_offset", FATAL, lambda: with_fields(refcount_table_offset=512)),
    ("header.snapshots_offset", FATAL, lambda: with_fields(snapshots_offset=1)),
    (
        "header.snapshots_with_data_file",
        WARNING,
        lambda: with_fields(incompatible_features=DATA_FILE, nb_snapshots=1, snapshots_offset=1 << 20),
    ),
    ("header.raw_without_data_file", FATAL, lambda: with_fields(autoclear_features=2)),
    ("extension.too_large", FATAL, lambda: with_extension(7, bytes(8), backing_file_offset=124, backing_file_size=1)),
    ("extension.duplicate", WARNING, _duplicate),
    ("extension.backing_format", FATAL, lambda: with_extension(ExtensionType.BACKING_FORMAT, b"x" * 16)),
    (
        "extension.encryption_without_luks",
        FATAL,
        lambda: with_extension(ExtensionType.ENCRYPTION_HEADER, pointer(1 << 16)),
    ),
    (
        "extension.encryption_length",
        FATAL,
        lambda: with_extension(ExtensionType.ENCRYPTION_HEADER, b"short", crypt_method=2),
    ),
    (
        "extension.encryption_offset",
        FATAL,
        lambda: with_extension(ExtensionType.ENCRYPTION_HEADER, pointer(512), crypt_method=2),
    ),
    ("extension.bitmaps_length", WARNING, lambda: with_extension(ExtensionType.BITMAPS, b"x" * 23)),
    ("extension.bitmaps_inconsistent", NOTE, lambda: with_extension(ExtensionType.BITMAPS, bitmaps())),
    (
        "extension.bitmaps.nb_bitmaps",
        WARNING,
        lambda: with_extension(ExtensionType.BITMAPS, bitmaps(nb_bitmaps=0), autoclear_features=1),
    ),
    (
        "extension.bitmaps.reserved",
        WARNING,
        lambda: with_extension(ExtensionType.BITMAPS, bitmaps(reserved=5), autoclear_features=1),
    ),
    (
        "extension.bitmaps.bitmap_directory_size",
        WARNING,
        lambda: with_extension(ExtensionType.BITMAPS, bitmaps(bitmap_directory_size=1 << 40), autoclear_features=1),
    ),
    (
        "extension.bitmaps.bitmap_directory_offset",
        WARNING,
        lambda: with_extension(ExtensionType.BITMAPS, bitmaps(bitmap_directory_offset=77), autoclear_features=1),
    ),
    ("header.bitmaps_bit", WARNING, lambda: with_fields(autoclear_features=1)),
    ("header.crypt_method", ERROR, lambda: with_fields(crypt_method=3)),
    ("header.no_encryption_header", WARNING, lambda: with_fields(crypt_method=2)),
    ("header.overlap", ERROR, lambda: with_fields(l1_table_offset=0)),
    ("header.overlap", ERROR, lambda: with_fields(snapshots_offset=4096, nb_snapshots=1)),
    ("header.dirty", NOTE, lambda: with_fields(incompatible_features=1)),
    ("header.corrupt", NOTE, lambda: with_fields(incompatible_features=2)),
    ("header.l1_past_end", WARNING, lambda: with_fields(l1_table_offset=1 << 30)),
]


@pytest.mark.parametrize(("rule", "severity", "make"), BROKEN, ids=[rule for rule, _, _ in BROKEN])
def test_each_header_rule_is_broken_by_its_image(rule: str, severity: Severity, make: Callable[[], Builder]) -> None:
    found = findings(make())
    assert rule in found
    assert found[rule].severity is severity
    assert found[rule].where is not None


def test_good_images_break_no_rule() -> None:
    assert findings(Builder()) == {}
    assert findings(Builder(version=2)) == {}
    assert findings(with_extension(ExtensionType.BITMAPS, bitmaps(), autoclear_features=1)) == {}
    assert findings(with_extension(ExtensionType.ENCRYPTION_HEADER, pointer(1 << 16), crypt_method=2)) == {}


def test_unknown_features_are_called_by_their_name() -> None:
    entry = structs.FEATURE_NAME.build({"type": 0, "bit": 40, "name": b"time travel".ljust(46, b"\0")})
    builder = with_extension(ExtensionType.FEATURE_NAME_TABLE, entry, incompatible_features=3 << 40)
    found = findings(builder)["header.incompatible_features"]
    assert "time travel, Unknown incompatible feature: 20000000000" in found.message
    assert found.error is UnsupportedFeature


HEADER = Header.load(Memory(Builder(cluster_bits=12).build()))
SNAPSHOT = SnapshotRecord(Span(0, 64), 4096, 1, b"1", b"name", 1, 2, 3, 0, 1 << 20, None, bytes(16))
BITMAP = BitmapRecord(Span(0, 32), 4096, 1, 0, 1, 16, b"name", b"")


def test_good_records_break_no_rule() -> None:
    assert list(rules.snapshot_findings(HEADER, SNAPSHOT)) == []
    assert list(rules.bitmap_findings(HEADER, BITMAP)) == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"l1_table_offset": 4097}, "snapshot.l1_table_offset"),
        ({"l1_size": 1 << 23}, "snapshot.l1_size"),
        ({"date_nsec": 10**9}, "snapshot.date_nsec"),
        ({"extra_data": bytes(15)}, "snapshot.extra_data"),
        ({"disk_size": 1 << 40}, "snapshot.l1_too_small"),
    ],
)
def test_each_snapshot_rule_is_broken_by_its_record(change: dict[str, object], rule: str) -> None:
    assert [found.rule for found in rules.snapshot_findings(HEADER, SNAPSHOT._replace(**change))] == [rule]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"bitmap_table_size": 0, "flags": 1}, "bitmap.bitmap_table_size"),
        ({"type": 2}, "bitmap.type"),
        ({"granularity_bits": 8}, "bitmap.granularity_bits"),
        ({"granularity_bits": 32}, "bitmap.granularity_bits"),
        ({"name": b""}, "bitmap.name_size"),
        ({"name": bytes(1024)}, "bitmap.name_size"),
        ({"bitmap_table_offset": 0}, "bitmap.bitmap_table_offset"),
        ({"bitmap_table_offset": 4608}, "bitmap.bitmap_table_offset"),
        ({"flags": 4}, "bitmap.flags"),
        ({"extra_data": b"x"}, "bitmap.extra_data_size"),
        ({"bitmap_table_size": 1 << 20}, "bitmap.bitmap_table_size"),
    ],
)
def test_each_bitmap_rule_is_broken_by_its_record(change: dict[str, object], rule: str) -> None:
    assert rule in [found.rule for found in rules.bitmap_findings(HEADER, BITMAP._replace(**change))]


def test_a_bitmap_too_small_for_the_disk_is_told() -> None:
    large = Header.load(Memory(Builder(1 << 36, cluster_bits=16).build()))
    small = BITMAP._replace(bitmap_table_offset=1 << 16, granularity_bits=9)
    assert [found.rule for found in rules.bitmap_findings(large, small)] == ["bitmap.bitmap_table_size"]
    assert list(rules.bitmap_findings(large, small._replace(flags=1))) == []
