"""Rebase: the disk stays what it was, whatever lies below; and nothing is read or written without need."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import qcow2c
from qcow2c.copy.from_backing import SLAB_BYTES
from qcow2c.disk import map
from qcow2c.disk.size import resize
from qcow2c.errors import (
    ChainError,
    CorruptData,
    CorruptMetadata,
    GateRefused,
    ImageLocked,
    NotQcow2,
    Qcow2Error,
    StoreError,
    UnsupportedFeature,
    UsageError,
)
from qcow2c.format.header import Header, field_span
from qcow2c.ops import snapshots
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.storage.store import Buffer
from tests.building import L1_COPIED, L2_COPIED, Builder, deflate

KIB = 1024
SIZE = 300 * KIB + 512


class Watched(Memory):
    """Memory that notes what is read of it, and fails where it is told to."""

    def __init__(self, data: bytes, broken_from: int = 1 << 62) -> None:
        super().__init__(data)
        self.bytes_read = 0
        self._broken_from = broken_from

    def pread(self, length: int, offset: int) -> bytes:
        self.bytes_read += length
        if offset + length > self._broken_from:
            raise StoreError(f"bad sector at {offset}")
        return super().pread(length, offset)


def scattered(seed: int, size: int) -> bytes:
    """Return content of which different seeds share about a third, zeros another third."""
    data = bytearray(size)
    for start in range(0, size, 3 * KIB):
        kind = random.Random(f"{seed} {start}").randrange(3)
        if kind:
            data[start : start + 3 * KIB] = bytes([kind if kind == 1 else 1 + seed]) * min(3 * KIB, size - start)
    return bytes(data)


def make(path: Path, size: int = SIZE, writes: int = 5, **options: object) -> bytes:
    """Make an image with some writes in it; return its disk."""
    if "backing_file" in options:
        options["backing_fmt"] = "raw" if str(options["backing_file"]).endswith("raw") else "qcow2"
    qcow2c.create(path, size, **options)
    chooser = random.Random(path.name)
    with qcow2c.open(path, "r+") as image:
        for number in range(writes):
            start = chooser.randrange(size // 512) * 512
            length = min(size - start, chooser.choice((512, 9 * KIB, 40 * KIB)))
            if number % 3 == 2:
                image.write_zeroes(start, length)
            else:
                image.pwrite(chooser.randbytes(length), start)
        return image.pread(size, 0)


def disk(path: Path) -> bytes:
    with qcow2c.open(path) as image:
        return image.pread(image.size(), 0)


def names(path: Path) -> tuple[bytes | None, bytes | None]:
    with qcow2c.open(path, backing=False) as image:
        return image.header.backing_file, image.header.backing_format


KINDS = {
    "4k": {"cluster_size": 4 * KIB},
    "64k": {},
    "512": {"cluster_size": 512},
    "version 2": {"compat": "0.10", "cluster_size": 4 * KIB},
    "subclusters": {"extended_l2": True, "cluster_size": 16 * KIB},
    "data file": {"data_file": "data.bin", "cluster_size": 4 * KIB},
    "lazy refcounts": {"lazy_refcounts": True},
}
CHAINS = {
    "none": (None, 0),
    "short": ("short.raw", 100 * KIB + 7),
    "long": ("long.raw", SIZE + 5000),
    "image": ("image.qcow2", SIZE),
    "small image": ("small.qcow2", 50 * KIB),
}


@pytest.fixture
def chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder, which is the working directory, with one backing file of each kind."""
    monkeypatch.chdir(tmp_path)
    for number, (name, size) in enumerate(CHAINS.values()):
        if name is None:
            continue
        if name.endswith("raw"):
            Path(name).write_bytes(scattered(number, size))
        else:
            make(Path(name), size, backing_file="short.raw")
    return tmp_path


