"""diff, patch and export: ranges against bytes, streams whole or refused, overlays that show the later state."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.copy.diff_stream import DiffReader, DiffWriter
from qcow2c.disk import differences as differing
from qcow2c.disk.differences import Difference, differences
from qcow2c.disk.disk import open_disk
from qcow2c.errors import CorruptData, MissingKey, StoreError, UnsupportedFeature, UsageError
from qcow2c.ops.diff import diff, open_states, write_overlay, write_stream
from qcow2c.ops.export import export
from qcow2c.ops.patch import patch
from qcow2c.storage.sources import Memory
from tests.building import Builder, deflate

SIZE = 4096


def noise(seed: int, length: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(length)


def two_states() -> bytes:
    """An image of 64 clusters whose active state differs from its snapshot in clusters 2 (data) and 3 (zeros)."""
    builder = Builder(64 * SIZE)
    for guest in range(8):
        builder.data(guest, noise(guest))
    for guest in range(8, 12):
        builder.compressed(guest, deflate(noise(guest, 500).ljust(SIZE, b"x")))
    builder.snapshot(b"one", id_str=b"7")
    builder.data(2, noise(2, 512) + noise(22, SIZE - 512))
    builder.entry(3, 1)
    return builder.build()


CHANGED = [Difference(2 * SIZE + 512, SIZE - 512, zero=False), Difference(3 * SIZE, SIZE, zero=True)]


class Counting(Memory):
    """Memory that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.read = 0

    def pread(self, length: int, offset: int) -> bytes:
        self.read += length
        return super().pread(length, offset)


# --- ranges ---


def test_a_snapshot_and_the_active_state() -> None:
    image = two_states()
    assert list(diff(image, from_snapshot="one", exact=True)) != []
    store = Counting(image)
    told: list[tuple[int, int]] = []
    found = diff(store, from_snapshot="7", progress=lambda done, total: told.append((done, total)))
    assert list(found) == CHANGED
    assert told[0] == (0, 64 * SIZE) and told[-1] == (64 * SIZE, 64 * SIZE)
    back = diff(store, store, to_snapshot="one")
    assert list(back) == [Difference(2 * SIZE + 512, 2 * SIZE - 512, zero=False)]


def test_what_lies_in_one_place_is_not_read() -> None:
    store = Counting(two_states())
    with open_states(store, from_snapshot="one") as (before, after):
        list(differences(before, after, exact=False))  # Tables are loaded now.
        store.read = 0
        assert list(differences(before, after)) == CHANGED
        assert store.read == 3 * SIZE
        store.read = 0
        fast = list(differences(before, after, exact=False))
        assert fast == [Difference(2 * SIZE, SIZE, zero=False), Difference(3 * SIZE, SIZE, zero=True)]
        assert store.read == 0


def test_a_compressed_cluster_that_is_another_one_is_read() -> None:
    builder = Builder(64 * SIZE)
    for guest in range(4):
        builder.compressed(guest, deflate(noise(guest, 500).ljust(SIZE, b"x")))
    builder.snapshot(b"one")
    builder.compressed(1, deflate(noise(1, 500).ljust(SIZE, b"x")))
    builder.compressed(2, deflate(noise(2, 500).ljust(SIZE, b"y")))
    image = builder.build()
    assert list(diff(image, from_snapshot="one")) == [Difference(2 * SIZE, SIZE, zero=False)]
    with open_states(Memory(image), Memory(image), from_snapshot="one") as disks:
        assert list(differences(*disks, exact=False)) == [Difference(0, 4 * SIZE, zero=False)]
    store = Memory(image)
    with open_states(store, store, from_snapshot="one") as disks:
        assert list(differences(*disks, exact=False)) == [Difference(SIZE, 2 * SIZE, zero=False)]


