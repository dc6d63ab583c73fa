"""Amend: what is asked for changes, the disk and the snapshots do not, and what cannot be is refused as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import CorruptMetadata, LimitExceeded, Qcow2Error, StoreError, UnsupportedFeature, UsageError
from qcow2c.format import derived
from qcow2c.format.header import Header
from qcow2c.format.records import read_bitmaps, read_snapshots
from qcow2c.ops import bitmaps, snapshots
from qcow2c.storage.sources import Memory, WritableMemory
from qcow2c.structs import ExtensionType, Limit
from tests.building import L2_COPIED, L2_ZERO, Builder, deflate

KIB = 1024
SIZE = 128 * KIB
FEATURES = derived.INCOMPATIBLE_FEATURES


def image_of(**options: object) -> bytearray:
    data = bytearray()
    qcow2c.create(data, options.pop("size", SIZE), check_backing=False, **options)
    return data


def states(data: bytes | bytearray, backing: bytes | None = None) -> list[bytes]:
    """Return the disk, and those of the snapshots."""
    below = Memory(backing) if backing is not None else False
    with qcow2c.open(bytes(data), backing=below) as image:
        found = [image.pread(image.size(), 0)]
        for snapshot in image.snapshots.list():
            with snapshot.open() as state:
                found.append(state.pread(state.size(), 0))
        return found


def header(data: bytes | bytearray) -> Header:
    return Header.load(Memory(bytes(data)))


def is_clean(data: bytes | bytearray) -> bool:
    return qcow2c.check(bytes(data)).exit_code == 0


def has_zero_clusters(data: bytes | bytearray) -> bool:
    with qcow2c.open(bytes(data), backing=False) as image:
        layers = [image.layer, *(snapshot.open().layer for snapshot in image.snapshots.list())]
        return any(run.kind.name.startswith("ZERO") for layer in layers for run in layer.runs(0, layer.disk_size))


def with_zeros(*, snapshot_at: tuple[int, ...] = (), backed: bool = False, unit: int = 4 * KIB) -> bytearray:
    """Return an image with all kinds of zero clusters, and snapshots between the writes."""
    backing = {"backing_file": "base", "backing_fmt": "raw"} if backed else {}
    data = image_of(size=32 * unit, cluster_size=min(unit, 64 * KIB), **backing)
    steps = (
        lambda image: image.pwrite(b"1" * 8 * unit, 0),
        lambda image: image.write_zeroes(unit, 3 * unit),  # These keep their host clusters.
        lambda image: image.write_zeroes(15 * unit, 5 * unit),
        lambda image: image.write_zeroes(4 * unit, 2 * unit),
        lambda image: image.pwrite(b"2" * 3 * unit, 5 * unit // 2),
    )
    for number, step in enumerate(steps):
        with qcow2c.open(data, "r+", backing=Memory(BASE) if backed else False) as image:
            step(image)
        if number in snapshot_at:
            snapshots.create(data, f"after {number}")
    return data


BASE = b"base" * (512 * KIB)


# --- versions ---


@pytest.mark.parametrize("backed", [False, True], ids=["alone", "over a backing file"])
@pytest.mark.parametrize("snapshot_at", [(), (0,), (1,), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
def test_an_older_version_has_no_zero_clusters_and_shows_the_same(
    cluster_size: int, snapshot_at: tuple[int, ...], *, backed: bool
) -> None:
    data = with_zeros(snapshot_at=snapshot_at, backed=backed, unit=cluster_size)
    before = states(data, BASE if backed else None)
    assert has_zero_clusters(data)
    qcow2c.amend(data, compat="0.10")
    assert header(data).version == 2
    assert header(data).extension(ExtensionType.FEATURE_NAME_TABLE) is None
    assert states(data, BASE if backed else None) == before
    assert not has_zero_clusters(data)
    assert is_clean(data)
    qcow2c.amend(data, compat="v3")
    assert header(data).version == 3
    assert (header(data).extension(ExtensionType.FEATURE_NAME_TABLE) is None) == (cluster_size <= 4096)
    assert states(data, BASE if backed else None) == before
    assert is_clean(data)


def test_zero_clusters_keep_host_clusters_of_their_own() -> None:
    data = with_zeros()
    qcow2c.amend(data, compat="v2")
    with qcow2c.open(bytes(data)) as image:
        kinds = [run.kind.name for run in image.layer.runs(0, SIZE)]
        assert kinds == ["DATA", "UNALLOCATED"], "what was written once, and all the rest"


def test_a_host_cluster_that_a_snapshot_shows_is_not_overwritten() -> None:
    """The entry of the disk is a zero cluster over data of the snapshot: there the real program zeros the snapshot."""
    data = with_zeros(snapshot_at=(0,))
    with qcow2c.open(bytes(data)) as image:
        shared = image.layer.entry(4 * KIB)
        assert shared & L2_ZERO and shared & ~L2_ZERO == image.snapshots["after 0"].open().layer.entry(4 * KIB)
    before = states(data)
    qcow2c.amend(data, compat="v2")
    assert states(data) == before
    assert is_clean(data)


def test_one_host_cluster_of_two_zero_clusters_is_let_go_of() -> None:
    builder = Builder(SIZE)
    host = builder.data(0, b"seen by nobody")
    for cluster in (0, 1):
        builder.entry(cluster, host | L2_ZERO)
    builder.refcounts[host // 4096] = 2
    data = bytearray(builder.build())
    qcow2c.amend(data, compat="v2")
    assert states(data) == [bytes(SIZE)]
    assert not has_zero_clusters(data) and is_clean(data)


def test_the_backing_file_stays_with_a_change_of_the_version() -> None:
    data = image_of(backing_file="b", backing_fmt="raw")
    for compat in ("v2", "v3"):
        qcow2c.amend(data, compat=compat)
        assert (header(data).backing_file, header(data).backing_format) == (b"b", b"raw")


@pytest.mark.parametrize("known", [0, 8, 16, 30])
def test_snapshot_records_get_what_version_3_demands(known: int) -> None:
    builder = Builder(SIZE, version=2)
    builder.data(0, b"snap")
    extra = ((7).to_bytes(8, "big") + SIZE.to_bytes(8, "big") + b"unknown" * 2)[:known]
    builder.snapshot(b"a name", extra_data=extra, id_str=b"12", vm_state_size=7)
    builder.snapshot(b"other", extra_data=extra, id_str=b"13", vm_state_size=7)
    data = bytearray(builder.build())
    before = states(data)
    old = read_snapshots(Memory(bytes(data)), header(data)).records
    qcow2c.amend(data, compat="v3")
    records = read_snapshots(Memory(bytes(data)), header(data)).records
    assert [(record.name, record.id_str, record.date_nsec) for record in records] == [
        (b"a name", b"12", 5), (b"other", b"13", 5),
    ]  # fmt: skip
    for record, was in zip(records, old, strict=True):
        assert len(record.extra_data) == max(known, 16)
        assert record.extra_data[:known] == extra
        assert (record.vm_state_size, record.disk_size) == (was.vm_state_size, SIZE)
    assert states(data) == before
    assert is_clean(data)


def test_the_snapshot_table_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder(SIZE, version=2)
    for number in range(8):
        builder.snapshot(b"s%d" % number, extra_data=b"")
    data = bytearray(builder.build())
    monkeypatch.setattr(Limit, "SNAPSHOT_TABLE_BYTES", read_snapshots(Memory(bytes(data)), header(data)).size)
    with pytest.raises(LimitExceeded, match="the snapshot table would exceed"):
        qcow2c.amend(data, compat="v3")
    assert header(data).version == 2


# --- refcounts ---


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("before", [1, 16, 64])
def test_refcounts_can_have_any_width(before: int, bits: int) -> None:
    data = image_of(refcount_bits=before, cluster_size=512)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"x" * 70_000, 3000)
    expected = states(data)
    qcow2c.amend(data, refcount_bits=bits)
    assert 1 << header(data).refcount_order == bits
    assert states(data) == expected
    assert is_clean(data)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"y" * 9000, 50_000)
    assert is_clean(data)


def test_a_refcount_that_does_not_fit_is_named() -> None:
    data = with_zeros(snapshot_at=(0, 1, 2))
    before = bytes(data)
    with pytest.raises(UsageError) as raised:
        qcow2c.amend(data, refcount_bits=2)
    start = "Cannot decrease refcount entry width to 2 bits: Cluster at offset 0x"
    assert raised.value.message.startswith(start) and raised.value.message.endswith("has a refcount of 4")
    assert data == before
    qcow2c.amend(data, refcount_bits=4)
    assert is_clean(data)


# --- the header ---


def test_lazy_refcounts_go_on_and_off() -> None:
    data = image_of()
    for wanted in (True, True, False, False):
        qcow2c.amend(data, lazy_refcounts=wanted)
        assert header(data).lazy_refcounts is wanted


def test_what_is_so_already_is_not_written() -> None:
    for options in ({"compat": "0.10"}, {"compat": "1.1"}):
        data = image_of(backing_file="b", backing_fmt="raw", **options)
        before = bytes(data)
        qcow2c.amend(data, lazy_refcounts=False, refcount_bits=16, backing_file="b", backing_fmt="raw", **options)
        assert data == before


def test_a_dirty_image_is_clean_afterwards() -> None:
    builder = Builder(SIZE, incompatible=FEATURES["dirty"].mask, compatible_features=1)
    host = builder.data(0, b"counted too low")
    builder.refcounts[host // 4096] = 0
    data = bytearray(builder.build())
    qcow2c.amend(data, lazy_refcounts=False)
    assert not header(data).dirty and not header(data).lazy_refcounts
    assert is_clean(data)


def test_a_feature_that_nobody_knows_is_cleared() -> None:
    data = bytearray(Builder(SIZE, autoclear_features=1 << 40).build())
    qcow2c.amend(data, lazy_refcounts=False)
    assert header(data).autoclear_features == 0


def test_the_data_file_can_have_another_name_or_none() -> None:
    data = image_of(data_file="one.raw", data_file_raw=True, guest_data=bytearray())
    qcow2c.amend(data, data_file="one.raw", data_file_raw=True)
    assert (header(data).data_file, header(data).data_file_raw) == (b"one.raw", True)
    qcow2c.amend(data, data_file="two.raw", data_file_raw=False)
    assert (header(data).data_file, header(data).data_file_raw) == (b"two.raw", False)
    qcow2c.amend(data, data_file="")
    assert header(data).data_file is None and header(data).external_data


def test_all_at_once() -> None:
    data = image_of(compat="0.10", backing_file="b", backing_fmt="raw")
    qcow2c.amend(
        data, compat="1.1", lazy_refcounts=True, refcount_bits=1, backing_file="b", backing_fmt="raw", size=1 << 20,
        backing=Memory(BASE[:SIZE]),
    )  # fmt: skip
    found = header(data)
    assert (found.version, found.lazy_refcounts, found.refcount_order, found.size) == (3, True, 0, 1 << 20)
    assert states(data, BASE[:SIZE]) == [BASE[:SIZE].ljust(1 << 20, b"\0")]
    assert is_clean(data)


@pytest.mark.parametrize("size", [512, SIZE, 10 * SIZE])
def test_the_disk_can_have_another_size(size: int) -> None:
    data = with_zeros()
    before = states(data)[0]
    qcow2c.amend(data, size=size)
    qcow2c.amend(data, size=0)
    assert states(data) == [before[:size].ljust(size, b"\0")]


def test_what_lies_below_is_needed_for_another_size_only(tmp_path: Path) -> None:
    path = tmp_path / "over.qcow2"
    qcow2c.create(path, SIZE, backing_file="gone", backing_fmt="raw", check_backing=False, compat="v2")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="gone"):
        qcow2c.amend(path, size=2 * SIZE, compat="v3")
    assert path.read_bytes() == before
    qcow2c.amend(path, compat="v3")


# --- what is refused ---


def builders() -> Iterator[tuple[str, bytes]]:
    yield "v3", bytes(image_of())
    yield "v2", bytes(image_of(compat="0.10"))
    yield "data file", bytes(image_of(data_file="d", guest_data=bytearray()))
    yield "extended", bytes(image_of(extended_l2=True))
    yield "wide", bytes(image_of(refcount_bits=64))
    yield "backed", bytes(image_of(backing_file="b", backing_fmt="raw"))
    builder = Builder(SIZE, incompatible=FEATURES["compression_type"].mask, compression_type=1)
    builder.compressed(0, deflate(b"never read"))
    yield "zstd", builder.build()
    for name, size in (("other size", 64 * KIB), ("big state", None)):
        builder = Builder(SIZE)
        builder.snapshot(b"s", disk_size=size, vm_state_size=1 << 32 if size is None else 0)
        yield name, builder.build()
    builder = Builder(SIZE, version=2)
    builder.snapshot(b"s")
    yield "v2 with a snapshot", builder.build()


IMAGES = dict(builders())
NEWER = "compatibility level 1.1 {} above (use compat=1.1 or greater)"
WIDTHS = f"Refcount widths other than 16 bits require {NEWER.format('or')}"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("v3", {"compat": "9"}, "Unknown compatibility level 9"),
        ("v3", {"refcount_bits": 3}, "Refcount width must be a power of two and may not exceed 64 bits"),
        ("v3", {"refcount_bits": 0}, "Refcount width must be a power of two and may not exceed 64 bits"),
        ("v3", {"refcount_bits": 128}, "Refcount width must be a power of two and may not exceed 64 bits"),
        ("v3", {"data_file": "x"}, "data-file can only be set for images that use an external data file"),
        ("v3", {"data_file_raw": True}, "data-file-raw cannot be set on existing images"),
        ("data file", {"data_file_raw": True}, "data-file-raw cannot be set on existing images"),
        ("v3", {"backing_file": "x"}, "Cannot amend the backing file\nYou can use 'qcow2c rebase' instead."),
        ("backed", {"backing_file": "b"}, "Cannot amend the backing file\nYou can use 'qcow2c rebase' instead."),
        ("backed", {"backing_fmt": "raw"}, "Cannot amend the backing file\nYou can use 'qcow2c rebase' instead."),
        ("v2", {"lazy_refcounts": True}, f"Lazy refcounts only supported with {NEWER.format('and')}"),
        ("v2", {"refcount_bits": 1}, WIDTHS),
        ("v3", {"compat": "v2", "refcount_bits": 1}, WIDTHS),
        ("wide", {"compat": "v2"}, "compat=0.10 requires refcount_bits=16"),
        ("data file", {"compat": "v2"}, "Cannot downgrade an image with a data file"),
        ("extended", {"compat": "v2"}, "Cannot downgrade an image with incompatible features 0x10 set"),
        ("other size", {"compat": "v2"}, "Internal snapshots prevent downgrade of image"),
        ("big state", {"compat": "v2"}, "Internal snapshots prevent downgrade of image"),
        (
            "zstd",
            {"compat": "v2"},
            "Cannot downgrade an image with zstd compression type and existing compressed clusters",
        ),
        ("v3", {"size": 1000}, "The new size must be a multiple of 512"),
        ("v2 with a snapshot", {"size": 1024}, "Can't resize a v2 image which has snapshots"),
        ("v3", {"cluster_size": 512}, "Invalid parameter 'cluster_size'"),
        ("v3", {"image_format": "raw"}, "Format driver 'raw' does not support option amendment"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    name: str, options: dict[str, object], message: str
) -> None:
    data = bytearray(IMAGES[name])
    with pytest.raises(UsageError) as raised:
        qcow2c.amend(data, backing=False, **options)
    assert raised.value.message == message
    assert data == IMAGES[name]


def test_a_format_that_is_unknown_here_is_not_the_images_fault() -> None:
    data = bytearray(IMAGES["v3"])
    with pytest.raises(UnsupportedFeature, match="Unknown driver 'vdi': it can be qcow2 or raw"):
        qcow2c.amend(data, image_format="vdi")
    assert data == IMAGES["v3"]


def test_zstd_without_compressed_clusters_becomes_zlib() -> None:
    data = image_of(compression_type="zstd")
    qcow2c.amend(data, compat="v2")
    assert header(data).version == 2 and header(data).compression_type == 0
    assert is_clean(data)


def test_bitmaps_are_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qcow2c.create(path, SIZE)
    bitmaps.add(path, "b")
    with pytest.raises(UsageError, match="Cannot downgrade an image with bitmaps"):
        qcow2c.amend(path, compat="v2")
    qcow2c.amend(path, refcount_bits=8, lazy_refcounts=True)
    data = path.read_bytes()
    assert [record.name for record in read_bitmaps(Memory(data), header(data)).records] == [b"b"]
    assert is_clean(data)


@pytest.mark.parametrize(
    ("fields", "error"), [({"incompatible": FEATURES["corrupt"].mask}, CorruptMetadata)], ids=["corrupt"]
)
def test_what_must_not_be_written_is_not(fields: dict[str, int], error: type[Qcow2Error]) -> None:
    data = bytearray(Builder(SIZE, **fields).build())
    with pytest.raises(error):
        qcow2c.amend(data, compat="v2")


def test_a_table_that_cannot_be_believed_is_refused() -> None:
    builder = Builder(SIZE)
    builder.entry(0, 1 << 40 | L2_COPIED)
    data = bytearray(builder.build())
    with pytest.raises(CorruptMetadata):
        qcow2c.amend(WritableMemory(data), compat="v2")
