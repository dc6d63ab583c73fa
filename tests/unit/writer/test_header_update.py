"""Changing headers: what is asked for changes, everything else stays, and no crash leaves anything in between."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

import qcow2c
from qcow2c.errors import StoreError, UsageError
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange, extensions_of, with_extension
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Buffer
from qcow2c.structs import ExtensionType, Version
from qcow2c.writer.header_update import HeaderUpdate, change_header
from tests.crash.recording import Kind, Recorder, crash_states

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


# --- fields alone ---------------------------------------------------------------------------------------------------


class Failing(WritableMemory):
    """Memory in which one write fails, after `left` others."""

    left: int | None = None

    def pwrite(self, data: Buffer, offset: int) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise StoreError("this write fails")
        super().pwrite(data, offset)


def test_a_crash_leaves_all_old_fields_or_all_new_ones_and_what_they_refer_to() -> None:
    before = image_of(cluster_size=512, backing_file="base.raw")
    old = Header.load(Memory(bytes(before)))
    recorder = Recorder()
    medium = Medium(recorder.store(bytes(before)))
    medium.write([b"a table"], len(before))
    update = HeaderUpdate(medium)
    update.set(l1_table_offset=len(before), size=1)
    update.write(size=512, autoclear_features=0)
    new = replace(old, l1_table_offset=len(before), size=512)
    seen = set()
    for state in crash_states(recorder, 1):
        found = replace(Header.load(Memory(state.files[0])), file_size=old.file_size)
        assert found in (old, new), state.story
        assert found == old or state.files[0][len(before) :].startswith(b"a table")
        seen.add(found == new)
    assert seen == {True, False}
    assert recorder.log[-1].kind is Kind.FLUSH


def test_without_fields_nothing_is_written() -> None:
    recorder = Recorder()
    update = HeaderUpdate(Medium(recorder.store(bytes(image_of()))))
    update.write()
    update.write(size=512)
    written = len(recorder.log)
    update.write()
    assert written == len(recorder.log) == 2


def test_what_was_set_waits_until_it_is_written_and_other_changes_of_the_header_stay() -> None:
    data = image_of()
    store = Failing(data)
    medium = Medium(store)
    update = HeaderUpdate(medium)
    update.set(size=512)
    store.left = 0
    with pytest.raises(StoreError):
        update.write(nb_snapshots=1)
    change_header(medium, Header.load(store), HeaderChange(backing_file=b"other.raw"))
    update.write()
    found = Header.load(store)
    assert (found.size, found.nb_snapshots, found.backing_file) == (512, 0, b"other.raw")


@pytest.mark.parametrize("writes", range(8))
def test_a_refcount_table_that_has_moved_is_named_although_new_bitmaps_could_not_be(writes: int) -> None:
    """The header was read again after the failure, and what was to be said of the table in it was forgotten."""
    data = bytearray()
    qcow2c.create(data, 1 << 20, cluster_size=512, refcount_bits=64)
    store = Failing(data)
    with qcow2c.open(store, "r+") as image:
        image.engine.allocator._scanned = 64  # As if all clusters that the table describes were in use.
        store.left = writes
        with suppress(StoreError), image.engine.changing_bitmaps() as edit:
            edit.add("one")
        store.left = None
        image.pwrite(b"w" * 300_000, 0)
    result = qcow2c.check(bytes(data))
    assert not result.corruptions and not result.failed
    with qcow2c.open(bytes(data)) as image:
        assert image.pread(300_000, 0) == b"w" * 300_000