def test_compressed_clusters_of_two_files_are_read() -> None:
    image = two_states()
    other = Builder(64 * SIZE)
    other.compressed(8, deflate(noise(8, 500).ljust(SIZE, b"x")))
    with open_disk(image, snapshot="one") as before, open_disk(other.build()) as after:
        assert list(differences(before, after)) == [
            Difference(0, 8 * SIZE, zero=True),
            Difference(9 * SIZE, 3 * SIZE, zero=True),
        ]


@pytest.mark.parametrize(("one", "other"), [(1000, 1000), (1000, 3000), (3000, 1000), (700, 5120), (0, 100), (100, 0)])
def test_raw_files_may_end_within_a_sector(one: int, other: int) -> None:
    before, after = noise(1, one), bytearray(noise(1, other))
    if other > 600:
        after[600] ^= 1
    found = list(diff(before, bytes(after), from_format="raw", to_format="raw"))
    whole = -(-other // 512) * 512
    result = bytearray(before.ljust(whole, b"\0")[:whole])
    for part in found:
        data = bytes(after).ljust(whole, b"\0")[part.start : part.end]
        assert part.zero == (not any(data)) and not part.start % 512 and not part.length % 512
        result[part.start : part.end] = data
    assert bytes(result) == bytes(after).ljust(whole, b"\0")
    fast = list(diff(before, bytes(after), from_format="raw", to_format="raw", exact=False))
    assert sum(part.length for part in fast) >= sum(part.length for part in found)


def test_much_is_compared_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differing, "SLAB_BYTES", 1024)
    before, after = bytearray(noise(1, 10_240)), bytearray(noise(1, 10_240))
    after[2048:2050] = b"??"
    after[5000:9000] = noise(3, 4000)
    found = list(diff(bytes(before), bytes(after), from_format="raw", to_format="raw"))
    assert found == [Difference(2048, 512, False), Difference(4608, 4608, False)]


def test_states_that_are_encrypted_or_the_same_are_refused() -> None:
    builder = Builder(SIZE, crypt_method=1)
    builder.snapshot(b"one")
    with open_states(builder.build(), from_snapshot="one") as disks, pytest.raises(MissingKey, match="no key"):
        differences(*disks)
    for snapshot in (None, "one"):
        with pytest.raises(UsageError, match="does not differ from itself"):
            list(diff(two_states(), from_snapshot=snapshot, to_snapshot=snapshot))


# --- the stream ---


def stream_of(first: Any, second: Any = None, **how: Any) -> bytes:
    parts: list[bytes] = []
    with open_states(first, second, **how) as (before, after):
        write_stream(before, after, lambda data: parts.append(bytes(data)))
    return b"".join(parts)


def test_the_stream_is_what_its_description_says() -> None:
    stream = stream_of(two_states(), from_snapshot="one")
    data = noise(22, SIZE - 512)
    head = b"qcow2c-diff 1 from 262144 to 262144\ndata 8704 3584\n" + data + b"zero 12288 4096\n"
    assert stream.startswith(head + b"end 2 ") and len(stream) == len(head) + 7 - 1 + 64 + 1
    reader = DiffReader(BytesIO(stream))
    assert (reader.before_size, reader.after_size) == (64 * SIZE, 64 * SIZE)
    assert list(reader.records()) == [(8704, 3584, data), (12288, 4096, None)]


class Pipe:
    """A file that can be read but once."""

    def __init__(self, data: bytes) -> None:
        self._file = BytesIO(data)

    def seekable(self) -> bool:
        return False

    def read(self, length: int = -1) -> bytes:
        return self._file.read(min(length, 100) if length > 0 else length)


