"""Hashes of images: equal for equal disks in every format, of each snapshot, verified against a manifest."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.ops.hash import SCHEMA, hash_image, read_manifest, verify_image

SIZE = 8 << 20


def disk(path: Path) -> Path:
    qcow2c.create(path, SIZE)
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"first" * 1000, 0)
        image.pwrite(bytes(1 << 20), 1 << 20)
        image.snapshots.create("monday")
        image.pwrite(b"second", 5 << 20)
    return path


def active(source: Any, **options: Any) -> str:
    return hash_image(source, **options).disks[0].content.digest.hex()


def test_a_disk_has_one_hash_in_every_format(tmp_path: Path) -> None:
    image = disk(tmp_path / "a.qcow2")
    qcow2c.convert(image, tmp_path / "a.raw", output_format="raw")
    qcow2c.convert(image, tmp_path / "c.qcow2", output_format="qcow2", compressed=True, compression_type="zstd")
    qcow2c.convert(image, tmp_path / "s.qcow2", output_format="qcow2", cluster_size=512)
    qcow2c.create(tmp_path / "o.qcow2", SIZE, backing_file=str(image), backing_fmt="qcow2")
    wanted = active(image)
    for name in ("a.raw", "c.qcow2", "s.qcow2", "o.qcow2"):
        assert active(tmp_path / name) == wanted, name
    assert active(image, algorithm="blake2b-256") != wanted
    assert active(image, range_bytes=1 << 16) != wanted


def test_an_encrypted_disk_has_the_same_hash(tmp_path: Path) -> None:
    image = disk(tmp_path / "a.qcow2")
    qcow2c.create(tmp_path / "e.qcow2", SIZE, encryption="luks", key="x")
    with qcow2c.open(tmp_path / "e.qcow2", "r+", key="x") as copy, qcow2c.open(image) as source:
        copy.pwrite(source.pread(SIZE, 0), 0)
    assert active(tmp_path / "e.qcow2", key="x") == active(image)


def test_each_snapshot_has_its_own(tmp_path: Path) -> None:
    image = disk(tmp_path / "a.qcow2")
    found = hash_image(image)
    assert [one.snapshot for one in found.disks] == [None, ("1", "monday")]
    qcow2c.export(image, "monday", tmp_path / "m.qcow2")
    assert active(tmp_path / "m.qcow2") == found.disks[1].content.digest.hex() != active(image)
    assert len(hash_image(image, snapshots=False).disks) == 1


def test_the_file_has_its_plain_hash_and_a_report_is_the_same_twice(tmp_path: Path) -> None:
    image = disk(tmp_path / "a.qcow2")
    found = hash_image(image, ranges=True)
    assert found.file_sha256 == hashlib.sha256(image.read_bytes()).hexdigest()
    assert json.dumps(found.as_dict()) == json.dumps(hash_image(image, ranges=True).as_dict())
    assert found.as_dict()["schema"] == SCHEMA
    assert hash_image(image, file_hash="never").file_sha256 is None
    with pytest.raises(qcow2c.UsageError, match="file_hash='no'"):
        hash_image(image, file_hash="no")  # type: ignore[arg-type]


def test_a_sparse_terabyte_takes_no_time_and_no_plain_hash(tmp_path: Path) -> None:
    (tmp_path / "big.raw").touch()
    os.truncate(tmp_path / "big.raw", 1 << 40)
    qcow2c.create(tmp_path / "big.qcow2", 1 << 40)
    found = hash_image(tmp_path / "big.raw", ranges=True)
    assert found.file_sha256 is None and found.disks[0].ranges is not None and len(found.disks[0].ranges) == 1
    assert active(tmp_path / "big.qcow2") == found.disks[0].content.digest.hex()


def test_a_range_is_a_plain_hash(tmp_path: Path) -> None:
    image = disk(tmp_path / "a.qcow2")
    ranges = hash_image(image, ranges=True).disks[0].ranges
    assert ranges is not None
    with qcow2c.open(image) as opened:
        for run in ranges:
            data = opened.pread(run.length, run.start)
            assert run.digest == (hashlib.sha256(data).digest() if any(data) else None)


def test_what_is_as_it_was_is_verified_in_another_format(tmp_path: Path) -> None:
    image = disk(tmp_path / "a.qcow2")
    manifest = hash_image(image, ranges=True).as_dict()
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    assert verify_image(image, tmp_path / "m.json", file=True) == []
    qcow2c.convert(image, tmp_path / "a.raw", output_format="raw")
    assert verify_image(tmp_path / "a.raw", manifest, snapshots=False) == []
    (missing,) = verify_image(tmp_path / "a.raw", manifest)
    assert str(missing) == "snapshot 'monday' (ID 1) is not there"


def test_what_has_changed_is_named_with_its_ranges(tmp_path: Path) -> None:
    image = disk(tmp_path / "a.qcow2")
    manifest = hash_image(image, ranges=True).as_dict()
    bare = hash_image(image).as_dict()
    with qcow2c.open(image, "r+") as opened:
        opened.pwrite(b"x", 2 << 20)
        opened.pwrite(b"x", (4 << 20) - 1)
        opened.write_zeroes(5 << 20, 1 << 20)
    found = verify_image(image, manifest, file=True)
    assert [(one.what, one.start, one.length) for one in found] == [
        ("file", None, None), ("content", 2 << 20, 2 << 20), ("content", 5 << 20, 1 << 20)
    ]  # fmt: skip
    assert str(found[1]) == "the disk has another content in 0x200000..0x3fffff"
    assert [one.what for one in verify_image(image, bare)] == ["content"]
    qcow2c.resize(image, SIZE + 512)
    assert [one.what for one in verify_image(image, bare)] == ["size"]


@pytest.mark.parametrize(
    "change",
    [{"schema": "x/1"}, {"disks": [{}]}, {"disks": None}, {"source": {"content-hash": "xyz"}}, {"range-bytes": "1M"},
     {"disks": [{"snapshot": None, "content-hash": "", "virtual-bytes": "1"}]}],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    manifest = hash_image(disk(tmp_path / "a.qcow2")).as_dict() | change
    with pytest.raises(qcow2c.UsageError, match="is no manifest"):
        read_manifest(manifest)
    (tmp_path / "m").write_text("[" * 100_000)
    with pytest.raises(qcow2c.UsageError, match="is no manifest"):
        read_manifest(tmp_path / "m")


def test_a_disk_that_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    image = disk(tmp_path / "a.qcow2")
    os.truncate(image, 5 << 16)  # Where the data begins.
    with pytest.raises(qcow2c.Qcow2Error):
        hash_image(image)
