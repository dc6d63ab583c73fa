"""compact: every state and bitmap stays, what nobody needs goes; a failure leaves no image, or the old one."""

from __future__ import annotations

import os
import random
import resource
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import qcow2c
from qcow2c import structs
from qcow2c.builder import census, cluster_file, compaction
from qcow2c.errors import (
    CorruptMetadata,
    ImageLocked,
    LimitExceeded,
    MissingKey,
    NotQcow2,
    Qcow2Error,
    StoreError,
    UnsupportedFeature,
    UsageError,
)
from qcow2c.format import derived
from qcow2c.format.header import Header
from qcow2c.format.records import read_snapshots
from qcow2c.ops.compact import _Nowhere, compact, compact_in_place
from qcow2c.references.walk import Walk
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Buffer
from qcow2c.structs import ExtensionType
from tests.bitmap_bits import bitmap_bits
from tests.building import L2_COPIED, L2_ZERO, Builder, deflate, extension, packed_words
from tests.corpus.hostile import CASES, make_case

SIZE = 4096
EXTENDED = derived.INCOMPATIBLE_FEATURES.flags(extended_l2=True)
DATA_FILE = derived.INCOMPATIBLE_FEATURES.flags(data_file=True)


def compacted(image: bytes, **how: Any) -> bytes:
    """Return the compact copy, after it has been checked."""
    target = bytearray()
    found = compact(image, target, **how)
    assert found.compacted_length == len(target) and found == compact(image, **how)
    checked = qcow2c.check(bytes(target))
    assert checked.exit_code == 0, list(checked.messages)
    return bytes(target)


def states(image: bytes, **opened: Any) -> list[bytes]:
    """Return the disk, and disk and VM state of each snapshot."""
    with qcow2c.open(image, **opened) as active:
        found = [active.readall()]
        for snapshot in active.snapshots.list():
            found += [snapshot.open().readall(), snapshot.vm_state().read()]
        return found


