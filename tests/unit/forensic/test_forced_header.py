"""A forced header: what is impossible is replaced, what is possible stays, and the rest of the image is found by it."""

from __future__ import annotations

import pytest

from qcow2c.dump import Dump
from qcow2c.errors import NotQcow2, UsageError
from qcow2c.forensic.forced_header import forced_store
from qcow2c.format.header import Header
from qcow2c.storage.sources import Memory
from tests.building import Builder


def image(**options: int) -> bytes:
    builder = Builder(1 << 20, **options)
    builder.data(0, b"x")
    return builder.build()


@pytest.mark.parametrize("at", [0, 3, 4, 7])
def test_a_wrong_magic_or_version_is_replaced(at: int) -> None:
    whole = image()
    broken = whole[:at] + b"\xee" + whole[at + 1 :]
    store = forced_store(Memory(broken), force=True)
    assert Header.load(store) == Header.load(Memory(whole))
    with Dump(store, ["map"]) as dump:
        assert any(node.name == "data" for section in dump.root.children for node in section.children)


def test_what_is_right_stays() -> None:
    for store in (Memory(image()), Memory(image(version=2))):
        assert forced_store(store, force=True) is store
        assert forced_store(store) is store


def test_impossible_sizes_become_the_usual_ones() -> None:
    whole = image()
    broken = whole[:20] + b"\0\0\0\x63" + whole[24:96] + b"\0\0\0\x40" + b"\0\0\0\x01" + whole[104:]
    header = Header.load(forced_store(Memory(broken), force=True))
    assert (header.cluster_bits, header.refcount_order, header.header_length) == (16, 4, 104)
    assert Header.load(forced_store(Memory(broken), cluster_bits=12)).cluster_bits == 12
    with pytest.raises(UsageError, match=r"cluster_bits 8 is not 9\.\.21"):
        forced_store(Memory(whole), cluster_bits=8)


def test_what_is_no_image_stays_none_without_force() -> None:
    with pytest.raises(NotQcow2):
        Header.load(forced_store(Memory(bytes(600)), cluster_bits=16))
    with Dump(forced_store(Memory(bytes(70_000)), force=True)) as dump:
        assert "".join(dump.text())
