"""The survey of an image that is to be repaired: its references, and what of its refcounts can be used."""

from __future__ import annotations

import numpy as np
import pytest

from qcow2c.format import derived
from qcow2c.format.header import Header
from qcow2c.recovery.survey import TABLE_OVERLAP, Survey
from qcow2c.storage.sources import Memory
from tests.building import L2_COPIED, Builder, deflate, packed_words

SIZE = 4096


def filled(**options: int) -> Builder:
    builder = Builder(1 << 22, **options)
    for guest in range(3):
        builder.data(guest, b"x")
    builder.compressed(7, deflate(b"y" * SIZE))
    return builder


def surveyed(builder: Builder | bytes) -> Survey:
    store = Memory(builder if isinstance(builder, bytes) else builder.build())
    return Survey(store, Header.load(store))


def test_a_sound_image_has_the_references_that_its_refcounts_say() -> None:
    survey = surveyed(filled())
    [(first, count)] = survey.chunks()
    assert survey.references(first, count).tolist() == survey.old(first, count).tolist()
    assert survey.damage() == survey.overlap() == ""
    assert survey.is_believable(first, count).all() and survey.past_end_count == 0


def test_refcount_table_and_blocks_can_be_left_out() -> None:
    builder = filled()
    survey = surveyed(builder)
    header = survey.header
    table = header.refcount_table_offset // SIZE
    block = int(survey.table[0]) // SIZE
    clusters = np.array([0, table, block, 1])
    assert survey.references_at(clusters).tolist() == [1, 1, 1, 1]
    assert survey.references_at(clusters, structures=False).tolist() == [1, 0, 0, 1]
    assert survey.references(0, block + 1, structures=False)[[table, block]].tolist() == [0, 0]


def test_references_past_the_end_are_counted_and_their_place_is_known() -> None:
    builder = filled()
    builder.entry(20, 1 << 30 | L2_COPIED)
    survey = surveyed(builder)
    assert survey.past_end_count == 1 and survey.past_end() == 1 << 30
    assert surveyed(filled()).past_end() > 1 << 60


@pytest.mark.parametrize(
    ("what", "words"), [("table", TABLE_OVERLAP), ("block", "something else overlaps a refcount block")]
)
def test_what_overlaps_the_refcounts_is_told(what: str, words: str) -> None:
    builder = filled()
    image = builder.build()
    header = Header.load(Memory(image))
    at = header.refcount_table_offset
    victim = at if what == "table" else int.from_bytes(image[at : at + 8], "big")
    other = filled()
    other.build()
    other.entry(20, victim | L2_COPIED)
    assert surveyed(other).overlap() == words


def with_table(*words: int) -> bytes:
    builder = filled()
    image = bytearray(builder.build())
    at = Header.load(Memory(bytes(image))).refcount_table_offset
    image[at : at + 8 * len(words)] = packed_words(words)
    return bytes(image)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (with_table(0), "clusters in use have no refcount block"),
        (with_table(4096 + 512), "names blocks that cannot be"),
        (with_table(1 << 40), "names blocks that cannot be"),
        (filled(refcount_table_clusters=0).build(), "there is no refcount table"),
        (filled(refcount_table_clusters=1000).build(), "leaves the file"),
    ],
)
def test_refcounts_that_cannot_be_corrected_in_place_are_damaged(image: bytes, words: str) -> None:
    assert words in surveyed(image).damage()


def test_refcounts_of_zero_where_clusters_are_in_use_say_nothing() -> None:
    builder = filled()
    image = bytearray(builder.build())
    at = Header.load(Memory(bytes(image))).refcount_table_offset
    block = int.from_bytes(image[at : at + 8], "big")
    image[block : block + SIZE] = bytes(SIZE)
    survey = surveyed(bytes(image))
    [(first, count)] = survey.chunks()
    assert not survey.is_believable(first, count).any()


def test_only_tables_that_nothing_else_refers_to_are_alone() -> None:
    builder = filled()
    lonely = builder.l1[0] & ~(1 << 63)
    shared = builder.allocate(SIZE)
    builder.entry(20, shared | L2_COPIED)
    builder.l1[1] = shared
    survey = surveyed(builder)
    offsets = np.array([lonely, shared, lonely + 512, 0, 1 << 40], dtype=np.uint64)
    assert survey.is_alone(offsets, SIZE, np.ones(5, dtype=np.uint64)).tolist() == [True, False, False, False, False]


def test_what_is_forgotten_counts_no_more() -> None:
    builder = filled()
    builder.entry(20, 5 * SIZE + 512 | L2_COPIED)
    survey = surveyed(builder)
    before = survey.references_at(np.array([5, 6]))
    survey.forget(np.array([5 * SIZE + 512], dtype=np.uint64), np.ones(1, dtype=np.uint64))
    assert (before - survey.references_at(np.array([5, 6]))).tolist() == [1, 1]


def test_a_table_that_several_entries_name_is_told() -> None:
    builder = filled()
    builder.data(600, b"z")
    assert not surveyed(builder).l1_places()[1].any()
    builder = filled()
    builder.l1[1] = builder.l1[0]
    places, several = surveyed(builder).l1_places()
    assert several.all() and len(places) == 1


def test_clusters_of_stale_bitmaps_are_known() -> None:
    builder = filled()
    builder.one_bitmap(1)
    image = bytearray(builder.build())
    assert surveyed(bytes(image)).stale == []
    autoclear = derived.AUTOCLEAR_FEATURES["bitmaps"].mask
    assert image[95] == autoclear
    image[95] = 0
    stale = surveyed(bytes(image)).stale
    assert len(stale) == 2 and all(end == first + 1 for first, end in stale)


def test_entries_that_name_something_past_the_end_are_told_apart() -> None:
    survey = surveyed(filled())
    end = survey.clusters * SIZE
    entries = np.array([0, SIZE, end - SIZE, end, 1 << 40], dtype=np.uint64)
    assert survey.inside(entries).tolist() == [True, True, True, False, False]
