"""What may be written, and what is refused with the place and the words that help."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import qcow2c
from qcow2c.errors import CorruptMetadata, LimitExceeded, Qcow2Error
from qcow2c.format import derived
from qcow2c.format.header import Header
from qcow2c.format.records import read_snapshots
from qcow2c.references.admission import admit, trusted
from qcow2c.storage.sources import Memory
from tests.building import L2_COPIED, Builder, deflate, packed_words

BITS = derived.INCOMPATIBLE_FEATURES
DISK = 256 << 10


def filled(**options: int) -> Builder:
    builder = Builder(DISK, **options)
    for guest in range(4):
        builder.data(guest, bytes([guest + 1]) * 4096)
    builder.compressed(5, deflate(b"c" * 4096))
    return builder


def admission(builder: Builder, *, trust: bool = False) -> object:
    store = Memory(builder.build())
    header = Header.load(store)
    return (trusted if trust else admit)(store, header, read_snapshots(store, header))


def test_a_sound_image_is_admitted() -> None:
    found = admission(filled())
    assert found.verified and not found.undercounted  # type: ignore[attr-defined]


def test_leaks_and_copied_bits_are_no_obstacle() -> None:
    builder = filled()
    builder.allocate(3 * 4096)
    leaked = builder.data(7, b"x" * 4096)
    builder.entry(7, leaked)
    assert admission(builder).verified  # type: ignore[attr-defined]


def overlapping(builder: Builder, victim: int) -> None:
    builder.entry(9, victim | L2_COPIED)
    builder.refcounts[victim // 4096] += 1


def l1_is_data(builder: Builder) -> None:
    overlapping(builder, builder.fields["l1_table_offset"])


def table_is_data(builder: Builder) -> None:
    overlapping(builder, builder.l1[0] & derived.L1_ENTRY["l2_table_offset"].mask)


def low_refcount(builder: Builder) -> None:
    builder.refcounts[builder.data(8, b"8" * 4096) // 4096] = 0


def past_the_end(builder: Builder) -> None:
    builder.entry(9, (1 << 40) | L2_COPIED)


def reserved_bit(builder: Builder) -> None:
    builder.entry(9, builder.put(b"r" * 4096) | 2)


def misaligned(builder: Builder) -> None:
    builder.entry(9, 512 | L2_COPIED)


def bad_l1(builder: Builder) -> None:
    builder.l1[0] |= 1


def marked_corrupt(builder: Builder) -> None:
    builder.fields["incompatible_features"] |= BITS["corrupt"].mask


REFUSED: dict[str, Callable[[Builder], None]] = {
    function.__name__: function
    for function in (
        l1_is_data,
        table_is_data,
        low_refcount,
        past_the_end,
        reserved_bit,
        misaligned,
        bad_l1,
        marked_corrupt,
    )
}


@pytest.mark.parametrize("damage", REFUSED.values(), ids=REFUSED)
def test_damage_is_refused(damage: Callable[[Builder], None]) -> None:
    builder = filled()
    damage(builder)
    with pytest.raises(CorruptMetadata, match="check -r"):
        admission(builder)
    data = bytearray(builder.build())
    before = bytes(data)
    with pytest.raises(Qcow2Error):
        qcow2c.open(data, "r+")
    assert data == before


def test_an_encrypted_image_is_admitted_for_its_references_need_no_key() -> None:
    assert admission(filled(crypt_method=1)).verified  # type: ignore[attr-defined]


def test_a_snapshot_with_low_refcounts_is_refused_too() -> None:
    builder = filled()
    builder.snapshot(b"one")
    assert admission(builder).verified  # type: ignore[attr-defined]
    builder = filled()
    shared = builder.data(8, b"s" * 4096)
    builder.snapshot(b"one")
    builder.refcounts[shared // 4096] = 1
    with pytest.raises(CorruptMetadata, match="refcount 1, but 2 references"):
        admission(builder)


def test_a_dirty_image_says_what_was_counted_too_low() -> None:
    builder = filled(incompatible=BITS["dirty"].mask)
    lost = builder.data(8, b"8" * 4096) // 4096
    builder.refcounts[lost] = 0
    assert admission(builder).undercounted == [(lost, 1)]  # type: ignore[attr-defined]


def test_a_dirty_image_with_too_much_to_count_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcow2c.references.admission_count.MAX_UNDERCOUNTED", 1)
    builder = filled(incompatible=BITS["dirty"].mask)
    for guest in (8, 9):
        builder.refcounts[builder.data(guest, b"8" * 4096) // 4096] = 0
    with pytest.raises(CorruptMetadata, match="more than 1 clusters"):
        admission(builder)


def test_a_refcount_block_that_two_entries_name_is_refused_with_trust_too() -> None:
    builder = filled()
    data = bytearray(builder.build())
    header = Header.load(Memory(bytes(data)))
    at = header.refcount_table_offset
    data[at + 8 : at + 16] = data[at : at + 8]
    for trust in (False, True):
        with pytest.raises(CorruptMetadata, match="name one block"):
            qcow2c.open(bytearray(data), "r+", trust=trust)


@pytest.mark.parametrize("word", [1, 512, 1 << 62])
def test_an_impossible_refcount_block_is_refused(word: int) -> None:
    data = bytearray(filled().build())
    at = Header.load(Memory(bytes(data))).refcount_table_offset
    data[at + 8 : at + 16] = packed_words([word])
    with pytest.raises(CorruptMetadata, match="check -r"):
        qcow2c.open(data, "r+")


def test_trust_knows_where_metadata_is() -> None:
    builder = filled()
    found = admission(builder, trust=True)
    clusters = found.metadata  # type: ignore[attr-defined]
    assert not found.verified  # type: ignore[attr-defined]
    assert 0 in clusters and builder.fields["l1_table_offset"] // 4096 in clusters
    assert builder.data(9, b"9" * 4096) // 4096 not in clusters
    assert "0" not in clusters


def test_more_references_than_a_refcount_can_be_is_an_error() -> None:
    builder = filled(refcount_order=0, incompatible=BITS["dirty"].mask)
    twice = builder.data(8, b"8" * 4096)
    builder.entry(9, twice | L2_COPIED)
    data = bytearray(builder.build())
    with qcow2c.open(data, "r+") as image, pytest.raises(LimitExceeded, match="2 references"):
        image.pwrite(b"x", 0)
