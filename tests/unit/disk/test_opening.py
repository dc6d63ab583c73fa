"""What opening allows: chains, the gate, data files, broken headers, and the arguments that replace them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

import qcow2c
from qcow2c import structs
from qcow2c.errors import (
    ChainError,
    CorruptMetadata,
    GateRefused,
    NotQcow2,
    StoreError,
    UnsupportedFeature,
    UsageError,
)
from qcow2c.format import derived
from qcow2c.format.detection import detect_format
from qcow2c.storage.sources import Memory
from qcow2c.structs import ExtensionType
from tests.building import Builder, extension

DATA_FILE = derived.INCOMPATIBLE_FEATURES["data_file"].mask


def overlay(backing: bytes, image_format: bytes = b"", **options: int) -> Builder:
    builder = Builder(cluster_bits=12, **options)
    builder.backing_file = backing
    if image_format:
        builder.extensions.append(extension(ExtensionType.BACKING_FORMAT, image_format))
    return builder


def test_a_chain_of_files_reads_through(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"raw" * 3000)
    middle = overlay(b"base.raw", b"raw")
    middle.data(1, b"middle")
    (tmp_path / "middle.qcow2").write_bytes(middle.build())
    top = overlay(b"middle.qcow2", b"qcow2")
    top.data(2, b"top")
    (tmp_path / "top.qcow2").write_bytes(top.build())
    with qcow2c.open(tmp_path / "top.qcow2") as image:
        assert image.pread(9, 0) == b"raw" * 3
        assert image.pread(6, 4096) == b"middle"
        assert image.pread(3, 8192) == b"top"
        assert image.pread(10, 100_000) == bytes(10)
        assert image.backing is not None and image.backing.disk_size == 1 << 20


@pytest.mark.parametrize("image_format", [b"", b"raw"])
def test_version_2_overlays_keep_their_extensions_apart_from_feature_bits(tmp_path: Path, image_format: bytes) -> None:
    (tmp_path / "base").write_bytes(b"below" * 1000)
    (tmp_path / "top").write_bytes(overlay(b"base", image_format, version=2).build())
    with qcow2c.open(tmp_path / "top") as image:
        assert image.header.incompatible_features == 0
        assert image.header.backing_format == (image_format or None)
        assert image.pread(5, 0) == b"below"


def test_the_backing_file_may_be_replaced_or_left_out() -> None:
    image_bytes = overlay(b"/nowhere/base", b"raw").build()
    with qcow2c.open(image_bytes, backing=False) as image:
        assert image.pread(4, 0) == bytes(4) and image.backing is None
    with qcow2c.open(image_bytes, backing=b"mine") as image:
        assert image.pread(6, 0) == b"mine\0\0"
    with qcow2c.open(image_bytes, backing=io.BytesIO(b"file")) as image:
        assert image.pread(4, 0) == b"file"
    below = Builder(cluster_bits=12)
    below.data(0, b"image")
    with qcow2c.open(below.build()) as base, qcow2c.open(image_bytes, backing=base) as image:
        assert image.pread(5, 0) == b"image"


@pytest.mark.parametrize("name", [b"/etc/passwd", b"../base", b"nbd://host/x", b"json:{}", b"a/../../b"])
def test_the_gate_refuses_names_that_lead_elsewhere(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "top.qcow2"
    path.write_bytes(overlay(name).build())
    with pytest.raises(GateRefused, match=r"gate|backing="):
        qcow2c.open(path)


def test_an_image_that_is_no_local_file_names_nothing() -> None:
    with pytest.raises(GateRefused, match="no local file"):
        qcow2c.open(overlay(b"base").build())


def test_a_loop_in_the_chain_is_refused(tmp_path: Path) -> None:
    for name, below in (("a", b"b"), ("b", b"c"), ("c", b"a")):
        (tmp_path / name).write_bytes(overlay(below, b"qcow2").build())
    with pytest.raises(ChainError, match="loop"):
        qcow2c.open(tmp_path / "a")
    (tmp_path / "self").symlink_to("itself")
    (tmp_path / "itself").write_bytes(overlay(b"self", b"qcow2").build())
    with pytest.raises(ChainError, match="loop"):
        qcow2c.open(tmp_path / "itself")


@pytest.mark.parametrize(("layers", "opens"), [(65, True), (66, False)])
def test_a_chain_has_at_most_64_backing_files(tmp_path: Path, layers: int, *, opens: bool) -> None:
    (tmp_path / "0").write_bytes(Builder(cluster_bits=12).build())
    for number in range(1, layers):
        (tmp_path / str(number)).write_bytes(overlay(str(number - 1).encode(), b"qcow2").build())
    top = tmp_path / str(layers - 1)
    if opens:
        with qcow2c.open(top) as image:
            assert image.pread(4, 0) == bytes(4)
    else:
        with pytest.raises(ChainError, match="64"):
            qcow2c.open(top)


def test_what_was_opened_is_closed_again_after_an_error_too(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"\0" * 100)
    (tmp_path / "top").write_bytes(overlay(b"base", b"vmdk").build())
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UnsupportedFeature, match="vmdk"):
        qcow2c.open(tmp_path / "top")
    (tmp_path / "top").write_bytes(overlay(b"base", b"raw").build())
    qcow2c.open(tmp_path / "top").close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_broken_backing_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"no image at all")
    (tmp_path / "top").write_bytes(overlay(b"base", b"qcow2").build())
    with pytest.raises(NotQcow2, match=r"backing file '.*base'"):
        qcow2c.open(tmp_path / "top")


@pytest.mark.parametrize("kind", ["fifo", "directory", "missing"])
def test_a_backing_file_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(tmp_path / "base")
    elif kind == "directory":
        (tmp_path / "base").mkdir()
    (tmp_path / "top").write_bytes(overlay(b"base", b"raw").build())
    with pytest.raises(StoreError):
        qcow2c.open(tmp_path / "top")


def external(name: bytes) -> Builder:
    builder = Builder(cluster_bits=12, incompatible=DATA_FILE)
    builder.entry(0, structs_copied())
    if name:
        builder.extensions.append(extension(ExtensionType.DATA_FILE, name))
    return builder


def structs_copied() -> int:
    return derived.STANDARD_L2_ENTRY["copied"].mask


def test_the_external_data_file_is_opened_through_the_gate(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"outside".ljust(4096, b"\0"))
    (tmp_path / "top").write_bytes(external(b"data").build())
    with qcow2c.open(tmp_path / "top") as image:
        assert image.pread(7, 0) == b"outside"
    with pytest.raises(GateRefused, match="data file"):
        qcow2c.open(tmp_path / "top", gate="deny")


def test_a_data_file_that_is_not_named_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data_file="):
        qcow2c.open(external(b"").build())
    with pytest.raises(UsageError, match="no external data file"):
        qcow2c.open(Builder().build(), data_file=b"")
    (tmp_path / "top").write_bytes(external(b"top").build())
    with pytest.raises(ChainError, match="itself"):
        qcow2c.open(tmp_path / "top")


def test_corrupt_headers_are_refused_except_to_salvage() -> None:
    builder = Builder(cluster_bits=12)
    builder.data(0, b"still here")
    builder.fields["refcount_table_offset"] = builder.fields["l1_table_offset"]
    image_bytes = builder.build()
    with pytest.raises(CorruptMetadata, match="overlap"):
        qcow2c.open(image_bytes)
    with qcow2c.open(image_bytes, on_error="zero") as image:
        assert image.pread(10, 0) == b"still here"
        assert "header.overlap" in [notice.rule for notice in image.notices]


def test_a_broken_snapshot_table_is_refused_when_opening() -> None:
    builder = Builder(cluster_bits=12)
    builder.snapshot(b"x", extra_data=bytes(2000))
    with pytest.raises(CorruptMetadata, match="extra data"):
        qcow2c.open(builder.build())


def test_dirty_and_corrupt_images_are_readable_and_say_so() -> None:
    bits = derived.INCOMPATIBLE_FEATURES
    builder = Builder(cluster_bits=12, incompatible=bits["dirty"].mask | bits["corrupt"].mask)
    builder.data(0, b"data")
    with qcow2c.open(builder.build()) as image:
        assert image.pread(4, 0) == b"data"
        assert [notice.rule for notice in image.notices] == ["header.dirty", "header.corrupt"]


def test_unknown_arguments_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="on_error"):
        qcow2c.open(Builder().build(), on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="gate"):
        qcow2c.open(Builder().build(), gate="open")
    with pytest.raises(UsageError, match="float"):
        qcow2c.open(5.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("offset, signature, name", structs.FOREIGN_FORMATS)
def test_other_formats_are_not_taken_for_raw(offset: int, signature: bytes, name: str) -> None:
    start = (bytes(offset) + signature).ljust(512, b"\0")
    assert detect_format(Memory(start)) == name
    with pytest.raises(UnsupportedFeature, match=name):
        qcow2c.open(overlay(b"x").build(), backing=start)


def test_a_data_file_is_found_where_qemu_would_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disks").mkdir()
    qcow2c.create("disks/image.qcow2", 1 << 20, data_file="disks/data.raw")
    with qcow2c.open("disks/image.qcow2", "r+") as image:
        image.pwrite(b"here", 5)
    assert (tmp_path / "disks/data.raw").read_bytes()[5:9] == b"here"
    qcow2c.create("disks/other.qcow2", 1 << 20, data_file="outside.raw")
    with pytest.raises(GateRefused):
        qcow2c.open("disks/other.qcow2")
    with qcow2c.open("disks/other.qcow2", gate="any") as image:
        assert image.pread(4, 0) == bytes(4)
