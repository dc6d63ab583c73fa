"""A disk that qemu-img copies into another format keeps its hash; a digest of a range is what others compute."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import qcow2c


@pytest.mark.parametrize("options", ["compat=0.10", "cluster_size=512", "extended_l2=on", "compression_type=zstd"])
def test_copies_of_qemu_img_have_the_same_hash(options: str, qemu_img: Path, tmp_path: Path) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(
        b"".join(bytes([number % 7]) * 4096 for number in range(900)) + bytes(5 << 20) + b"end" + bytes(509)
    )
    for packed in ([], ["-c"]):
        subprocess.run([qemu_img, "convert", *packed, "-O", "qcow2", "-o", options, raw, image], check=True)
        manifest = qcow2c.hash_image(image, ranges=True).as_dict()
        assert qcow2c.verify_image(raw, manifest) == []