@pytest.mark.parametrize("kind", [BytesIO, Pipe])
def test_a_stream_makes_the_later_state_of_the_earlier_one(kind: Any) -> None:
    image = two_states()
    stream = stream_of(image, from_snapshot="one")
    with qcow2c.open(image) as active, active.snapshots["one"].open() as snapshot:
        later, earlier = active.readall(), snapshot.readall()
    raw = bytearray(earlier)
    told: list[tuple[int, int]] = []
    count = patch(raw, kind(stream), progress=lambda done, total: told.append((done, total)))
    assert (count, bytes(raw), told[-1]) == (2, later, (4 * SIZE, 64 * SIZE))
    target = bytearray()
    qcow2c.create(target, 64 * SIZE, cluster_size=512)
    with qcow2c.open(target, "r+") as file:
        file.write(earlier)
    for _ in range(2):  # Again, as after a crash.
        patch(target, kind(stream))
        with qcow2c.open(bytes(target)) as file:
            assert file.readall() == later
    assert qcow2c.check(bytes(target)).exit_code == 0


@pytest.mark.parametrize(("one", "other"), [(SIZE, 3 * SIZE), (3 * SIZE, SIZE)])
def test_raw_files_take_the_size_of_the_later_state(one: int, other: int) -> None:
    before, after = noise(1, one), noise(2, other)
    raw = bytearray(before)
    patch(raw, BytesIO(stream_of(before, after, from_format="raw", to_format="raw")), image_format="raw")
    assert bytes(raw) == after


def test_images_of_the_wrong_kind_are_refused_unchanged() -> None:
    stream = stream_of(two_states(), from_snapshot="one")
    small, strange = bytearray(512), bytearray(b"KDMV" + bytes(508))
    image = bytearray()
    qcow2c.create(image, SIZE)
    for target, error, words in (
        (small, UsageError, "512 bytes, the states 262144 or 262144"),
        (image, UsageError, "4096 bytes, the later state 262144: resize it first"),
        (strange, UnsupportedFeature, "vmdk"),
    ):
        before = bytes(target)
        with pytest.raises(error, match=words):
            patch(target, BytesIO(stream))
        assert bytes(target) == before


def test_a_stream_cut_off_anywhere_writes_nothing() -> None:
    before, after = bytes(2048), bytes(512) + noise(1, 512) + bytes(1024)
    stream = stream_of(before, after, from_format="raw", to_format="raw")
    for length in range(len(stream)):
        raw = bytearray(before)
        with pytest.raises(CorruptData):
            patch(raw, BytesIO(stream[:length]), image_format="raw")
        assert bytes(raw) == before
    for place in range(0, len(stream), 7):
        broken = bytearray(stream)
        broken[place] ^= 1
        with pytest.raises(CorruptData):
            patch(bytearray(before), BytesIO(bytes(broken)), image_format="raw")


HEAD = b"qcow2c-diff 1 from 1024 to 1024\n"
BROKEN = {
    "no stream": (b"QFI\xfb" * 100, "no qcow2c-diff stream"),
    "odd size": (b"qcow2c-diff 1 from 1000 to 1024\n", "a disk of 1000 bytes"),
    "huge size": (b"qcow2c-diff 1 from 0 to 9999999999999999744\n", "a disk of"),
    "past the end": (HEAD + b"zero 512 1024\n", "out of place"),
    "nothing": (HEAD + b"zero 0 0\n", "out of place"),
    "backwards": (HEAD + b"zero 512 512\nzero 0 512\n", "out of place"),
    "unaligned": (HEAD + b"zero 1 512\n", "a range of 512 bytes at 1"),
    "too much": (
        b"qcow2c-diff 1 from 0 to 9223372036854775296\ndata 0 9223372036854774784\n", "a range of 9223372036854774784"
    ),
    "no record": (HEAD + b"none 0 512\n", "neither a record nor the end: b'none 0 512"),
    "count": (HEAD + b"end 1 " + b"0" * 64 + b"\n", "hash is wrong"),
}  # fmt: skip


