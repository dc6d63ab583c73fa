"""info: the facts of qemu-img's JSON, in its order, and the chain behind an image."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qcow2c import structs
from qcow2c.errors import ChainError, CorruptMetadata, GateRefused, UnsupportedFeature
from qcow2c.ops.info import info
from qcow2c.storage.gate import full_name
from tests.building import Builder, extension
from tests.unit.format.test_luks import luks


def one(source: Any, **options: Any) -> dict[str, Any]:
    return info(source, **options).as_dict()


def overlay(path: Path, backing: str, backing_format: bytes = b"") -> Path:
    builder = Builder()
    builder.backing_file = backing.encode()
    if backing_format:
        builder.extensions.append(extension(structs.ExtensionType.BACKING_FORMAT, backing_format))
    path.write_bytes(builder.build())
    return path


def test_the_keys_are_in_the_order_of_qemu(examples: Path) -> None:
    facts = one(examples / "demo.qcow2")
    assert list(facts) == [
        "children",
        "backing-filename-format",
        "snapshots",
        "virtual-size",
        "filename",
        "cluster-size",
        "format",
        "actual-size",
        "format-specific",
        "full-backing-filename",
        "backing-filename",
        "dirty-flag",
    ]
    data = facts["format-specific"]["data"]
    assert data["bitmaps"] == [{"flags": ["auto"], "name": "since-monday", "granularity": 65536}]
    assert facts["snapshots"][0]["name"] == "before-update"
    assert facts["full-backing-filename"] == str(examples / "base.qcow2")


def test_the_disk_ends_with_its_last_whole_sector() -> None:
    assert one(Builder(size=1000).build())["virtual-size"] == 512


def test_bytes_have_no_size_on_disk() -> None:
    assert "actual-size" not in one(Builder().build())
    assert one(b"raw data") == {"virtual-size": 512, "filename": "<bytes>", "format": "raw", "dirty-flag": False}


def test_version_2_lacks_what_version_3_has() -> None:
    data = one(Builder(version=2).build())["format-specific"]["data"]
    assert data == {"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16}


def test_legacy_encryption_is_named() -> None:
    facts = one(Builder(crypt_method=1).build())
    assert facts["encrypted"] is True
    assert facts["format-specific"]["data"]["encrypt"] == {"format": "aes"}


def test_luks_is_told_slot_by_slot() -> None:
    builder = Builder(crypt_method=2)
    offset = builder.put(luks(cipher_mode=b"cbc-essiv:sha256", key_bytes=32))
    pointer = structs.ENCRYPTION_HEADER_POINTER.build({"offset": offset, "length": 4096})
    builder.extensions.append(extension(structs.ExtensionType.ENCRYPTION_HEADER, pointer))
    encrypt = one(builder.build())["format-specific"]["data"]["encrypt"]
    assert encrypt["slots"][0] == {"active": True, "iters": 5, "key-offset": 4096, "stripes": 4000}
    assert encrypt["slots"][1] == {"active": False, "key-offset": 4096}
    assert (encrypt["cipher-alg"], encrypt["ivgen-hash-alg"]) == ("aes-256", "sha256")


def test_the_chain_is_followed_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"base")
    overlay(tmp_path / "middle", "base", b"raw")
    top = overlay(tmp_path / "top", "middle")
    found = info(top, backing_chain=True)
    assert [layer["filename"] for layer in found] == [str(tmp_path / name) for name in ("top", "middle", "base")]
    assert [layer["format"] for layer in found] == ["qcow2", "qcow2", "raw"]


def test_a_loop_is_refused(tmp_path: Path) -> None:
    overlay(tmp_path / "one", "two")
    with pytest.raises(ChainError, match="infinite loop"):
        info(overlay(tmp_path / "two", "one"), backing_chain=True)


def test_a_chain_has_a_bound(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(b"")
    for number in range(1, 70):
        overlay(tmp_path / str(number), str(number - 1))
    assert len(info(tmp_path / "64", backing_chain=True)) == 65
    with pytest.raises(ChainError, match="more than 64"):
        info(tmp_path / "65", backing_chain=True)


def test_the_gate_decides(tmp_path: Path, examples: Path) -> None:
    shutil.copy(examples / "base.qcow2", tmp_path / "base.qcow2")
    (tmp_path / "tops").mkdir()
    top = overlay(tmp_path / "tops" / "top", str(tmp_path / "base.qcow2"))
    with pytest.raises(GateRefused):
        info(top, backing_chain=True)
    assert len(info(top, backing_chain=True, gate="any")) == 2


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="vmdk"):
        info(b"KDMV" + bytes(508))
    (tmp_path / "disk").write_bytes(b"")
    with pytest.raises(UnsupportedFeature, match="vmdk"):
        info(overlay(tmp_path / "top", "disk", b"vmdk"), backing_chain=True)


def test_an_unknown_encryption_is_an_error() -> None:
    with pytest.raises(UnsupportedFeature, match="crypt_method 3"):
        info(Builder(crypt_method=3).build())


def test_a_broken_snapshot_table_is_an_error() -> None:
    builder = Builder()
    builder.snapshot(b"one", extra_data=bytes(2000))
    with pytest.raises(CorruptMetadata, match="extra data"):
        info(builder.build())


@pytest.mark.parametrize(
    ("image", "name", "full"),
    [
        ("a", "b", "b"),
        ("d/a", "b", "d/b"),
        ("d/a", "../b", "d/../b"),
        ("d/a", "/b", "/b"),
        ("d/a", "nbd://host", "nbd://host"),
        ("d/a", "e/x:y", "d/e/x:y"),
    ],
)
def test_names_are_joined_as_text(image: str, name: str, full: str) -> None:
    assert full_name(image, name) == full
