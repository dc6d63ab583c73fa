"""Layers as the map sees them: their sizes, the flags of what they hold, and whether to look for holes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qcow2c
from qcow2c.disk.map_layers import (
    BELOW,
    COMPRESSED,
    DATA,
    OFFSET,
    PRESENT,
    ZERO,
    MappedLayer,
    _nonzero,
    has_preallocated_metadata,
    mapped_layers,
)
from qcow2c.disk.opening import open_image
from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import refcount
from qcow2c.format.tables import Kind
from tests.building import Builder


def test_an_impossible_refcount_block_ends_the_count(tmp_path: Path) -> None:
    builder = Builder()
    builder.fields["refcount_table_offset"] = builder.put((513 * 512).to_bytes(8, "big"))
    path = tmp_path / "image"
    path.write_bytes(builder.build())
    with path.open("ab") as file:
        file.truncate(10 << 20)
    with open_image(path) as image:
        assert not has_preallocated_metadata(image.layer.store, image.header)


def layers(builder: Builder, **how: object) -> tuple[MappedLayer, ...]:
    with qcow2c.open(builder.build(), **how) as image:  # type: ignore[arg-type]
        return mapped_layers(image.layer)


def test_disks_are_counted_in_whole_sectors_down_for_images_and_up_for_raw_files() -> None:
    top, below = layers(Builder(10_000), backing=bytes(700))
    assert (top.size, below.size) == (9728, 1024)


def test_what_a_layer_leaves_to_others_is_zeros_where_nothing_lies_below() -> None:
    alone = layers(Builder(), backing=False)[0].flags
    above = layers(Builder(), backing=bytes(512))[0].flags
    assert (alone[Kind.UNALLOCATED], above[Kind.UNALLOCATED]) == (ZERO, BELOW)
    assert alone[Kind.DATA] == above[Kind.DATA] == DATA | PRESENT | OFFSET
    assert alone[Kind.COMPRESSED] == DATA | PRESENT | COMPRESSED
    assert (alone[Kind.ZERO], alone[Kind.ZERO_ALLOCATED]) == (ZERO | PRESENT, ZERO | PRESENT | OFFSET)


def test_encrypted_data_has_no_place_that_a_reader_could_use() -> None:
    flags = layers(Builder(crypt_method=1))[0].flags
    assert not any(flag & OFFSET for flag in flags)


@pytest.mark.parametrize("order", range(7))
@given(data=st.data())
def test_used_clusters_are_counted_as_one_by_one(order: int, data: st.DataObject) -> None:
    block = data.draw(st.binary(min_size=512, max_size=512))
    geometry = Geometry(9, order)
    count = data.draw(st.integers(0, 1 << geometry.refcount_block_bits))
    assert _nonzero(block, count, geometry) == sum(refcount(block, index, order) != 0 for index in range(count))