@pytest.mark.parametrize("new", CHAINS)
@pytest.mark.parametrize("old", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_disk_stays_the_same(chains: Path, kind: str, old: str, new: str) -> None:
    backing = {} if old == "none" else {"backing_file": CHAINS[old][0]}
    before = make(chains / "overlay.qcow2", **KINDS[kind], **backing)
    name = CHAINS[new][0]
    image_format = None if name is None else "raw" if name.endswith("raw") else "qcow2"
    qcow2c.rebase("overlay.qcow2", name, backing_format=image_format)
    assert disk(chains / "overlay.qcow2") == before
    expected = None if name is None else (name.encode(), str(image_format).encode())
    assert names(chains / "overlay.qcow2") == (expected or (None, None))
    assert qcow2c.check("overlay.qcow2").exit_code == 0


@pytest.mark.parametrize("new", ["none", "long"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "data file"])
def test_what_is_copied_is_compressed_where_that_is_asked_for(chains: Path, kind: str, new: str) -> None:
    before = make(chains / "overlay.qcow2", backing_file="image.qcow2", **KINDS[kind])
    qcow2c.snapshots.create("overlay.qcow2", "kept")
    kept = snapshot_disks(chains / "overlay.qcow2")
    name = CHAINS[new][0]
    qcow2c.rebase("overlay.qcow2", name, backing_format=name and "raw", compressed=True)
    assert any(extent.compressed for extent in qcow2c.map("overlay.qcow2"))
    assert (disk(chains / "overlay.qcow2"), snapshot_disks(chains / "overlay.qcow2")) == (before, kept)
    assert qcow2c.check("overlay.qcow2").exit_code == 0


def test_what_cannot_hold_compressed_data_is_refused_before_anything_is_written(chains: Path) -> None:
    make(chains / "overlay.qcow2", backing_file="short.raw", data_file="data.bin")
    before = (chains / "overlay.qcow2").read_bytes()
    with pytest.raises(UnsupportedFeature, match="external data file"):
        qcow2c.rebase("overlay.qcow2", None, compressed=True)
    assert (chains / "overlay.qcow2").read_bytes() == before
    qcow2c.rebase("overlay.qcow2", None, compressed=True, unsafe=True)  # Nothing is copied.
    with pytest.raises(UnsupportedFeature, match="Compression not supported for this file format"):
        qcow2c.rebase("short.raw", None, compressed=True)


def snapshot_disks(path: Path) -> list[bytes]:
    with qcow2c.open(path) as image:
        return [snapshot.open().pread(snapshot.disk_size, 0) for snapshot in image.snapshots.list()]


@pytest.mark.parametrize("new", ["none", "long"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "data file"])
def test_snapshots_stay_the_same_too(chains: Path, kind: str, new: str) -> None:
    path = chains / "overlay.qcow2"
    make(path, **KINDS[kind], backing_file="image.qcow2", writes=2)
    for number in range(3):
        with qcow2c.open(path, "r+") as image:
            image.pwrite(b"%d" % number * 9 * KIB, 70 * KIB * number)
            image.write_zeroes(70 * KIB * number + 2 * KIB, 3 * KIB)
        snapshots.create(path, f"s{number}")
    with qcow2c.open(path, "r+") as image:
        image.write_zeroes(200 * KIB, 20 * KIB)
    before = disk(path), snapshot_disks(path)
    done = []
    qcow2c.rebase(path, CHAINS[new][0], backing_format="raw", progress=lambda at, size: done.append((at, size)))
    assert (disk(path), snapshot_disks(path)) == before
    assert qcow2c.check(path).exit_code == 0
    assert done[-1] == (4 * SIZE, 4 * SIZE) and done == sorted(done)


def test_a_snapshot_that_is_longer_than_the_disk_stays_the_same(chains: Path) -> None:
    """Then the disk keeps a table that was shared, and must learn that it is its own now."""
    path = chains / "overlay.qcow2"
    make(path, cluster_size=512, backing_file="image.qcow2", writes=0)
    with qcow2c.open(path, "r+") as image:
        for start in range(0, 100 * KIB, 512):
            image.pwrite(b"held" * 128, start)
    snapshots.create(path, "long")
    with qcow2c.open(path, "r+") as image:
        resize(image, 100 * KIB)
    before = disk(path), snapshot_disks(path)
    qcow2c.rebase(path, "")
    assert (disk(path), snapshot_disks(path)) == before
    with qcow2c.open(path) as image:
        refcounts = image.layer.l1_table
        assert len(refcounts) == 4 and all(entry & L1_COPIED for entry in refcounts[3:])
    assert qcow2c.check(path).exit_code == 0


def test_a_cluster_that_is_no_longer_shared_is_known_to_be_its_own(chains: Path) -> None:
    """The disk has zeros where the snapshot, in the same host cluster, shows the backing file."""
    path = chains / "overlay.qcow2"
    make(path, 64 * KIB, cluster_size=16 * KIB, extended_l2=True, backing_file="long.raw", writes=0)
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"x" * 512, 0)
    snapshots.create(path, "s")
    with qcow2c.open(path, "r+") as image:
        image.write_zeroes(512, 16 * KIB - 512)
        image.write_zeroes(16 * KIB, 48 * KIB)
    before = disk(path), snapshot_disks(path)
    qcow2c.rebase(path, "")
    assert (disk(path), snapshot_disks(path)) == before
    assert qcow2c.check(path).exit_code == 0
    with qcow2c.open(path) as image:
        assert image.layer.entry(0) & L2_COPIED