def noise(seed: int, length: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(length)


# --- what stays, and what goes ---


def test_states_stay_and_what_they_share_is_stored_once() -> None:
    builder = Builder(64 * SIZE)
    for guest in range(8):
        builder.data(guest, noise(guest))
    builder.snapshot(b"one", id_str=b"7")
    builder.data(3, noise(33))
    builder.snapshot(b"two", id_str=b"9", disk_size=32 * SIZE, extra_data=bytes(8) + b"\0" * 6 + b"\2\0" + b"x" * 30)
    image = builder.build()
    copy = compacted(image)
    assert states(copy) == states(image)
    assert compact(image).data_clusters == 9
    one, other = (read_snapshots(Memory(data), Header.load(Memory(data))).records for data in (image, copy))
    for before, after in zip(one, other, strict=True):
        for name in ("id_str", "name", "date_sec", "date_nsec", "vm_clock_nsec", "disk_size", "extra_data", "l1_size"):
            assert getattr(before, name) == getattr(after, name)


def test_leaked_and_reserved_clusters_and_zeros_go() -> None:
    builder = Builder(64 * SIZE)
    builder.data(0, noise(0))
    builder.allocate(20 * SIZE)
    for guest in range(1, 9):
        builder.data(guest, b"")
    reserved = builder.data(9, noise(9))
    builder.entry(9, reserved | L2_COPIED | L2_ZERO)
    builder.data(600, b"") if builder.l1_entries > 1 else None
    image = builder.build()
    found = compact(image)
    assert (found.data_clusters, found.zero_clusters) == (1, 8)
    assert found.saved >= 29 * SIZE
    copy = compacted(image)
    assert states(copy) == states(image)
    assert len(copy) == 6 * SIZE  # Header, data, L2, L1, refcount table and block.


def test_a_table_without_anything_goes_too() -> None:
    builder = Builder(64 * SIZE)
    builder.data(5, b"")
    with qcow2c.open(compacted(builder.build())) as image:
        assert list(image.layer.l1_table) == [0]


@pytest.mark.parametrize("version", [2, 3])
def test_zeros_over_a_backing_file_stay_zeros(version: int) -> None:
    builder = Builder(8 * SIZE, version=version)
    builder.backing_file = b"base"
    builder.data(0, noise(0))
    builder.data(1, b"")
    if version == 3:
        builder.entry(2, builder.put(noise(2)) | L2_COPIED | L2_ZERO)
        builder.entry(3, L2_ZERO)
    image = builder.build()
    below = BytesIO(b"below" * 5000)
    copy = compacted(image)
    assert states(copy, backing=below) == states(image, backing=below)
    assert Header.load(Memory(copy)).backing_file == b"base"
    assert compact(image).zero_clusters == (1 if version == 3 else 0)


def extended_builder(*, backing: bool) -> Builder:
    builder = Builder(16 << 14, cluster_bits=14, incompatible=EXTENDED)
    builder.backing_file = b"base" if backing else b""
    part = 512
    builder.data(0, noise(0, 1 << 14))
    builder.data(1, bytes(1 << 14))
    builder.data(2, noise(2, part) + bytes(part) + noise(3, part), 0b011)
    builder.data(3, bytes(2 * part) + noise(4, part), 0b011)  # What is not zero, nobody has.
    builder.data(4, bytes(part) + noise(5, part), 0b01 | 0b10 << 32)
    builder.data(5, noise(6, 1 << 14), 0b111 << 32)
    builder.data(6, noise(7, 1 << 14), 0)
    builder.entry(7, 0, 0b1 << 32)
    return builder


@pytest.mark.parametrize("backing", [False, True])
def test_subclusters_that_nobody_has_do_not_count(*, backing: bool) -> None:
    builder = extended_builder(backing=backing)
    builder.snapshot(b"one")
    builder.entry(0, builder.l2[0][0] & ~L2_COPIED, 0xFFFF | 0xFFFF0000 << 32)  # Another view of the same cluster.
    image = builder.build()
    below = BytesIO(noise(9, 16 << 14)) if backing else None
    for how in ({}, {"compress": True}):
        copy = compacted(image, **how)
        assert states(copy, backing=below) == states(image, backing=below)
    found = compact(image)
    assert (found.data_clusters, found.zero_clusters) == (2, 3)


def test_extended_clusters_compress_where_all_of_them_is_there() -> None:
    builder = Builder(16 << 14, cluster_bits=14, incompatible=EXTENDED)
    for guest in range(6):
        builder.data(guest, b"text" * 4096)
    builder.data(6, b"more" * 4096, 0b1)
    image = builder.build()
    copy = compacted(image, compress=True)
    assert states(copy) == states(image)
    assert compact(image, compress=True).compressed_clusters == 6


def test_the_vm_state_of_a_snapshot_stays_and_that_of_nobody_goes() -> None:
    def vm_builder() -> Builder:
        builder = Builder(4 * SIZE)
        builder.data(0, b"disk")
        builder.l1.append(0)
        for cluster in range(3):
            builder.data(512 + cluster, noise(cluster))
        builder.fields |= {"l1_size": 2, "l1_table_offset": builder.allocate(16)}
        return builder

    builder = vm_builder()
    builder.snapshot(b"running", vm_state_size=3 * SIZE - 100)
    image = builder.build()
    assert states(compacted(image)) == states(image)
    with qcow2c.open(compacted(vm_builder().build())) as alone:
        assert alone.layer.l1_entries == 1
    assert compact(vm_builder().build()).data_clusters == 1


def test_a_disk_without_a_byte_stays_one() -> None:
    builder = Builder(0)
    builder.fields |= {"l1_size": 0, "l1_table_offset": 0}
    builder.snapshot(b"nothing", l1_size=0, l1_table_offset=0)
    copy = compacted(builder.build())
    assert states(copy) == [b"", b"", b""]


def test_a_file_may_end_within_its_last_cluster() -> None:
    builder = Builder(64 * SIZE)
    builder.allocate(3 * SIZE)
    builder._build_refcounts()
    last = builder.end
    builder.data(0, b"tail")
    builder.parts[builder.fields["refcount_table_offset"] + SIZE] = builder.parts[
        builder.fields["refcount_table_offset"] + SIZE
    ]
    image = builder.build()[: last + 2 * SIZE]
    assert states(compacted_unchecked(image))[0][:4] == b"tail"


def compacted_unchecked(image: bytes) -> bytes:
    """Return the copy of an image whose refcounts are too low, as only a dirty one may have them."""
    target = bytearray()
    data = bytearray(image)
    features = derived.INCOMPATIBLE_FEATURES.flags(dirty=True)
    data[72:80] = features.to_bytes(8, "big")
    compact(bytes(data), target)
    assert qcow2c.check(bytes(target)).exit_code == 0
    return bytes(target)


# --- compressed data ---


@pytest.mark.parametrize("order", [0, 1, 2, 4, 6])
def test_gaps_between_compressed_clusters_close(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_READ_BYTES", SIZE)
    builder = Builder(64 * SIZE, refcount_order=order)
    for guest in range(30):
        builder.compressed(guest, deflate(noise(guest, 700).ljust(SIZE, b"\0")), inside=guest * 100 % 3000)
    image = builder.build()
    copy = compacted(image)
    assert states(copy) == states(image)
    assert (len(copy) < len(image) - 15 * SIZE) == (order > 1)


@pytest.mark.parametrize("order", [0, 1, 3, 4])
def test_compressed_clusters_share_host_clusters_only_as_far_as_these_can_count(order: int) -> None:
    builder = Builder(64 * SIZE, refcount_order=order)
    for guest in range(20):
        builder.data(guest, bytes([guest]) * 2000 + noise(guest, 100))
    builder.data(30, noise(30))
    if order > 2:
        for number in range(3):
            builder.snapshot(b"%d" % number)
    image = builder.build()
    copy = compacted(image, compress=True, compression_level=9)
    assert states(copy) == states(image)
    found = compact(image, compress=True)
    assert (found.compressed_clusters, found.data_clusters) == (20, 1)
    if order > 2:
        assert len(copy) < len(image) - 15 * SIZE


def test_much_that_is_compressed_is_placed_bit_by_bit() -> None:
    builder = Builder(4 << 20, cluster_bits=16)
    for guest in range(60):
        builder.data(guest, noise(guest, 32768) + bytes(32768))
    for guest in range(60, 62):
        builder.compressed(guest, deflate(noise(guest, 65536)[:60000].ljust(65536, b"a")))
    image = builder.build()
    for copy in (compacted(image, compress=True), compacted(compacted(image, compress=True))):
        assert states(copy) == states(image)
        assert len(copy) < len(image) * 6 // 10


def test_equal_descriptors_are_gathered_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "_MERGE_FROM", 2)
    builder = Builder(4 * 512 * 64, cluster_bits=9)
    for guest in range(0, 256, 16):
        builder.compressed(guest, deflate(b"abc" + bytes(509)))
    builder.snapshot(b"one")
    image = builder.build()
    assert states(compacted(image)) == states(image)
    monkeypatch.setattr(census, "MAX_COMPRESSED", 15)
    with pytest.raises(LimitExceeded, match="more than 15 compressed"):
        compact(image)


# --- bitmaps and header ---


def bitmap_record(name: bytes, table: int, entries: int, *, flags: int = 2, granularity: int = 9) -> bytes:
    values = {
        "bitmap_table_offset": table,
        "bitmap_table_size": entries,
        "flags": flags,
        "type": 1,
        "granularity_bits": granularity,
        "name_size": len(name),
    }
    record = derived.BITMAP_DIRECTORY_HEADER.packed(values) + name
    return record + bytes(-len(record) % 8)


def bitmaps_builder(*words: int, count: int = 1, consistent: bool = True, flags: int = 2) -> Builder:
    builder = Builder(3 * 4096 * SIZE)
    builder.data(0, noise(0))
    table = builder.put(packed_words(words))
    directory = bitmap_record(b"dirty", table, len(words), flags=flags)
    values = {
        "nb_bitmaps": count,
        "bitmap_directory_size": len(directory),
        "bitmap_directory_offset": builder.put(directory),
    }
    builder.extensions = [
        extension(0x12345678, b"unknown"),
        extension(ExtensionType.BITMAPS, derived.BITMAPS_EXTENSION.packed(values)),
    ]
    autoclear = derived.AUTOCLEAR_FEATURES.flags(bitmaps=consistent) | 1 << 40
    builder.fields |= {"autoclear_features": autoclear, "compatible_features": 1 << 33}
    return builder


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_bitmaps_stay_with_their_flags(flags: int) -> None:
    builder = bitmaps_builder(1, 0, 0, flags=flags)
    table = next(offset for offset, data in builder.parts.items() if data == packed_words([1, 0, 0]))
    builder.parts[table] = packed_words([1, builder.put(noise(5)), builder.put(bytes(SIZE))])
    image = builder.build()
    for copy in (compacted(image), compacted(image, compress=True)):
        assert bitmap_bits(copy) == bitmap_bits(image) and bitmap_bits(copy)[0][1] == flags
        header = Header.load(Memory(copy))
        assert [found.data for found in header.extensions if found.type == 0x12345678] == [b"unknown"]
        assert header.compatible_features == 1 << 33
        assert header.bitmaps_consistent and not header.autoclear_features >> 40


def test_bitmaps_that_nobody_vouches_for_go() -> None:
    header = Header.load(Memory(compacted_loose(bitmaps_builder(1, consistent=False).build())))
    assert header.bitmaps is None and header.autoclear_features == 0


def compacted_loose(image: bytes) -> bytes:
    target = bytearray()
    compact(image, target)
    return bytes(target)


def test_what_is_not_known_of_the_header_stays() -> None:
    builder = Builder(64 * SIZE, header_length=128)
    builder.data(0, noise(0))
    image = bytearray(builder.build())
    image[112:128] = b"later fields ..."
    copy = compacted(bytes(image))
    assert Header.load(Memory(copy)).unknown_fields == b"later fields ..."


def test_a_data_file_is_not_touched() -> None:
    builder = Builder(64 * SIZE, incompatible=DATA_FILE)
    builder.extensions = [extension(ExtensionType.DATA_FILE, b"data.raw")]
    builder.allocate(9 * SIZE)
    for guest in range(4):
        builder.entry(guest, guest * SIZE | L2_COPIED)
    builder.entry(4, L2_ZERO)
    image = builder.build()
    data = noise(0, 5 * SIZE)
    copy = compacted_loose(image)
    assert states(copy, data_file=data) == states(image, data_file=data)
    assert qcow2c.check(copy).exit_code == 0
    assert len(copy) < len(image) - 8 * SIZE
    with pytest.raises(UnsupportedFeature, match="external data file"):
        compact(image, compress=True)


# --- what is refused ---


def broken(change: Any, **options: Any) -> bytes:
    builder = Builder(64 * SIZE, **options)
    builder.data(0, noise(0))
    change(builder)
    return builder.build()


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "corrupt": (lambda made: made.fields.update(incompatible_features=2), {}, CorruptMetadata, "marked corrupt"),
    "luks": (lambda made: made.fields.update(crypt_method=2), {}, MissingKey, "LUKS.* needs the key"),
    "reserved": (lambda made: made.entry(1, 1 << 60), {}, CorruptMetadata, "reserved"),
    "old zero": (lambda made: made.entry(1, L2_ZERO), {"version": 2}, CorruptMetadata, "zero bit"),
    "undercounted": (lambda made: made.refcounts.update({1: -1}), {}, CorruptMetadata, "refcount"),
    "past the end": (lambda made: made.entry(1, 1 << 30 | L2_COPIED), {}, CorruptMetadata, "past the end"),
    "snapshots": (lambda made: made.fields.update(nb_snapshots=70000), {}, LimitExceeded, "70000"),
}


