"""A chain of layers: walked from the top, whatever the formats, and each layer tells what it alone holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import qcow2c
from qcow2c import structs
from qcow2c.format import derived
from qcow2c.format.tables import Kind
from qcow2c.image import Image
from qcow2c.layers.chain import files_of, layers_of
from qcow2c.layers.layer import Layer, RawLayer
from qcow2c.storage.sources import LocalFile, Memory
from tests.building import L2_COPIED, L2_ZERO, Builder

CLUSTER = 4096
BASE = bytes([7]) * 5000


@pytest.fixture
def image() -> Iterator[Image]:
    """An image with one cluster of data over one with one cluster of zeros over a raw file."""
    middle, top = Builder(4 * CLUSTER), Builder(8 * CLUSTER)
    middle.entry(1, L2_ZERO)
    top.data(3, b"top")
    with qcow2c.open(middle.build(), backing=BASE) as below, qcow2c.open(top.build(), backing=below) as image:
        yield image


@pytest.fixture
def layers(image: Image) -> list[Layer]:
    return list(layers_of(image.layer))


def test_the_layers_come_from_the_top(layers: list[Layer]) -> None:
    assert [layer.image_format for layer in layers] == ["qcow2", "qcow2", "raw"]
    assert [layer.disk_size for layer in layers] == [8 * CLUSTER, 4 * CLUSTER, len(BASE)]
    assert [layer.backing for layer in layers] == [*layers[1:], None]
    assert list(layers_of(layers[2])) == layers[2:]


def test_without_a_layer_there_is_no_chain() -> None:
    assert list(layers_of(None)) == []


def test_each_layer_tells_what_it_alone_holds(layers: list[Layer]) -> None:
    found = [[(run.kind, run.length) for run in layer.runs(0, 4 * CLUSTER)] for layer in layers]
    assert found == [
        [(Kind.UNALLOCATED, 3 * CLUSTER), (Kind.DATA, CLUSTER)],
        [(Kind.UNALLOCATED, CLUSTER), (Kind.ZERO, CLUSTER), (Kind.UNALLOCATED, 2 * CLUSTER)],
        [(Kind.DATA, 5000), (Kind.ZERO_ALLOCATED, 4 * CLUSTER - 5000)],
    ]


def test_one_run_is_the_first_of_all(layers: list[Layer]) -> None:
    for layer in layers:
        for start in (0, 100, CLUSTER, 5000, 3 * CLUSTER + 1):
            assert layer.run_at(start, CLUSTER) == next(layer.runs(start, CLUSTER))


def test_only_tables_have_entries(layers: list[Layer]) -> None:
    entries = CLUSTER // structs.L1_ENTRY.sizeof()
    assert [layer.table_entries(0, CLUSTER) for layer in layers] == [1 + entries, 1 + entries, 0]
    with qcow2c.open(Builder(CLUSTER).build()) as empty:
        assert empty.layer.table_entries(0, CLUSTER) == 1


def test_an_encrypted_layer_says_so() -> None:
    with qcow2c.open(Builder(CLUSTER, crypt_method=1).build(), backing=BASE) as sealed:
        assert [layer.encrypted for layer in layers_of(sealed.layer)] == [True, False]


def test_a_layer_lies_in_its_file_and_its_data_file() -> None:
    data_file = derived.INCOMPATIBLE_FEATURES["data_file"].mask
    builder = Builder(CLUSTER, incompatible=data_file)
    builder.entry(0, L2_COPIED)
    metadata, data = Memory(builder.build()), Memory(bytes(CLUSTER))
    with qcow2c.open(metadata, data_file=data) as image:
        assert files_of(image.layer) == {metadata.identity(), data.identity()}
        assert image.layer.data_store is data
    assert files_of(RawLayer(data)) == {data.identity()}


def test_holes_of_a_raw_file_are_zeros_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    with path.open("wb") as file:
        file.seek(1 << 20)
        file.write(bytes([1]) * CLUSTER)
        file.truncate(2 << 20)
    store = LocalFile(path)
    try:
        found = list(RawLayer(store).runs(512, (2 << 20) + 512))
    finally:
        store.close()
    assert all(run.host_offset == run.guest_offset for run in found)
    assert [(run.kind, run.guest_offset, run.guest_offset + run.length) for run in found] == [
        (Kind.ZERO_ALLOCATED, 512, 1 << 20),
        (Kind.DATA, 1 << 20, (1 << 20) + CLUSTER),
        (Kind.ZERO_ALLOCATED, (1 << 20) + CLUSTER, 2 << 20),
        (Kind.ZERO_ALLOCATED, 2 << 20, (2 << 20) + 1024),
    ]
