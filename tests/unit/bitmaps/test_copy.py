"""Bitmaps for a new image: which are copied, with what said of those that are not, and their bits."""

from __future__ import annotations

import pytest

from qcow2c.bitmaps.copy import bitmaps_to_copy, copy_bitmaps
from qcow2c.builder.options import CreateOptions, Places, header_of
from qcow2c.errors import UsageError
from qcow2c.format.header import Header
from qcow2c.storage.sources import Memory
from tests.unit.bitmaps.images import MIB, bitmaps, change, marked, new_image, with_writes


def source() -> bytearray:
    data = new_image()
    change(data, lambda edit: edit.add("fine", 512), lambda edit: edit.add("coarse", 65536, enabled=False))
    with_writes(data, (1000, 100), (MIB - 1, 1))
    return data


def chosen(data: bytearray, *, skip_broken: bool = False) -> tuple[list[str], list[str]]:
    store, said = Memory(bytes(data)), list[str]()
    found = bitmaps_to_copy(store, Header.load(store), skip_broken=skip_broken, warn=said.append)
    return [bitmap.name for bitmap in found], said


def test_all_are_copied_unless_one_is_broken() -> None:
    assert chosen(source()) == (["fine", "coarse"], [])
    with pytest.raises(UsageError, match="Cannot copy inconsistent bitmap 'fine'"):
        chosen(marked(source(), "fine"))
    names, said = chosen(marked(source(), "fine"), skip_broken=True)
    assert names == ["coarse"] and said == ["Skipping inconsistent bitmap 'fine'"]


def test_version_2_has_none() -> None:
    with pytest.raises(UsageError, match="lacks bitmap support"):
        chosen(new_image(compat="0.10"))


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
def test_bits_flags_and_names_are_those_of_the_source(cluster_size: int) -> None:
    data = source()
    medium = bytearray(cluster_size)

    def place(content: bytes) -> int:
        at = len(medium)
        medium.extend(content.ljust(-(-len(content) // cluster_size) * cluster_size, b"\0"))
        return at

    named = copy_bitmaps([*bitmaps(data)], MIB, cluster_size, place)
    assert named is not None
    options = CreateOptions(MIB, cluster_size=cluster_size)
    places = Places(0, options.geometry.l1_entries(MIB), 0, 0)
    header = header_of(options, places, named)
    medium[: len(header)] = header
    for one, other in zip(bitmaps(data), bitmaps(medium), strict=True):
        assert (one.name, one.granularity, one.enabled) == (other.name, other.granularity, other.enabled)
        assert list(one.ranges()) == list(other.ranges())


def test_without_bitmaps_nothing_is_placed() -> None:
    assert copy_bitmaps([], MIB, 4096, lambda _data: pytest.fail("placed")) is None
