"""Changing headers: what is asked for changes, everything else stays, and no crash leaves anything in between."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qcow2c
from qcow2c.errors import UsageError
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange, extensions_of, with_extension
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.structs import ExtensionType, Version
from qcow2c.writer.header_update import change_header
from tests.crash.recording import Recorder, crash_states

NAMES = ExtensionType.FEATURE_NAME_TABLE
UNKNOWN = 0x12345678


def image_of(**options: object) -> bytearray:
    data = bytearray()
    if "backing_file" in options:
        options["backing_fmt"] = "raw"
    qcow2c.create(data, 1 << 20, check_backing=False, **options)
    return data


def changed(data: bytearray, change: HeaderChange) -> Header:
    medium = Medium(WritableMemory(data))
    returned = change_header(medium, Header.load(medium.store), change)
    assert returned == Header.load(Memory(bytes(data)))
    return returned


def facts(header: Header) -> tuple[object, ...]:
    """Return what an image cannot do without; where it lies does not matter."""
    bare = replace(header, extensions=(), backing_file_offset=0, file_size=0)
    return bare, [found for found in extensions_of(header) if found[0] != NAMES]


LONG, SHORT = b"/a/longer/name/" + b"x" * 400, b"base.raw"
CHANGES = {
    "another name": HeaderChange(backing_file=SHORT),
    "a long name": HeaderChange(backing_file=LONG),
    "no name": HeaderChange(backing_file=b""),
    "fields": HeaderChange({"size": 2 << 20, "nb_snapshots": 0}),
    "version 2": HeaderChange({"version": 2}, ()),
    "extensions": HeaderChange(extensions=[(UNKNOWN, b"12345"), (ExtensionType.BACKING_FORMAT, b"raw")]),
    "all": HeaderChange({"size": 512}, [(ExtensionType.BACKING_FORMAT, b"qcow2"), (NAMES, bytes(96))], LONG),
}


@pytest.mark.parametrize("cluster_size", [512, 1024, 65536])
@pytest.mark.parametrize("backing_file", [None, "base.raw", "y" * 250])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_crash_leaves_the_old_header_or_the_new_one(
    change: HeaderChange, backing_file: str | None, cluster_size: int
) -> None:
    too_long = cluster_size == 512 and (change.backing_file == LONG)
    before = image_of(cluster_size=cluster_size, **({"backing_file": backing_file} if backing_file else {}))
    old = Header.load(Memory(bytes(before)))
    recorder = Recorder()
    medium = Medium(recorder.store(bytes(before)))
    if too_long:
        with pytest.raises(UsageError, match="exceed the first cluster"):
            change_header(medium, old, change)
        return
    new = change_header(medium, old, change)
    assert new.backing_file == (old.backing_file if change.backing_file is None else change.backing_file or None)
    if change.extensions is not None:
        assert extensions_of(new) == list(change.extensions)
    else:
        assert extensions_of(new) == extensions_of(old)
    for name, value in change.fields.items():
        assert getattr(new, name) == value
    seen = set()
    roomy = cluster_size != 1024 or (len(old.backing_file or b"") < 200 and change.backing_file != LONG)
    for state in crash_states(recorder, 1):
        found = facts(Header.load(Memory(state.files[0])))
        # Without room for a second name, all is written at once.
        assert not roomy or found in (facts(old), facts(new)), state.story
        seen.add(found == facts(new))
        assert state.files[0][cluster_size:] == before[cluster_size:]
    assert True in seen


def test_the_rest_of_the_header_and_unknown_extensions_stay() -> None:
    data = image_of(backing_file="base.raw", lazy_refcounts=True)
    added = changed(data, HeaderChange(extensions=[(UNKNOWN, b"12345"), *extensions_of(Header.load(Memory(data)))]))
    after = changed(data, HeaderChange(backing_file=b"other.raw"))
    assert extensions_of(after) == extensions_of(added)
    assert after.lazy_refcounts
    assert after.backing_file == b"other.raw"
    assert changed(data, HeaderChange(extensions=with_extension(after, UNKNOWN, b"7"))).extension(UNKNOWN).data == b"7"
    assert changed(data, HeaderChange(extensions=with_extension(after, UNKNOWN, None))).extension(UNKNOWN) is None


def test_the_version_changes_with_the_length_of_the_header() -> None:
    data = image_of(compat="0.10")
    assert changed(data, HeaderChange({"version": Version.V3})).header_length == 112
    assert changed(data, HeaderChange({"version": Version.V2})).header_length == 72
    with pytest.raises(UsageError, match="no field 'incompatible_features'"):
        changed(data, HeaderChange({"incompatible_features": 1}))


def test_needless_parts_of_the_first_cluster_become_zeros() -> None:
    data = image_of(backing_file="~" * 700)
    changed(data, HeaderChange(backing_file=b""))
    assert b"~" not in data[:65536]


def test_too_long_a_name_is_refused() -> None:
    with pytest.raises(UsageError, match="1024 bytes exceeds 1023"):
        changed(image_of(), HeaderChange(backing_file=b"n" * 1024))


def test_what_does_not_fit_into_the_first_sector_is_written_at_once() -> None:
    data = image_of(backing_file="base.raw")
    many = [(UNKNOWN, bytes(600)), (ExtensionType.BACKING_FORMAT, b"raw")]
    after = changed(data, HeaderChange(extensions=many, backing_file=b"other.raw"))
    assert extensions_of(after) == many
    assert after.backing_file == b"other.raw"
