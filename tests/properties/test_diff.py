"""The difference of any two states, against a naive comparison of their bytes, in every form that it has."""

from __future__ import annotations

from io import BytesIO

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

import qcow2c
from qcow2c.disk.differences import differences
from qcow2c.disk.disk import Disk
from qcow2c.format.header import Header
from qcow2c.ops import snapshots
from qcow2c.ops.diff import open_states, write_overlay, write_stream
from qcow2c.ops.patch import patch
from qcow2c.storage.sources import Memory
from qcow2c.structs import SECTOR_SIZE
from qcow2c.testing import images, operations
from qcow2c.testing.histories import Action
from qcow2c.testing.images import apply

ACTIONS = tuple(action for action in Action if action is not Action.REOPEN)


def bytes_of(disk: Disk) -> bytes:
    data = bytearray(disk.size)
    disk.read_into(memoryview(data), 0)
    return bytes(data)


def naive(before: bytes, after: bytes) -> list[tuple[int, bool]]:
    """Return the sectors that differ, and whether they are zeros afterwards."""
    found = []
    for at in range(0, len(after), SECTOR_SIZE):
        one, other = before[at : at + SECTOR_SIZE].ljust(SECTOR_SIZE, b"\0"), after[at : at + SECTOR_SIZE]
        if one != other:
            found.append((at, not any(other)))
    return found


def require_right(before: Disk, after: Disk) -> None:
    one, other = bytes_of(before), bytes_of(after)
    found = list(differences(before, after))
    sectors = [(at, part.zero) for part in found for at in range(part.start, part.end, SECTOR_SIZE)]
    assert sectors == naive(one, other)
    loose = {at for part in differences(before, after, exact=False) for at in range(part.start, part.end, SECTOR_SIZE)}
    assert loose >= {at for at, _ in sectors}
    stream = bytearray()
    write_stream(before, after, stream.extend)
    raw = bytearray(one)
    patch(raw, BytesIO(bytes(stream)), image_format="raw")
    assert bytes(raw) == other
    target = bytearray()
    write_overlay(before, after, target, backing_file="base", backing_fmt="raw", cluster_size=4096)
    with qcow2c.open(bytes(target), backing=BytesIO(one)) as image:
        assert image.readall() == other


@settings(max_examples=20)
@given(images(), st.data())
def test_a_snapshot_and_what_became_of_it(image: bytes, data: DataObject) -> None:
    file = bytearray(image)
    assume(Header.load(Memory(image)).refcount_order > 0)  # Else nothing can be shared.
    snapshots.create(file, "one")
    with qcow2c.open(file, "r+") as written:
        size = written.geometry.cluster_size
        for operation in data.draw(st.lists(operations(written.size(), size, ACTIONS), max_size=5)):
            apply(written, operation)
    with open_states(bytes(file), from_snapshot="one") as disks:
        require_right(*disks)
        require_right(*reversed(disks))


@settings(max_examples=10)
@given(images(max_operations=4), images(max_operations=4))
def test_any_two_images(one: bytes, other: bytes) -> None:
    with open_states(one, other) as disks:
        require_right(*disks)
