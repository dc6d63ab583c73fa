"""What an image says of itself is believed only if it breaks no rule that is too severe."""

from __future__ import annotations

import pytest

from qcow2c.errors import CorruptMetadata, LimitExceeded
from qcow2c.format import derived
from qcow2c.format.findings import Severity
from qcow2c.format.loaded_image import load_header, load_image, require_not_corrupt
from qcow2c.storage.sources import Memory
from tests.building import Builder

CORRUPT = derived.INCOMPATIBLE_FEATURES["corrupt"].mask


def test_a_sound_image_is_its_header_and_its_snapshots() -> None:
    builder = Builder()
    builder.snapshot(b"before")
    loaded = load_image(Memory(builder.build()))
    assert loaded.header.size == 1 << 20
    assert [record.name for record in loaded.snapshots.records] == [b"before"]
    assert loaded.notices == ()
    require_not_corrupt(loaded.header)


def test_what_is_tolerated_is_told_and_must_not_be_written() -> None:
    loaded = load_image(Memory(Builder(incompatible=CORRUPT).build()))
    assert [notice.rule for notice in loaded.notices] == ["header.corrupt"]
    with pytest.raises(CorruptMetadata, match="must not be written"):
        require_not_corrupt(loaded.header)


def test_a_rule_is_broken_from_a_severity_on_or_if_it_is_named() -> None:
    builder = Builder()
    builder.fields["refcount_table_offset"] = builder.fields["l1_table_offset"]
    store = Memory(builder.build())
    with pytest.raises(CorruptMetadata):
        load_image(store)
    _header, notices = load_header(store, Severity.FATAL)
    (rule,) = [notice.rule for notice in notices]
    assert load_image(store, Severity.FATAL).notices == notices
    with pytest.raises(CorruptMetadata):
        load_header(store, Severity.FATAL, also=(rule,))


def test_a_snapshot_table_that_cannot_be_read_is_refused_in_any_case() -> None:
    builder = Builder()
    builder.snapshot(b"bad", extra_data=bytes(1025))
    store = Memory(builder.build())
    load_header(store, Severity.FATAL)
    for refused_from in (Severity.ERROR, Severity.FATAL):
        with pytest.raises(LimitExceeded, match="extra data"):
            load_image(store, refused_from)