@pytest.mark.parametrize(("change", "options", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_check_would_refuse_is_refused(
    change: Any, options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        compact(broken(change, **options), tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_copied_bit_is_refused_where_the_copy_would_keep_it_and_else_set(tmp_path: Path) -> None:
    outside = bytearray()
    qcow2c.create(outside, 64 * SIZE, data_file=tmp_path / "data", preallocation="metadata")
    own = bytearray()
    qcow2c.create(own, 64 * SIZE, preallocation="metadata")
    for data in (outside, own):
        header = Header.load(Memory(bytes(data)))
        table = int.from_bytes(data[header.l1_table_offset + 1 : header.l1_table_offset + 8])
        data[table] &= 0x7F
        data[table + 8] &= 0x7F
        assert qcow2c.check(bytes(data)).exit_code == 2
    with pytest.raises(CorruptMetadata, match="check finds 1 errors"):
        compact(bytes(outside))
    copy = BytesIO()
    compact(bytes(own), copy)
    assert qcow2c.check(copy.getvalue()).exit_code == 0


def test_a_snapshot_table_that_ends_in_nowhere_is_refused() -> None:
    builder = Builder(64 * SIZE)
    builder.snapshot(b"one", extra_data=bytes(2000))
    with pytest.raises(LimitExceeded, match="extra data"):
        compact(builder.build())


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        (bitmaps_builder(1, 1 << 60, 0), "reserved"),
        (bitmaps_builder(1, 0, 0, count=2), "2"),
        (bitmaps_builder(1, 0, 0, flags=8), "flags"),
    ],
)
def test_broken_bitmaps_are_refused(builder: Builder, words: str) -> None:
    with pytest.raises(CorruptMetadata, match=words):
        compact(builder.build())


def test_encrypted_data_is_moved_and_not_looked_at() -> None:
    builder = Builder(64 * SIZE, crypt_method=1)
    builder.data(0, noise(0))
    builder.data(1, b"")
    builder.allocate(9 * SIZE)
    image = builder.build()
    found = compact(image)
    assert (found.data_clusters, found.zero_clusters) == (2, 0) and found.saved >= 9 * SIZE
    copy = bytearray(compacted(image))
    plain = bytearray(image)
    for data in (copy, plain):
        data[32:36] = bytes(4)  # The bytes as they lie there, without any key.
    assert states(bytes(copy)) == states(bytes(plain))
    with pytest.raises(UnsupportedFeature, match="does not compress"):
        compact(image, compress=True)


def test_options_that_make_no_sense_are_refused() -> None:
    image = Builder(SIZE).build()
    with pytest.raises(UsageError, match="without compression"):
        compact(image, compression_level=3)
    with pytest.raises(UsageError, match="not between 1 and 9"):
        compact(image, compress=True, compression_level=30)


def walk(image: Any) -> Walk:
    return Walk(image, Header.load(image))


@pytest.mark.parametrize("part", range(4))
def test_hostile_images_are_refused_or_become_clean_ones(part: int, tmp_path: Path) -> None:
    made = 0
    for case in [case for case in CASES if not case.heavy][part::12]:
        target = bytearray()
        try:
            compact(make_case(case, tmp_path), target)
        except Qcow2Error:
            assert target[:4] != structs.MAGIC
        else:
            made += 1
            assert qcow2c.check(bytes(target)).exit_code == 0, case.name
    assert made


# --- the file ---


def test_refcounts_are_written_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_file, "_REFCOUNTS_AT_ONCE", 1)
    for clusters in (40, 61, 62, 63, 64, 300):
        builder = Builder(512 * 512, cluster_bits=9, refcount_order=6)
        for guest in range(clusters):
            builder.data(guest, noise(guest, 512))
        image = builder.build()
        assert states(compacted(image)) == states(image)


def test_compressed_data_is_placed_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_file, "WRITE_BYTES", 1)
    builder = Builder(512 * 512, cluster_bits=9)
    for guest in range(300):
        builder.data(guest, noise(guest, 300))
    image = builder.build()
    assert states(compacted(image, compress=True)) == states(image)


