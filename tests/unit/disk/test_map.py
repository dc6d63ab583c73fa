"""map: runs of data, zeros and nothing, across layers, and the bounds on hostile tables."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from qcow2c.disk import map, map_arrays
from qcow2c.disk.disk import open_disk
from qcow2c.disk.map import Extent
from qcow2c.disk.map_layers import MappedLayer, has_preallocated_metadata, mapped_layers
from qcow2c.disk.opening import open_image
from qcow2c.errors import CorruptMetadata, LimitExceeded, UnsupportedFeature
from qcow2c.format import derived
from tests.building import L1_COPIED, L2_COPIED, L2_ZERO, Builder


def assert_both_ways_agree(layers: Sequence[MappedLayer]) -> None:
    """The runs are the same; the batches need not be."""
    size = layers[0].size
    one, many = map.plain_columns(layers, 0, size), map_arrays.columns(layers, 0, size)
    assert [row for batch in many for row in zip(*batch, strict=True)] == [
        row for batch in one for row in zip(*batch, strict=True)
    ]


def test_each_kind_of_cluster_is_told() -> None:
    builder = Builder(5 * 4096)
    place = builder.data(0, b"data")
    builder.entry(1, L2_ZERO)
    reserved = builder.put(b"")
    builder.entry(2, place + 8192 | L2_ZERO | L2_COPIED)
    builder.compressed(3, b"compressed")
    assert reserved > place
    with open_image(builder.build()) as image:
        assert list(image.extents()) == [
            Extent(0, 4096, 0, present=True, zero=False, data=True, offset=place),
            Extent(4096, 4096, 0, present=True, zero=True, data=False, offset=None),
            Extent(8192, 4096, 0, present=True, zero=True, data=False, offset=place + 8192),
            Extent(12288, 4096, 0, present=True, zero=False, data=True, offset=None, compressed=True),
            Extent(16384, 4096, 0, present=False, zero=True, data=False, offset=None),
        ]
        assert [extent.start for extent in image.extents(5000, 4000)] == [5000, 8192]


def test_past_a_short_backing_file_are_zeros_of_the_overlay() -> None:
    base = Builder(4096)
    base.data(0, b"base")
    with open_image(base.build()) as below, open_image(Builder(8192).build(), backing=below) as image:
        found = [(extent.start, extent.depth, extent.data, extent.zero) for extent in image.extents()]
    assert found == [(0, 1, True, False), (4096, 0, False, True)]


def test_files_are_named_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").write_bytes(b"base")
    builder = Builder()
    builder.backing_file = b"base"
    (tmp_path / "top").write_bytes(builder.build())
    monkeypatch.chdir(tmp_path.parent)
    for way in (f"{tmp_path.name}/", f"./{tmp_path.name}//"):
        with open_disk(f"{way}top") as disk:
            assert disk.map.file_names() == [f"{way}top", f"{way}base"]
    monkeypatch.chdir(tmp_path)
    with open_disk("top") as disk:
        assert disk.map.file_names() == ["top", "base"]


def test_encrypted_data_has_no_offset() -> None:
    builder = Builder(4096, crypt_method=1)
    builder.data(0, b"secret")
    with open_image(builder.build()) as image:
        assert [extent.offset for extent in image.extents()] == [None]


def test_a_raw_file_is_mapped_with_its_holes(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    with path.open("wb") as file:
        file.seek(1 << 20)
        file.write(bytes([1]) * 4096)
        file.truncate((2 << 20) + 100)
    with open_disk(path) as disk:
        assert disk.size == (2 << 20) + 512
        (columns,) = disk.map.columns()
    assert columns.starts == [0, 1 << 20, (1 << 20) + 4096]
    assert columns.offsets == columns.starts


def test_another_format_is_refused() -> None:
    with pytest.raises(UnsupportedFeature, match="vmdk"), open_disk(b"KDMV" + bytes(508)):
        pass


@pytest.mark.parametrize("refcount_order", range(7))
def test_preallocated_metadata_shows_the_holes_of_the_file(tmp_path: Path, refcount_order: int) -> None:
    builder = Builder(64 << 12, refcount_order=refcount_order)
    builder.table(0)
    for cluster in range(64):
        builder.data(cluster, b"\1" if cluster == 40 else b"")
    image = builder.build()
    path = tmp_path / "image"
    with path.open("wb") as file:
        for offset in range(0, len(image), 4096):
            piece = image[offset : offset + 4096]
            file.seek(offset)
            if any(piece):
                file.write(piece)
        file.truncate(len(image))
    with open_image(path) as opened_image:
        assert has_preallocated_metadata(opened_image.layer.store, opened_image.header)
        found = list(opened_image.extents())
        assert_both_ways_agree(mapped_layers(opened_image.layer))
    assert [(extent.start >> 12, extent.length >> 12, extent.zero) for extent in found] == [
        (0, 40, True),
        (40, 1, False),
        (41, 23, True),
    ]
    path.write_bytes(image)
    with open_image(path) as filled:
        assert not has_preallocated_metadata(filled.layer.store, filled.header)


def test_an_l1_table_that_names_one_l2_table_a_thousand_times_is_refused() -> None:
    builder = Builder(16 << 30, cluster_bits=12)
    offset = builder.put(b"")
    builder.l1 = [offset | L1_COPIED] * len(builder.l1)
    with open_image(builder.build()) as image, pytest.raises(LimitExceeded, match="again and again"):
        list(image.extents())


def test_what_precedes_a_broken_entry_is_told_first() -> None:
    builder = Builder(1 << 20)
    builder.data(0, b"data")
    builder.entry(2, 1 << 60)
    with open_image(builder.build()) as image:
        found = image.extents()
        assert [next(found).start, next(found).start] == [0, 4096]
        with pytest.raises(CorruptMetadata, match="reserved bits"):
            next(found)


def test_a_raw_external_data_file_is_mapped_in_place() -> None:
    data_file = derived.INCOMPATIBLE_FEATURES["data_file"].mask
    builder = Builder(8192, incompatible=data_file)
    builder.entry(0, L2_COPIED)
    with open_image(builder.build(), data_file=bytes(8192)) as image:
        assert_both_ways_agree(mapped_layers(image.layer))
        assert next(image.extents()).offset == 0


def test_after_many_runs_arrays_go_on_where_the_plain_way_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder(4 << 20, cluster_bits=9)
    chooser = random.Random(1)
    for cluster in range(0, 8192, 2):
        if chooser.random() < 0.6:
            builder.data(cluster, b"x" * 512)
    with open_image(builder.build()) as image:
        expected = list(image.extents())
        monkeypatch.setattr(map, "_BATCH", 100)
        monkeypatch.setattr(map, "ARRAYS_FROM_RUNS", 250)
        monkeypatch.setattr(map, "ARRAYS_FROM_RUNS_OF", 1)
        assert list(image.extents()) == expected
        assert len(expected) > 1000
