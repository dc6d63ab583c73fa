"""measure: the sizes of new images and of copies, which clusters count, and what cannot be asked."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c import structs
from qcow2c.disk import map
from qcow2c.disk.disk import SnapshotKey
from qcow2c.disk.map import DATA, OFFSET, PRESENT, ZERO, Columns
from qcow2c.errors import CorruptMetadata, GateRefused, StoreError, UsageError
from qcow2c.ops.measure import Measurement, _data_clusters, measure
from qcow2c.structs import ExtensionType
from tests.building import L2_ZERO, Builder, extension

MIB = 1 << 20
FULL = 8 * 4096
"""Bytes that the metadata of a small image takes: header, L1, L2, refcount table and block; and three of data."""


def qcow2(source: Any, **options: Any) -> Measurement:
    return measure(source, output_format="qcow2", **{"cluster_size": 4096, **options})


def three_clusters() -> Builder:
    """Return a disk of 16 clusters; three hold data, and one zeros."""
    builder = Builder(16 * 4096)
    for cluster in (0, 1, 9):
        builder.data(cluster, b"data")
    builder.entry(4, L2_ZERO)
    return builder


def test_an_empty_image_needs_its_metadata() -> None:
    assert measure(size=0, output_format="qcow2") == Measurement(3 * 65536, 3 * 65536)
    assert measure(size=1, output_format="qcow2") == Measurement(5 * 65536, 6 * 65536)
    assert measure(size=1 << 40, output_format="qcow2") == Measurement(168_034_304, 1_099_679_662_080)


def test_preallocated_space_is_required() -> None:
    full = measure(size=MIB, output_format="qcow2").fully_allocated
    for mode in ("falloc", "full"):
        assert measure(size=MIB, output_format="qcow2", preallocation=mode).required == full
    assert measure(size=MIB, output_format="qcow2", preallocation="metadata").required == full - MIB


def test_a_raw_image_has_whole_sectors() -> None:
    assert measure(size=513) == Measurement(1024, 1024)
    assert measure(b"some bytes") == Measurement(512, 512)
    assert measure(three_clusters().build(), preallocation="whatever") == Measurement(65536, 65536)


def test_only_clusters_with_data_are_required() -> None:
    found = qcow2(three_clusters().build())
    assert found == Measurement(FULL, FULL + 13 * 4096, 0)
    assert qcow2(three_clusters().build(), compat="0.10") == Measurement(FULL, FULL + 13 * 4096)
    assert qcow2(three_clusters().build(), preallocation="full").required == FULL + 13 * 4096


def test_a_new_backing_file_may_have_nothing_in_common() -> None:
    assert qcow2(three_clusters().build(), backing_file="any").required == FULL + 13 * 4096


def test_holes_of_a_raw_file_are_not_required(tmp_path: Path) -> None:
    path = tmp_path / "sparse.raw"
    with path.open("wb") as file:
        file.seek(10 * MIB)
        file.write(bytes(4096))
    assert qcow2(path).required < MIB
    assert qcow2(path, image_format="raw").bitmaps is None
    assert qcow2(io.BytesIO(bytes(16 * 4096))).required == FULL + 13 * 4096


def test_large_clusters_count_once_whatever_touches_them() -> None:
    kinds = [DATA | PRESENT, ZERO | PRESENT, DATA | PRESENT | OFFSET, ZERO, DATA | ZERO | OFFSET, DATA]
    edges = [0, 512, 1024, 4096, 8192, 12_800, 13_312]
    lengths = [end - start for start, end in pairwise(edges)]
    columns = Columns(edges[:-1], lengths, [0] * 6, kinds, [0] * 6)
    for cluster_bits, touched in ((9, 1 + 6 + 1), (10, 1 + 3 + 1), (12, 1 + 1), (13, 2), (14, 1)):
        assert _data_clusters([columns], cluster_bits) == touched
        apart = [Columns(*([value] for value in row)) for row in zip(*columns, strict=True)]
        assert _data_clusters(apart, cluster_bits) == touched


def test_arrays_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = qcow2(three_clusters().build())
    monkeypatch.setattr(map, "ARRAYS_FROM", 0)
    assert qcow2(three_clusters().build()) == plain


def with_bitmaps(*names: bytes, granularity_bits: int = 9, declared: int | None = None, flags: int = 2) -> bytes:
    builder = Builder(16 * MIB, autoclear_features=1)
    directory = b""
    for name in names:
        header = {
            "bitmap_table_offset": builder.put(b"\0"),
            "bitmap_table_size": 1,
            "flags": flags,
            "type": 1,
            "granularity_bits": granularity_bits,
            "name_size": len(name),
            "extra_data_size": 0,
        }
        record = structs.BITMAP_DIRECTORY_RECORD.build({"header": header, "extra_data": b"", "name": name})
        directory += record + bytes(-len(record) % 8)
    fields = {
        "nb_bitmaps": len(names) if declared is None else declared,
        "reserved": 0,
        "bitmap_directory_size": len(directory),
        "bitmap_directory_offset": builder.put(directory),
    }
    builder.extensions.append(extension(ExtensionType.BITMAPS, structs.BITMAPS_EXTENSION.build(fields)))
    return builder.build()


def test_bitmaps_take_their_bits_a_table_and_a_directory() -> None:
    # 16 MiB in sectors are 4096 bytes of bits: eight clusters of 512 bytes, and one each for table and directory.
    assert qcow2(with_bitmaps(b"one"), cluster_size=512).bitmaps == 10 * 512
    assert qcow2(with_bitmaps(b"one", b"two"), cluster_size=512).bitmaps == 19 * 512
    assert qcow2(with_bitmaps(b"one", granularity_bits=16), cluster_size=512).bitmaps == 3 * 512
    assert qcow2(with_bitmaps(*(b"%0500d" % number for number in (1, 2))), cluster_size=512).bitmaps == 21 * 512


def test_bitmaps_that_break_a_rule_are_refused_where_they_matter() -> None:
    for image in (
        with_bitmaps(b"one", granularity_bits=99),
        with_bitmaps(b"one", declared=3),
        with_bitmaps(b"one", declared=0),
    ):
        with pytest.raises(CorruptMetadata):
            qcow2(image)
        assert qcow2(image, compat="0.10").bitmaps is None


def with_snapshots() -> bytes:
    """Return an image whose snapshots have three and four clusters of data; it has five."""
    builder = three_clusters()
    builder.snapshot(b"2", id_str=b"1")
    builder.data(12, b"more")
    builder.snapshot(b"1", id_str=b"2")
    builder.data(13, b"still more")
    return builder.build()


def test_a_snapshot_is_measured_by_id_then_by_name() -> None:
    image = with_snapshots()
    assert qcow2(image).required == FULL + 2 * 4096
    assert qcow2(image, snapshot="1").required == FULL
    assert qcow2(image, snapshot="2").required == FULL + 4096
    assert qcow2(image, snapshot=SnapshotKey(name="1")).required == FULL + 4096
    assert qcow2(image, snapshot=SnapshotKey("1", "2")).required == FULL
    assert measure(image, snapshot="1") == Measurement(65536, 65536)


def test_a_snapshot_of_a_smaller_disk_is_measured_at_the_size_of_today() -> None:
    builder = three_clusters()
    builder.snapshot(b"small", disk_size=8 * 4096)
    assert qcow2(builder.build(), snapshot="small") == Measurement(FULL, FULL + 13 * 4096, 0)


@pytest.mark.parametrize("snapshot", ["none", SnapshotKey("1", "1"), SnapshotKey(name="")])
def test_a_snapshot_that_is_not_there_is_an_error(snapshot: str | SnapshotKey) -> None:
    with pytest.raises(UsageError, match="Failed to load snapshot: Can't find snapshot"):
        qcow2(with_snapshots(), snapshot=snapshot)


def test_a_broken_table_is_an_error_unless_it_does_not_matter() -> None:
    builder = three_clusters()
    builder.entry(3, 1 << 60)
    with pytest.raises(CorruptMetadata):
        qcow2(builder.build())
    assert qcow2(builder.build(), backing_file="base").required == FULL + 13 * 4096


def test_backing_files_go_through_the_gate(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(16 * 4096))
    builder = Builder(16 * 4096)
    builder.backing_file = b"base"
    path = tmp_path / "top.qcow2"
    path.write_bytes(builder.build())
    assert qcow2(path).required == FULL + 13 * 4096
    assert qcow2(path, share=True).required == FULL + 13 * 4096
    with pytest.raises(GateRefused):
        qcow2(path, gate="deny")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "either a size or an image"),
    "both": ({"source": b"", "size": 0}, "together with an image"),
    "format without image": ({"size": 0, "image_format": "raw"}, "only be those of an image"),
    "snapshot without image": ({"size": 0, "snapshot": "1"}, "only be those of an image"),
    "snapshot of raw": ({"source": b"", "snapshot": "1"}, "does not support temporarily loading internal snapshots"),
    "no format": ({"size": 0, "output_format": "foo"}, "Unknown file format 'foo'"),
    "unmeasured": ({"size": 0, "output_format": "vdi"}, "'vdi' does not support size measurement"),
    "uncreated": ({"size": 0, "output_format": "dmg"}, "'dmg' does not support image creation"),
    "no option": ({"size": 0, "colour": "red"}, "Invalid parameter 'colour'"),
    "cluster size": ({"size": 0, "cluster_size": 100}, "power of two between 512 and 2048k"),
    "refcounts": ({"size": 0, "refcount_bits": 3}, "may not exceed 64 bits"),
    "old refcounts": ({"size": 0, "refcount_bits": 8, "compat": "0.10"}, "use compat=1.1 or greater"),
    "version": ({"size": 0, "compat": "v3"}, "Invalid compatibility level: 'v3'"),
    "subclusters": ({"size": 0, "extended_l2": True, "cluster_size": 8192}, "at least 16384 bytes"),
    "preallocation": ({"size": 0, "preallocation": "some"}, "invalid parameter value: some"),
    "too large": ({"size": 1 << 40, "cluster_size": 512}, "The image size is too large"),
}


@pytest.mark.parametrize(("asked", "complaint"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_measured_is_said(asked: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as raised:
        measure(**{"output_format": "qcow2", **asked})
    assert complaint in str(raised.value)


def test_what_has_no_part_in_the_size_is_not_judged() -> None:
    odd = {"compat": "0.10", "lazy_refcounts": True, "data_file_raw": True, "compression_type": "none"}
    assert measure(size=MIB, output_format="qcow2", **odd) == measure(size=MIB, output_format="qcow2")


def test_a_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        measure(tmp_path / "none")


def test_it_is_a_public_name() -> None:
    assert qcow2c.measure is measure