def test_what_is_the_same_in_both_chains_is_not_read() -> None:
    base = Watched(bytes(range(1, 251)) * 4000)
    below = qcow2c_over(base)
    overlay = bytearray()
    qcow2c.create(overlay, 1_000_000 // 512 * 512, backing_file="middle", backing_fmt="qcow2", check_backing=False)
    size = len(overlay)
    base.bytes_read = 0
    qcow2c.rebase(WritableMemory(overlay), "base", backing_format="raw", backing=below, new_backing=base)
    assert base.bytes_read == 0
    assert len(overlay) == size


def qcow2c_over(base: Memory) -> qcow2c.Image:
    """Return an empty image over a raw file."""
    data = bytearray()
    qcow2c.create(data, base.size(), backing_file="base", backing_fmt="raw", check_backing=False)
    return qcow2c.open(bytes(data), backing=base)


def test_what_one_layer_decides_in_both_chains_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed data has no place of its own, and must be known all the same."""
    monkeypatch.chdir(tmp_path)
    builder = Builder(64 * KIB)
    for cluster in range(16):
        builder.compressed(cluster, deflate(bytes([cluster + 1]) * 4096))
    Path("base.qcow2").write_bytes(builder.build())
    make(Path("middle.qcow2"), 64 * KIB, writes=0, backing_file="base.qcow2")
    make(Path("overlay.qcow2"), 64 * KIB, writes=0, backing_file="middle.qcow2")
    size = Path("overlay.qcow2").stat().st_size
    qcow2c.rebase("overlay.qcow2", "base.qcow2", backing_format="qcow2")
    assert Path("overlay.qcow2").stat().st_size == size
    assert disk(tmp_path / "overlay.qcow2") == b"".join(bytes([cluster + 1]) * 4096 for cluster in range(16))


def test_zeros_are_written_as_zero_clusters(chains: Path) -> None:
    make(chains / "overlay.qcow2", writes=0, cluster_size=512)
    qcow2c.rebase("overlay.qcow2", "long.raw", backing_format="raw")
    assert disk(chains / "overlay.qcow2") == bytes(SIZE)
    with qcow2c.open("overlay.qcow2") as image:
        assert {run.kind.name for run in image.layer.runs(0, SIZE)} <= {"ZERO", "UNALLOCATED"}


def test_only_what_differs_is_written(chains: Path) -> None:
    data = bytearray((chains / "long.raw").read_bytes())
    data[70 * KIB] ^= 1
    Path("other.raw").write_bytes(data)
    make(chains / "overlay.qcow2", writes=0, cluster_size=4 * KIB, backing_file="long.raw")
    qcow2c.rebase("overlay.qcow2", "other.raw", backing_format="raw")
    with qcow2c.open("overlay.qcow2") as image:
        held = [run for run in image.layer.runs(0, SIZE) if run.kind.name != "UNALLOCATED"]
    assert [(run.guest_offset, run.length) for run in held] == [(68 * KIB, 4 * KIB)]


def test_neighbours_are_written_together() -> None:
    class Counting(WritableMemory):
        writes: list[int]

        def pwrite(self, data: Buffer, offset: int) -> None:
            self.writes.append(len(data))
            super().pwrite(data, offset)

    overlay = bytearray()
    qcow2c.create(overlay, 3 * SLAB_BYTES, backing_file="b", backing_fmt="raw", check_backing=False)
    store = Counting(overlay)
    store.writes = []
    old = Memory(random.Random(1).randbytes(3 * SLAB_BYTES))
    said: list[tuple[int, int]] = []
    qcow2c.rebase(store, "", backing=old, progress=lambda *done: said.append(done))
    assert store.writes.count(SLAB_BYTES) == 3
    assert said == [(start, 3 * SLAB_BYTES) for start in (0, SLAB_BYTES, 2 * SLAB_BYTES, 3 * SLAB_BYTES)]


def test_bytes_behind_the_last_sector_stay() -> None:
    overlay = bytearray(Builder(4096 + 100).build())
    old, new = Memory(b"o" * 5000), Memory(b"o" * 4096 + b"n" * 904)
    qcow2c.rebase(WritableMemory(overlay), "new", backing_format="raw", backing=old, new_backing=new)
    with qcow2c.open(bytes(overlay), backing=new) as image:
        assert image.pread(5000, 0) == b"o" * 4196


def test_a_feature_that_nobody_knows_is_cleared() -> None:
    overlay = bytearray(Builder(64 * KIB).build())
    where = field_span("autoclear_features")
    overlay[where.offset] |= 0x80
    qcow2c.rebase(WritableMemory(overlay), "x", backing_format="raw", unsafe=True)
    assert not overlay[where.offset] & 0x80


# --- without looking ---


def test_unsafe_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "overlay.qcow2"
    qcow2c.create(path, SIZE, backing_file="gone", backing_fmt="raw", check_backing=False)
    qcow2c.rebase(path, "/nowhere/at/all", backing_format="vmdk", unsafe=True)
    assert names(path) == (b"/nowhere/at/all", b"vmdk")
    qcow2c.rebase(path, None, unsafe=True)
    assert names(path) == (None, None)


def test_unsafe_keeps_a_dirty_image_dirty() -> None:
    builder = Builder(64 * KIB, incompatible=1)
    overlay = bytearray(builder.build())
    qcow2c.rebase(WritableMemory(overlay), "x", backing_format="raw", unsafe=True)
    assert Header.load(Memory(bytes(overlay))).dirty


def test_an_image_marked_corrupt_is_not_touched() -> None:
    overlay = bytearray(Builder(64 * KIB, incompatible=2).build())
    before = bytes(overlay)
    for unsafe in (False, True):
        with pytest.raises(CorruptMetadata, match="marked corrupt"):
            qcow2c.rebase(WritableMemory(overlay), "", unsafe=unsafe)
    assert overlay == before


# --- what is refused ---


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"backing_file": "long.raw"}, UsageError, "to 'long.raw': backing format must be specified"),
        ({"backing_file": "long.raw", "backing_format": "foo"}, UsageError, "Invalid format name: 'foo'"),
        ({"backing_file": "", "backing_format": "foo"}, UsageError, "Invalid format name: 'foo'"),
        ({"backing_file": "gone", "backing_format": "raw"}, StoreError, "not open new backing file 'gone': Could"),
        ({"backing_file": "long.raw", "backing_format": "qcow2"}, NotQcow2, "new backing file 'long.raw': not a qcow2"),
        ({"backing_file": "long.raw", "backing_format": "vmdk"}, UnsupportedFeature, "Unknown driver 'vmdk'"),
        ({"backing_file": "nbd://host", "backing_format": "raw"}, GateRefused, "it is no local file"),
        ({"backing_file": "overlay.qcow2", "backing_format": "qcow2"}, ImageLocked, "new backing file 'overlay.qcow2'"),
        ({"backing_file": "overlay.qcow2", "backing_format": "raw"}, ChainError, "would lie on itself"),
        ({"backing_file": "x" * 1024, "backing_format": "raw", "unsafe": True}, UsageError, "Invalid argument"),
        ({"backing_file": "a\0b", "backing_format": "raw", "unsafe": True}, UsageError, "Invalid argument"),
        ({"backing_file": "x" * 900, "backing_format": "raw", "unsafe": True}, UsageError, "No space left in the file"),
        ({"backing_file": "x", "backing_format": "raw", "image_format": "raw"}, UnsupportedFeature, "'x': Operation"),
        ({"backing_file": None, "image_format": "raw", "unsafe": True}, UnsupportedFeature, r"\(null\)"),
        ({"backing_file": "", "image_format": "vdi"}, UnsupportedFeature, "Unknown driver 'vdi': it can be"),
    ],
)  # fmt: skip
def test_nothing_is_written_where_something_is_wrong(
    chains: Path, words: dict[str, object], error: type[Qcow2Error], message: str
) -> None:
    make(chains / "overlay.qcow2", backing_file="short.raw", cluster_size=512)
    before = (chains / "overlay.qcow2").read_bytes()
    with pytest.raises(error, match=message):
        qcow2c.rebase("overlay.qcow2", **words)
    assert (chains / "overlay.qcow2").read_bytes() == before


def test_an_image_does_not_lie_on_its_own_data_file(chains: Path) -> None:
    make(chains / "overlay.qcow2", data_file="data.bin")
    with pytest.raises(ChainError, match="would lie on itself"):
        qcow2c.rebase("overlay.qcow2", "data.bin", backing_format="raw")


def test_a_raw_data_file_excludes_a_backing_file(chains: Path) -> None:
    make(chains / "overlay.qcow2", data_file="data.bin", data_file_raw=True)
    with pytest.raises(UsageError, match="data_file_raw"):
        qcow2c.rebase("overlay.qcow2", "long.raw", backing_format="raw")
    qcow2c.rebase("overlay.qcow2", "")


def test_what_the_new_backing_file_names_goes_through_the_gate(chains: Path) -> None:
    make(chains / "overlay.qcow2")
    folder = chains / "elsewhere"
    folder.mkdir()
    qcow2c.create(folder / "new.qcow2", SIZE, backing_file=str(chains / "long.raw"), backing_fmt="raw")
    with pytest.raises(GateRefused, match=r"new backing file 'elsewhere/new.qcow2': backing file .* absolute path"):
        qcow2c.rebase("overlay.qcow2", "elsewhere/new.qcow2", backing_format="qcow2")
    before = disk(chains / "overlay.qcow2")
    qcow2c.rebase("overlay.qcow2", "elsewhere/new.qcow2", backing_format="qcow2", gate="any")
    with qcow2c.open("overlay.qcow2", gate="any") as image:
        assert image.pread(SIZE, 0) == before


def test_errors_say_what_was_being_done() -> None:
    old, new = Watched(b"o" * 90_000, 65536), Watched(b"n" * 90_000, 4096)
    for first, second, message in ((old, Memory(b"n" * 90_000), "old"), (Memory(b"o" * 90_000), new, "new")):
        overlay = bytearray()
        qcow2c.create(overlay, 89_600, backing_file="b", backing_fmt="raw", check_backing=False, cluster_size=4096)
        with pytest.raises(StoreError, match=f"^error while reading from {message} backing file: bad sector"):
            qcow2c.rebase(WritableMemory(overlay), "c", backing_format="raw", backing=first, new_backing=second)
        assert Header.load(Memory(bytes(overlay))).backing_file == b"b"


def test_a_table_of_a_backing_file_that_cannot_be_believed_ends_it() -> None:
    builder = Builder(64 * KIB)
    builder.entry(3, L2_COPIED | 0x1F0)
    overlay = bytearray()
    qcow2c.create(overlay, 64 * KIB, backing_file="b", backing_fmt="raw", check_backing=False)
    with pytest.raises(CorruptMetadata, match=r"^error while reading image metadata: "):
        qcow2c.rebase(
            WritableMemory(overlay), "c", backing_format="qcow2", backing=Memory(b"o"), new_backing=builder.build()
        )


def test_a_full_disk_leaves_the_old_backing_file() -> None:
    class Full(WritableMemory):
        def pwrite(self, data: Buffer, offset: int) -> None:
            if offset + len(data) > 700_000:
                raise StoreError("no space")
            super().pwrite(data, offset)

    overlay = bytearray()
    qcow2c.create(overlay, 1 << 20, backing_file="b", backing_fmt="raw", check_backing=False)
    old = Memory(random.Random(1).randbytes(1 << 20))
    with pytest.raises(StoreError, match=r"^Error while writing to COW image: no space"):
        qcow2c.rebase(Full(overlay), "", backing=old)
    with qcow2c.open(bytes(overlay), backing=old) as image:
        assert image.header.backing_file == b"b"
        assert image.pread(1 << 20, 0) == old.pread(1 << 20, 0)


def test_data_past_the_end_of_a_backing_file_ends_it() -> None:
    builder = Builder(64 * KIB)
    builder.entry(3, 1 << 30 | L2_COPIED)
    overlay = bytearray()
    qcow2c.create(overlay, 64 * KIB, backing_file="b", backing_fmt="raw", check_backing=False)
    with pytest.raises(CorruptData, match=r"^error while reading from new backing file: "):
        qcow2c.rebase(
            WritableMemory(overlay), "c", backing_format="qcow2", backing=Memory(b"o"), new_backing=builder.build()
        )


def test_maps_made_by_arrays_are_of_the_tables_as_they_were(chains: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from the file, in windows, while the engine writes: every fourth cluster differs."""
    monkeypatch.setattr(map, "ARRAYS_FROM", 1)
    size = 1 << 20
    for name in ("old.qcow2", "new.qcow2"):
        make(chains / name, size, writes=0, cluster_size=512, backing_file="long.raw")
        with qcow2c.open(name, "r+") as image:
            for start in range(0, size, 2048):
                image.pwrite(name.encode() * 50, start)
    before = make(chains / "overlay.qcow2", size, writes=9, cluster_size=512, backing_file="old.qcow2")
    qcow2c.rebase("overlay.qcow2", "new.qcow2", backing_format="qcow2")
    assert disk(chains / "overlay.qcow2") == before
    assert qcow2c.check("overlay.qcow2").exit_code == 0