@pytest.mark.parametrize(("stream", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_streams_are_refused_with_their_place(stream: bytes, words: str) -> None:
    with pytest.raises(CorruptData, match=words) as caught:
        for _ in DiffReader(BytesIO(stream)).records():
            pass
    assert caught.value.where is not None


def test_nothing_may_follow_the_end() -> None:
    parts: list[bytes] = []
    writer = DiffWriter(lambda data: parts.append(bytes(data)), 512, 512)
    writer.finish()
    assert list(DiffReader(BytesIO(b"".join(parts))).records()) == []
    with pytest.raises(CorruptData, match="something follows"):
        list(DiffReader(BytesIO(b"".join(parts) + b"x")).records())


class Broken(Pipe):
    """A file that fails after a while."""

    def __init__(self, data: bytes, lines: int) -> None:
        super().__init__(data)
        self._lines = lines

    def readline(self, length: int) -> bytes:
        self._lines -= 1
        if self._lines < 0:
            raise OSError(5, "Input/output error")
        return self._file.readline(length)

    def read(self, length: int = -1) -> bytes:
        raise OSError(5, "Input/output error")


def test_what_cannot_be_read_of_a_stream_is_told() -> None:
    stream = stream_of(two_states(), from_snapshot="one")
    with pytest.raises(StoreError, match="Could not read the stream: Input/output error"):
        DiffReader(Broken(stream, 0))
    with pytest.raises(StoreError, match="Could not read the stream"):
        list(DiffReader(Broken(stream, 9)).records())
    with pytest.raises(StoreError, match="Could not keep the stream"):
        patch(bytearray(512), Broken(stream, 9))


# --- overlays ---

OVERLAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "512": {"cluster_size": 512},
    "2M": {"cluster_size": 2 << 20},
    "old": {"compat": "0.10", "cluster_size": 4096},
    "old 64k": {"compat": "0.10"},
    "extended": {"extended_l2": True},
    "packed": {"cluster_size": 4096, "compress": True, "compression_type": "zstd", "compression_level": 1},
    "fast": {"exact": False, "cluster_size": 1024},
}


def pair(seed: int) -> tuple[bytes, bytes]:
    """Return two disks that differ here and there, at all borders, in sizes, and in zeros."""
    chooser = random.Random(seed)
    before = bytearray(noise(seed, 512 * chooser.randrange(1, 2000)))
    before[chooser.randrange(len(before)) :: 7] = b""
    before = bytearray(bytes(before).ljust(-(-len(before) // 512) * 512, b"\0"))
    after = bytearray(bytes(before).ljust(512 * chooser.randrange(1, 2000), b"\0"))
    if chooser.random() < 0.5:
        del after[512 * chooser.randrange(1, len(after) // 512 + 1) :]
    for _ in range(chooser.randrange(8)):
        start = chooser.randrange(len(after))
        length = min(len(after) - start, chooser.choice((1, 512, 4096, 70_000, 300_000)))
        after[start : start + length] = bytes(length) if chooser.random() < 0.5 else chooser.randbytes(length)
    return bytes(before), bytes(after)


@pytest.mark.parametrize("options", OVERLAYS.values(), ids=OVERLAYS)
def test_an_overlay_shows_the_later_state(options: dict[str, Any]) -> None:
    for seed in range(6):
        before, after = pair(seed)
        target = bytearray()
        with open_states(before, after, from_format="raw", to_format="raw") as disks:
            write_overlay(*disks, target, backing_file="base", backing_fmt="raw", **options)
        with qcow2c.open(bytes(target), backing=BytesIO(before)) as image:
            assert image.readall() == after
        checked = qcow2c.check(bytes(target))
        assert checked.exit_code == 0, list(checked.messages)


def test_an_overlay_holds_no_more_than_differs() -> None:
    before = noise(1, 1 << 20)
    after = bytearray(before)
    after[70_000] ^= 1
    after[500_000:600_000] = bytes(100_000)
    target = bytearray()
    with open_states(before, bytes(after), from_format="raw", to_format="raw") as disks:
        write_overlay(*disks, target, backing_file="base", backing_fmt="raw", cluster_size=4096)
    with qcow2c.open(bytes(target), backing=False) as image:
        held = [run for run in image.layer.runs(0, image.size()) if run.kind.name != "UNALLOCATED"]
    assert [(run.kind.name, run.guest_offset, run.length) for run in held] == [
        ("DATA", 69632, 4096), ("DATA", 499712, 4096), ("ZERO", 503808, 94208), ("DATA", 598016, 4096)
    ]  # fmt: skip


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"colour": "red"}, "Invalid parameter 'colour'"),
    ({"preallocation": "full"}, "Invalid parameter 'preallocation'"),
    ({"backing_file": None}, "an overlay has a backing file"),
    ({"data_file": "data"}, "no data file"),
    ({"backing_fmt": None}, "without backing format"),
    ({"compression_level": 3}, "without compression"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_overlays_that_make_no_sense_are_refused(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    options = {"backing_file": "base", "backing_fmt": "raw"} | wrong
    with open_states(b"a" * 512, b"b" * 512) as disks, pytest.raises(UsageError, match=words):
        write_overlay(*disks, tmp_path / "over", **options)
    assert list(tmp_path.iterdir()) == []


# --- export ---


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(two_states())
    return path


def content(path: Path) -> bytes:
    with qcow2c.open(path) as image:
        return image.readall()


def test_a_snapshot_becomes_an_image_of_its_own(disk: Path, tmp_path: Path) -> None:
    with qcow2c.open(disk) as image, image.snapshots["one"].open() as snapshot:
        expected = snapshot.readall()
    export(disk, "one", tmp_path / "one.qcow2", compressed=True, cluster_size=4096)
    export(disk, "one", tmp_path / "one.raw", output_format="raw")
    assert content(tmp_path / "one.qcow2") == (tmp_path / "one.raw").read_bytes() == expected


@pytest.mark.parametrize("relative", [None, "one"])
def test_a_snapshot_becomes_an_overlay(disk: Path, tmp_path: Path, relative: str | None) -> None:
    from qcow2c.ops import snapshots

    snapshots.create(disk, "two")
    with qcow2c.open(disk, "r+") as image:
        image.pwrite(b"later", 0)
    with qcow2c.open(disk) as image, image.snapshots["two"].open() as snapshot:
        expected = snapshot.readall()
    export(disk, "one", tmp_path / "one.qcow2")
    options = {"backing_file": "one.qcow2", "backing_fmt": "qcow2", "cluster_size": 4096}
    export(disk, "two", tmp_path / "two.qcow2", relative_to=relative, **options)
    assert content(tmp_path / "two.qcow2") == expected
    with qcow2c.open(tmp_path / "two.qcow2", backing=False) as image:
        held = [run.length for run in image.layer.runs(0, image.size()) if run.kind.name != "UNALLOCATED"]
    assert sum(held) == 2 * SIZE


def test_exports_that_make_no_sense_are_refused(disk: Path, tmp_path: Path) -> None:
    over = {"backing_file": "disk.qcow2", "backing_fmt": "qcow2"}
    before = disk.read_bytes()
    for target, options, words in (
        ("x", {"colour": 1}, "Invalid parameter 'colour'"),
        ("x", {"output_format": "vmdk"}, "Unknown file format"),
        ("x", {"relative_to": "one"}, "needs a backing file"),
        ("x", {"output_format": "raw", "compressed": True}, "Compression not supported"),
        ("x", {"output_format": "raw", **over}, "not supported for file format 'raw'"),
        ("x", over | {"backing_file": "gone"}, "No such file"),
        ("disk.qcow2", over, "cannot be an overlay and its backing file"),
    ):
        with pytest.raises(UsageError, match=words):
            export(disk, "one", tmp_path / target, **options)
    with pytest.raises(UsageError, match="Can't find snapshot"):
        export(disk, "three", tmp_path / "x")
    with pytest.raises(StoreError, match="this very copy reads it"):
        export(disk, "one", disk)
    assert disk.read_bytes() == before and list(tmp_path.iterdir()) == [disk]
