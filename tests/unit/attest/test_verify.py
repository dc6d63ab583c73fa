"""Both parsers over whole images: everything that the header leads to is compared, damaged or not."""

from __future__ import annotations

import pytest

from qcow2c.attest.agreement import NoteKind
from qcow2c.attest.verify import verify
from qcow2c.storage.sources import Memory
from qcow2c.structs import ExtensionType
from tests.building import Builder, deflate, extension

SIZE = 4096


def rich(**options: int) -> Builder:
    builder = Builder(1 << 22, **options)
    builder.extensions.append(extension(ExtensionType.BACKING_FORMAT, b"raw"))
    builder.backing_file = b"below.raw"
    builder.data(0, b"x")
    builder.compressed(3, deflate(b"y" * SIZE))
    builder.snapshot(b"one")
    builder.one_bitmap(1)
    return builder


@pytest.mark.parametrize("options", [{}, {"refcount_order": 1}, {"refcount_order": 6}])
def test_a_sound_image_is_read_alike_and_nothing_is_left_out(options: dict[str, int]) -> None:
    result = verify(Memory(rich(**options).build()))
    assert result.agrees and result.notes == [], result.summary()
    assert result.structures >= 15


def test_a_file_that_is_cut_off_is_compared_as_far_as_it_goes() -> None:
    data = rich().build()
    before = verify(Memory(data)).fields
    result = verify(Memory(data[: len(data) // 2]))
    assert result.agrees and 0 < result.fields < before
    assert NoteKind.UNREADABLE in {note.kind for note in result.notes}


def test_a_value_out_of_bounds_is_compared_and_said_to_be_rejected() -> None:
    result = verify(Memory(rich(nb_snapshots=70_000, cluster_bits=12).build()))
    assert result.agrees
    builder = rich()
    builder.fields["crypt_method"] = 9
    result = verify(Memory(builder.build()))
    assert result.agrees and NoteKind.REJECTED in {note.kind for note in result.notes}


def test_what_is_no_image_has_nothing_to_compare() -> None:
    result = verify(Memory(b"no image"))
    assert result.agrees and result.structures == 0 and len(result.notes) == 1