def test_nowhere_is_empty() -> None:
    nowhere = _Nowhere()
    nowhere.pwrite(b"x", 0)
    assert nowhere.size() == 0 and nowhere.pread(1, 0) == b""


# --- where it goes ---


class Failing(WritableMemory):
    """Memory that fails at one of its changes."""

    def __init__(self, data: bytearray, fails_at: int) -> None:
        super().__init__(data)
        self.left = fails_at

    def pwrite(self, data: Buffer, offset: int) -> None:
        self._count()
        super().pwrite(data, offset)

    def flush(self) -> None:
        self._count()

    def _count(self) -> None:
        if not self.left:
            raise StoreError("no space left")
        self.left -= 1


def test_no_failure_leaves_what_looks_like_an_image() -> None:
    builder = Builder(64 * SIZE)
    for guest in range(4):
        builder.data(guest, noise(guest))
    image = builder.build()
    for step in range(100):
        target = bytearray()
        try:
            compact(image, Failing(target, step))
        except StoreError:
            # The last flush: the image is there, and only nobody knows for how long.
            if target[:4] != structs.MAGIC:
                with pytest.raises(NotQcow2):
                    Header.load(Memory(bytes(target)))
            continue
        assert step > 4 and states(bytes(target)) == states(image)
        return
    raise AssertionError("it never ended")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image with leaks, which nobody but us has."""
    builder = Builder(1 << 20)
    for guest in range(40):
        builder.data(guest, noise(guest))
    builder.allocate(30 * SIZE)
    path = tmp_path / "disk.qcow2"
    path.write_bytes(builder.build())
    return path


def test_a_copy_is_a_new_file(disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    told: list[tuple[int, int]] = []
    found = qcow2c.compact(disk, target, progress=lambda done, total: told.append((done, total)))
    assert found.saved > 0 and target.stat().st_size == found.compacted_length
    assert told[0] == (0, 40 * SIZE) and told[-1] == (40 * SIZE, 40 * SIZE)
    for place in (target, disk):
        with pytest.raises(UsageError, match="exists already"):
            qcow2c.compact(disk, place)
    assert sorted(tmp_path.iterdir()) == [target, disk]


def test_an_image_that_is_being_written_is_not_copied(disk: Path, tmp_path: Path) -> None:
    with qcow2c.open(disk, "r+"):
        for work in (lambda: qcow2c.compact(disk, tmp_path / "copy"), lambda: compact_in_place(disk)):
            with pytest.raises(ImageLocked):
                work()
    with qcow2c.open(disk), pytest.raises(ImageLocked):
        compact_in_place(disk)
    assert list(tmp_path.iterdir()) == [disk]


def test_in_place_the_file_keeps_what_is_known_of_it(disk: Path, tmp_path: Path) -> None:
    before = states(disk.read_bytes())
    disk.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(disk, 1234, 5678)
    try:
        os.setxattr(disk, "user.note", b"mine")
        noted = True
    except OSError:
        noted = False
    status = disk.stat()
    link = tmp_path / "link"
    link.symlink_to("disk.qcow2")
    found = compact_in_place(link)
    after = disk.stat()
    assert link.is_symlink() and found.saved > 0 and after.st_size == found.compacted_length
    assert (after.st_mode, after.st_uid, after.st_gid) == (status.st_mode, status.st_uid, status.st_gid)
    assert not noted or os.getxattr(disk, "user.note") == b"mine"
    assert states(disk.read_bytes()) == before
    assert sorted(tmp_path.iterdir()) == [disk, link]


def test_in_place_other_names_of_the_file_are_in_the_way(disk: Path, tmp_path: Path) -> None:
    os.link(disk, tmp_path / "other")
    before = disk.read_bytes()
    with pytest.raises(UsageError, match="2 names"):
        compact_in_place(disk)
    with pytest.raises(UsageError, match="only a file with a name"):
        compact_in_place(BytesIO(before))  # type: ignore[arg-type]
    assert disk.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_in_place_without_room_the_image_stays_as_it_is(disk: Path, tmp_path: Path) -> None:
    before = disk.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * SIZE, limits[1]))
    try:
        with pytest.raises(StoreError, match="must be room for the new file beside the old one"):
            compact_in_place(disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert disk.read_bytes() == before and list(tmp_path.iterdir()) == [disk]


def test_in_place_a_name_that_another_file_has_taken_is_left_to_it(disk: Path, tmp_path: Path) -> None:
    def replace(done: int, total: int) -> None:
        if done == total:
            disk.unlink()
            disk.write_bytes(b"another")

    with pytest.raises(StoreError, match="another file has taken its name"):
        compact_in_place(disk, progress=replace)
    assert disk.read_bytes() == b"another" and list(tmp_path.iterdir()) == [disk]


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give files away, and lose that right")
def test_in_place_an_owner_that_cannot_be_kept_is_an_error(disk: Path) -> None:
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        path = Path(folder, "disk.qcow2")
        path.write_bytes(before := disk.read_bytes())
        path.chmod(0o666)
        os.seteuid(4321)
        try:
            with pytest.raises(StoreError, match=r"give the new file the owner of '.*disk\.qcow2'"):
                compact_in_place(path)
        finally:
            os.seteuid(0)
        assert path.read_bytes() == before and os.listdir(folder) == ["disk.qcow2"]


def test_in_place_what_is_appended_is_lost_only_if_that_is_allowed(disk: Path) -> None:
    with disk.open("ab") as file:
        file.write(b"appended by another program")
    before = disk.read_bytes()
    with pytest.raises(UsageError, match="--drop-trailing"):
        compact_in_place(disk)
    assert disk.read_bytes() == before
    compact_in_place(disk, drop_trailing=True)
    assert b"appended by another program" not in disk.read_bytes()
    compact_in_place(disk)
