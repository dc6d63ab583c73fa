"""What qemu-img makes is accepted, and what it makes with something that a service refuses is rejected for that."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import qcow2c

PLAIN = ["compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compression_type=zstd",
         "preallocation=metadata", "lazy_refcounts=on", "refcount_bits=1"]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", PLAIN)
def test_an_image_of_qemu_img_is_accepted(options: str, packed: bool, qemu_img: Path, tmp_path: Path) -> None:  # noqa: FBT001
    if packed and options.startswith("preallocation"):
        pytest.skip("qemu-img refuses both")
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(b"".join(bytes([number % 251]) * 4096 for number in range(512)) + bytes(1 << 20))
    words = ["convert", *(["-c"] if packed else []), "-O", "qcow2", "-o", options, raw, image]
    subprocess.run([qemu_img, *words], check=True)
    found = qcow2c.inspect(image, image_format="qcow2")
    assert found.accepted, found.reasons


REFUSED = [
    (["-o", "data_file=data.raw"], "feature.data_file"),
    (["-b", "base.raw", "-F", "raw"], "name.backing_file"),
    (["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"],
     "feature.encryption"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "rule"), REFUSED)
def test_what_a_service_refuses_is_named(words: list[str], rule: str, qemu_img: Path, tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(1 << 20))
    subprocess.run([qemu_img, "create", "-q", "-f", "qcow2", *words, "x.qcow2", "1M"], check=True, cwd=tmp_path)
    found = qcow2c.inspect(tmp_path / "x.qcow2")
    assert found.verdict == "reject" and rule in {reason.rule for reason in found.reasons}


@pytest.mark.parametrize("image_format", ["vmdk", "vdi", "vhdx", "vpc", "qed", "parallels", "qcow"])
def test_images_of_other_formats_are_named_and_rejected(image_format: str, qemu_img: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    subprocess.run([qemu_img, "create", "-q", "-f", image_format, path, "4M"], check=True)
    found = qcow2c.inspect(path)
    assert found.verdict == "reject" and found.format == image_format
