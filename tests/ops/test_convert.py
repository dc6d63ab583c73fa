"""convert against a bytearray: every kind of source and target, and every way to write."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.disk.disk import SnapshotKey
from qcow2c.errors import ImageLocked, StoreError, UsageError
from qcow2c.ops.convert import convert
from qcow2c.ops.create import create
from qcow2c.storage.sources import Memory, Store, WritableMemory
from tests.building import Builder
from tests.corpus.make_seeds import text

MIB = 1 << 20
CLUSTER = 65536


def content(size: int, seed: int = 1) -> bytes:
    """Return a disk with noise, text that compresses, and zeros, in pieces of all sizes."""
    chooser = random.Random(seed)
    disk, at = bytearray(size), 0
    while at < size:
        length = chooser.choice([512, 4096, 30_000, 200_000])
        piece = chooser.choice([chooser.randbytes(length), b"text" * (length // 4), bytes(length)])
        disk[at : at + length] = piece
        at += length
    return bytes(disk[:size])


DISK = content(9 * MIB + 512)
SMALL = content(3 * CLUSTER + 1024, 2)


def made(disk: bytes = DISK, **options: Any) -> bytes:
    """Return an image of a disk, made by the engine."""
    image = bytearray()
    create(image, len(disk), **options)
    with qcow2c.open(image, "r+") as opened:
        opened.pwrite(disk, 0)
    return bytes(image)


def converted(source: Any, **options: Any) -> bytes:
    target = bytearray()
    convert(source, target, **options)
    return bytes(target)


def disk_of(image: Any, **opening: Any) -> bytes:
    with qcow2c.open(image, **opening) as opened:
        return bytes(opened.pread(opened.size(), 0))


def assert_sound(image: Any) -> None:
    result = qcow2c.check(image)
    assert result.exit_code == 0, list(result.messages)[:5]


# --- every kind of source and target --------------------------------------------------------------------------------

TARGETS: list[dict[str, Any]] = [
    {},
    {"compat": "0.10"},
    {"cluster_size": 512},
    {"cluster_size": 4096, "refcount_bits": 1},
    {"cluster_size": 2 * MIB, "refcount_bits": 64},
    {"extended_l2": True},
    {"extended_l2": True, "cluster_size": 16384},
    {"extended_l2": True, "cluster_size": 2 * MIB},
    {"compressed": True},
    {"compressed": True, "cluster_size": 512},
    {"compressed": True, "compression_type": "zstd", "extended_l2": True},
    {"compressed": True, "cluster_size": 2 * MIB, "compression_level": 1},
    {"preallocation": "metadata"},
    {"preallocation": "falloc", "cluster_size": 4096},
    {"preallocation": "full", "extended_l2": True},
    {"lazy_refcounts": True, "durable": False},
    {"threads": 1},
    {"threads": 16},
]


@pytest.fixture(scope="module")
def sources() -> dict[str, bytes]:
    return {
        "raw": DISK,
        "qcow2": made(),
        "qcow2-512": made(cluster_size=512),
        "compressed": converted(DISK, output_format="qcow2", compressed=True, cluster_size=4096),
        "extended": made(extended_l2=True, cluster_size=16384),
    }


@pytest.mark.parametrize("sparse_size", [4096, 0, 1536])
@pytest.mark.parametrize("options", TARGETS, ids=str)
def test_to_qcow2(options: dict[str, Any], sparse_size: int, sources: dict[str, bytes]) -> None:
    name = "raw" if sparse_size == 4096 else random.Random(f"{options}{sparse_size}").choice(sorted(sources))
    image = converted(sources[name], output_format="qcow2", sparse_size=sparse_size, **options)
    assert disk_of(image) == DISK
    assert_sound(image)


@pytest.mark.parametrize("sparse_size", [4096, 0, 1 << 24])
@pytest.mark.parametrize("name", ["raw", "qcow2", "qcow2-512", "compressed", "extended"])
def test_to_raw(name: str, sparse_size: int, sources: dict[str, bytes]) -> None:
    assert converted(sources[name], sparse_size=sparse_size) == DISK


@pytest.mark.parametrize("options", [{}, {"compressed": True}, {"preallocation": "metadata"}])
def test_equal_disks_make_equal_bytes(options: dict[str, Any], sources: dict[str, bytes], tmp_path: Path) -> None:
    found = {converted(source, output_format="qcow2", **options) for source in sources.values()}
    assert len(found) == 1
    convert(DISK, tmp_path / "copy", output_format="qcow2", **options)
    assert (tmp_path / "copy").read_bytes() in found


def test_zeros_are_not_stored_but_where_they_are_wanted(tmp_path: Path) -> None:
    disk = b"x" * CLUSTER + bytes(30 * MIB)
    sizes = {}
    for name, sparse_size in (("sparse", 4096), ("whole", 0)):
        target = tmp_path / name
        convert(disk, target, sparse_size=sparse_size)
        sizes[name] = target.stat().st_blocks * 512
        assert target.stat().st_size == len(disk)
    assert sizes["sparse"] <= CLUSTER + 4096 and sizes["whole"] >= len(disk)
    assert len(converted(disk, output_format="qcow2")) <= 6 * CLUSTER
    assert disk_of(converted(disk, output_format="qcow2", sparse_size=0)) == disk
    image = converted(b"x" * 30 * MIB, output_format="qcow2")
    assert len(converted(image[: 1 << 16] + image[1 << 16 :], output_format="qcow2", sparse_size=0)) > 30 * MIB


def test_holes_stay_zeros_that_nothing_below_shows_through() -> None:
    image = converted(made(bytes(8 * CLUSTER)), output_format="qcow2", sparse_size=0)
    with qcow2c.open(made(b"seen" * CLUSTER, cluster_size=4096)) as below:
        assert disk_of(image, backing=below) == bytes(8 * CLUSTER)


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_levels_of_compression(method: str) -> None:
    disk = text(2 * MIB, 4)
    levels = (1, 2, 3, 6, 9) if method == "zlib" else (1, 3, 12, 22)
    how: dict[str, Any] = {"output_format": "qcow2", "compressed": True, "compression_type": method}
    images = {level: converted(disk, compression_level=level, **how) for level in levels}
    assert all(disk_of(image) == disk for image in images.values())
    assert len(images[levels[-1]]) < len(images[1]) < MIB * 3 // 2
    assert converted(disk, **how) == images[6 if method == "zlib" else 3]
    for level in (0, -1, levels[-1] + 1):
        with pytest.raises(UsageError, match=f"compression level {level} is not between 1 and {levels[-1]}"):
            converted(disk, compression_level=level, **how)


def test_data_that_does_not_compress_is_stored_as_it_is() -> None:
    noise = random.Random(1).randbytes(CLUSTER + 512)
    image = converted(noise, output_format="qcow2", compressed=True)
    assert disk_of(image) == noise
    assert_sound(image)


def test_disks_are_concatenated() -> None:
    several = [SMALL[:700], made(SMALL, cluster_size=4096), b"", SMALL[:5000]]
    expected = SMALL[:700].ljust(1024, b"\0") + SMALL + SMALL[:5000].ljust(5120, b"\0")
    assert converted(several) == expected
    image = converted(tuple(several), output_format="qcow2", cluster_size=512)
    assert disk_of(image) == expected
    assert_sound(image)


def test_an_empty_disk() -> None:
    assert converted(b"") == b""
    image = converted(b"", output_format="qcow2")
    assert disk_of(image) == b""
    assert_sound(image)


def test_a_snapshot_is_copied_at_the_size_of_today() -> None:
    builder = Builder(MIB)
    builder.data(0, b"old")
    builder.snapshot(b"named", id_str=b"7")
    builder.data(0, b"new")
    image = builder.build()
    for key in ("named", "7", SnapshotKey(name="named"), SnapshotKey(id="7")):
        assert converted(image, snapshot=key) == b"old".ljust(MIB, b"\0")
    assert converted(image)[:3] == b"new"
    with pytest.raises(UsageError, match="Can't find snapshot"):
        converted(image, snapshot="8")
    with pytest.raises(UsageError, match="No support for concatenating multiple snapshot"):
        converted([image, image], snapshot="7")


# --- targets of other kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_over_a_backing_file_only_what_differs_is_stored(*, compressed: bool, tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(DISK)
    overlay = tmp_path / "overlay.qcow2"
    create(overlay, len(DISK), backing_file=str(base), backing_fmt="raw", cluster_size=4096)
    expected = bytearray(DISK)
    with qcow2c.open(overlay, "r+", gate="any") as image:
        for at, piece in ((0, b"first" * 100), (5 * MIB + 512, b"z" * 5000), (2 * MIB, bytes(CLUSTER))):
            image.pwrite(piece, at)
            expected[at : at + len(piece)] = piece
        image.write_zeroes(7 * MIB, 100_000)
        expected[7 * MIB : 7 * MIB + 100_000] = bytes(100_000)
    for backing, place in (("base.raw", tmp_path / "one"), (str(base), tmp_path / "sub")):
        place.mkdir()
        if backing == "base.raw":
            os.link(base, place / backing)
        options = {"backing_file": backing, "backing_fmt": "raw", "compressed": compressed, "output_format": "qcow2"}
        convert(overlay, place / "copy", gate="any", **options)
        assert disk_of(place / "copy", gate="any") == expected
        result = qcow2c.check(place / "copy")
        assert result.exit_code == 0 and result.allocated_clusters < 12
        with pytest.raises(UsageError, match="no sense when concatenating"):
            convert([overlay, overlay], place / "other", gate="any", **options)


def test_a_data_file_takes_the_guest_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for raw in (False, True):
        convert(DISK, "copy", output_format="qcow2", data_file="data", data_file_raw=raw)
        assert disk_of("copy") == DISK
        if raw:
            assert Path("data").read_bytes() == DISK
        assert_sound("copy")
    with pytest.raises(UsageError, match="Compression not supported"):
        convert(DISK, "other", output_format="qcow2", data_file="data", compressed=True)
    assert not Path("other").exists()


@pytest.mark.parametrize("sparse_size", [4096, 0])
@pytest.mark.parametrize("options", [{}, {"cluster_size": 4096}, {"compat": "0.10"}, {"extended_l2": True}], ids=str)
def test_an_image_that_is_there_keeps_nothing_of_what_it_held(options: dict[str, Any], sparse_size: int) -> None:
    for compressed in (False, True):
        target = bytearray(made(b"old!" * (len(DISK) // 4), **options))
        convert(made(), target, output_format="qcow2", existing=True, sparse_size=sparse_size, compressed=compressed)
        assert disk_of(target) == DISK
        assert_sound(target)


def test_a_raw_target_that_is_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    longer = len(DISK) + MIB
    for sparse_size in (4096, 0):
        target.write_bytes(b"!" * longer)
        convert(made(), target, existing=True, sparse_size=sparse_size)
        assert target.read_bytes() == DISK + b"!" * MIB, "what is behind the disk stays"
    target.write_bytes(bytes(longer))
    convert(made(), target, existing=True, target_is_zero=True)
    assert target.read_bytes() == DISK + bytes(MIB)
    memory = WritableMemory(bytearray(len(DISK)))
    convert(DISK, memory, existing=True)
    assert memory.pread(len(DISK), 0) == DISK
    with pytest.raises(StoreError, match="No such file"):
        convert(DISK, tmp_path / "missing", existing=True)


def test_a_target_that_is_zero_is_trusted_to_be() -> None:
    disk = b"x" * CLUSTER + bytes(3 * CLUSTER)
    target = bytearray(b"!" * len(disk))
    convert(disk, target, existing=True, target_is_zero=True)
    assert target == b"x" * CLUSTER + b"!" * 3 * CLUSTER
    image = bytearray(made(b"!" * len(disk)))
    convert(disk, image, existing=True, target_is_zero=True, output_format="qcow2")
    assert disk_of(image) == b"x" * CLUSTER + b"!" * 3 * CLUSTER


def test_a_target_that_is_too_small_is_left_alone(tmp_path: Path) -> None:
    for output_format, old in (("raw", bytes(len(DISK) - 512)), ("qcow2", made(SMALL))):
        target = tmp_path / output_format
        target.write_bytes(old)
        with pytest.raises(UsageError, match="output file is smaller than input file"):
            convert(DISK, target, output_format=output_format, existing=True)
        assert target.read_bytes() == old


@pytest.mark.parametrize("preallocation", ["falloc", "full"])
def test_a_raw_file_has_its_space(preallocation: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    convert(bytes(5 * MIB), target, preallocation=preallocation)
    assert target.read_bytes() == bytes(5 * MIB)
    assert target.stat().st_blocks * 512 >= 5 * MIB
    convert(bytes(512), target, preallocation="off", nocow=True)
    assert target.stat().st_size == 512


class Sharing(WritableMemory):
    """A store that can share bytes of some stores, up to an offset."""

    shared_up_to = 1 << 62
    clones = 0

    def clone(self, source: Store, source_offset: int, offset: int, length: int) -> bool:
        if offset + length > self.shared_up_to:
            return False
        self.clones += 1
        self.pwrite(source.pread(length, source_offset), offset)
        return True


@pytest.mark.parametrize("shared_up_to", [0, 6 << 20, 1 << 62])
def test_where_the_file_system_can_share_bytes_they_are_not_read(shared_up_to: int) -> None:
    content = random.Random(1).randbytes(9 << 20) + bytes(1 << 20) + b"end".ljust(512)
    target = Sharing(bytearray())
    target.shared_up_to = shared_up_to
    convert(Memory(content), target)
    assert target.pread(len(content) + 1, 0) == content
    assert target.clones == {0: 0, 6 << 20: 12, 1 << 62: 21}[shared_up_to]


def test_an_existing_target_and_one_without_holes_share_nothing() -> None:
    content = random.Random(1).randbytes(1 << 20)
    for options in ({"existing": True}, {"sparse_size": 0}):
        target = Sharing(bytearray(len(content)))
        convert(Memory(content), target, **options)
        assert target.pread(len(content), 0) == content and not target.clones


@pytest.mark.parametrize("output_format", ["raw", "qcow2"])
def test_a_file_that_is_read_is_no_target(output_format: str, tmp_path: Path) -> None:
    raw, overlay = tmp_path / "raw", tmp_path / "overlay"
    raw.write_bytes(b"r" * 4096)
    (tmp_path / "link").symlink_to(raw)
    create(overlay, backing_file="raw", backing_fmt="raw")
    for source, target in ((raw, raw), (raw, tmp_path / "link"), (overlay, raw), (overlay, overlay)):
        with pytest.raises(ImageLocked, match="write"):
            convert(source, target, output_format=output_format)
    with pytest.raises(ImageLocked, match="this very copy"):
        convert(raw, tmp_path / "new", output_format="qcow2", data_file=str(raw))
    assert raw.read_bytes() == b"r" * 4096


@pytest.mark.parametrize("output_format", ["raw", "qcow2"])
def test_what_lies_between_on_an_existing_target_over_a_backing_file_stays(output_format: str, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * (1 << 20))
    overlay, target = tmp_path / "overlay", tmp_path / "target"
    create(overlay, cluster_size=512, backing_file="base", backing_fmt="raw")
    with qcow2c.open(overlay, "r+") as image:
        image.pwrite(b"t" * 512, 512)
        image.write_zeroes(8192, 1024)
    if output_format == "raw":
        target.write_bytes(b"o" * (1 << 20))
    else:
        create(target, 1 << 20)
        with qcow2c.open(target, "r+") as image:
            image.pwrite(b"o" * (1 << 20), 0)
    convert(overlay, target, output_format=output_format, existing=True, over_backing=True)
    expected = bytearray(b"o" * (1 << 20))
    expected[512:1024], expected[8192:9216] = b"t" * 512, bytes(1024)
    if output_format == "raw":
        assert target.read_bytes() == expected
    else:
        with qcow2c.open(target) as image:
            assert image.pread(1 << 20, 0) == expected


def test_what_an_l1_entry_that_leads_nowhere_has_lost_is_salvaged_as_zeros() -> None:
    builder = Builder(1 << 20, cluster_bits=9)
    for cluster in range(128):
        builder.data(cluster, bytes([cluster + 1]) * 512)
    data = bytearray(builder.build())
    with qcow2c.open(bytes(data)) as image:
        at = image.header.l1_table_offset + 8
    data[at : at + 8] = (1 << 63 | 1 << 40).to_bytes(8, "big")
    target = bytearray()
    with pytest.raises(qcow2c.Qcow2Error):
        convert(bytes(data), bytearray())
    convert(bytes(data), target, salvage=True)
    kept = b"".join(bytes([cluster + 1]) * 512 for cluster in range(64))
    assert target == kept.ljust(1 << 20, b"\0")


def test_a_snapshot_that_is_larger_than_the_disk_is_copied_whole() -> None:
    image = bytearray(made())
    qcow2c.snapshots.create(image, "large")
    qcow2c.resize(image, MIB, shrink=True)
    assert converted(image, snapshot="large") == DISK
    assert disk_of(converted(image, snapshot="large", output_format="qcow2")) == DISK
    assert converted(image) == DISK[:MIB]
    qcow2c.resize(image, 16 * MIB)
    assert converted(image, snapshot="large") == DISK.ljust(16 * MIB, b"\0")  # As QEMU reads a smaller one.
