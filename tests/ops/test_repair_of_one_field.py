"""Damage one field, repair, put the field back: nothing that could be read before is gone.

What a field says of who owns a cluster may be wrong; then no repair may free what it owned.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice

import pytest

import qcow2c
from qcow2c.errors import Qcow2Error
from qcow2c.format.header import Header, field_span
from qcow2c.format.records import read_bitmaps, read_snapshots
from qcow2c.storage.sources import Memory, WritableMemory
from tests.corpus.patch import seed_bytes
from tests.profile import DEEP

SEEDS = ("snapshots.qcow2", "snapshots-v2.qcow2", "bitmaps.qcow2", "luks.qcow2")

WHATS = ("leaks", "all")

STEP = 1 if DEEP else len(WHATS)
"""Each damage is repaired in one of the two ways; the deep profile repairs it in both."""

TABLE = field_span("refcount_table_offset")


@cache
def sound(seed: str) -> bytes:
    return seed_bytes(seed)


def places(seed: str) -> list[int]:
    """Return the bytes of the header, its extensions, of records, and of bitmap tables; not the names of files."""
    store = Memory(sound(seed))
    header = Header.load(store)
    found = [*range(4, header.header_length)]
    for extension in header.extensions:
        found += range(extension.offset, min(extension.span.end, extension.offset + 40))
    for record in read_snapshots(store, header).records:
        found += range(record.span.offset, record.span.end)
    for bitmap in read_bitmaps(store, header).records:
        found += range(bitmap.span.offset, bitmap.span.end)
        found += range(bitmap.bitmap_table_offset, bitmap.bitmap_table_offset + bitmap.bitmap_table_size * 8)
    return found


def damages(seed: str) -> Iterator[tuple[int, bytes]]:
    """Yield places with other bytes for them: a bit flipped, and a byte that is zero."""
    data = sound(seed)
    for at in places(seed):
        yield at, bytes([data[at] ^ 1 << at % 8])
        if data[at]:
            yield at, b"\0"


def assert_nothing_is_gone(seed: str, at: int, wrong: bytes, what: str) -> None:
    data = bytearray(sound(seed))
    right = bytes(data[at : at + len(wrong)])
    data[at : at + len(wrong)] = wrong
    table = data[TABLE.offset : TABLE.end]
    store = WritableMemory(data)
    try:
        qcow2c.repair(store, what)  # type: ignore[arg-type]
    except Qcow2Error:
        return
    if store.pread(TABLE.length, TABLE.offset) == table:  # All refcounts anew: the field is another one.
        store.pwrite(right, at)
    after = store.pread(store.size(), 0)
    found = qcow2c.check(after)
    gone = [str(mismatch) for mismatch in found.mismatches if not mismatch.is_leak]
    assert not gone and found.failed is None, (seed, at, wrong, what, gone, found.failed)


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("what", WHATS)
def test_a_repair_after_one_wrong_field_frees_nothing_that_the_field_owned(seed: str, what: str) -> None:
    lost = []
    for at, wrong in islice(damages(seed), WHATS.index(what), None, STEP):
        try:
            assert_nothing_is_gone(seed, at, wrong, what)
        except AssertionError as gone:
            lost.append(str(gone).splitlines()[0])
    assert not lost, "\n".join(lost)


def test_a_version_2_header_that_goes_on_as_version_3_is_corrupt() -> None:
    data = bytearray(sound("bitmaps.qcow2"))
    data[field_span("version").end - 1] = 2
    found = qcow2c.check(bytes(data))
    assert "header.looks_like_v3" in found.broken and found.exit_code == 2
    assert found.has_lost_owners and not any(line.startswith("Leaked") for line in found.messages)
