"""Differences of real states, beside what qemu-img makes of them: overlays and exports that it finds clean."""

from __future__ import annotations

import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pytest

from qcow2c.ops.diff import open_states, write_overlay, write_stream
from qcow2c.ops.export import export
from qcow2c.ops.patch import patch

from .workshop import IMAGE, RealImage

pytestmark = pytest.mark.usefixtures("requires_qemu")


def qemu_img(folder: Path, *words: str) -> None:
    subprocess.run(["qemu-img", *words], cwd=folder, check=True, capture_output=True)


NAMES = ("snapshots", "snapshots-4k-grown", "snapshots-shrunk", "snapshots-v2", "snapshots-extended")


@pytest.mark.parametrize("image", NAMES, indirect=True)
def test_snapshots_become_a_chain_of_exports_that_qemu_reads(image: RealImage, tmp_path: Path) -> None:
    source = tmp_path / IMAGE
    shutil.copy(image.path, source)
    export(source, "one", tmp_path / "one.qcow2")
    base = {"backing_file": "one.qcow2", "backing_fmt": "qcow2"}
    export(source, "two", tmp_path / "two.qcow2", relative_to="one", compressed=True, **base)
    export(source, "two", tmp_path / "again.qcow2", cluster_size=4096, **base)
    for name, snapshot in (("one", "one"), ("two", "two"), ("again", "two")):
        qemu_img(tmp_path, "check", f"{name}.qcow2")
        qemu_img(tmp_path, "convert", f"{name}.qcow2", f"{name}.raw")
        # The reference program cuts a snapshot that is larger than the disk is now.
        expected = image.guest_data(snapshot)
        assert (tmp_path / f"{name}.raw").read_bytes()[: len(expected)] == expected
    with open_states(source, from_snapshot="two") as (before, after):
        write_overlay(before, after, tmp_path / "now.qcow2", backing_file="two.qcow2", backing_fmt="qcow2")
        stream = bytearray()
        write_stream(before, after, stream.extend)
    qemu_img(tmp_path, "check", "now.qcow2")
    qemu_img(tmp_path, "compare", "now.qcow2", IMAGE)
    patch(tmp_path / "two.qcow2", BytesIO(bytes(stream)))
    qemu_img(tmp_path, "check", "two.qcow2")
    qemu_img(tmp_path, "compare", "two.qcow2", IMAGE)


@pytest.mark.parametrize("image", ["chain-of-three", "chain-raw-odd-bytes", "chain-2m"], indirect=True)
def test_layers_of_a_chain_are_states_too(image: RealImage, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(image.folder, folder)
    below = next(name for name in ("2.qcow2", "base.img") if (folder / name).exists())
    with open_states(folder / below, folder / IMAGE) as (before, after):
        write_overlay(before, after, folder / "over.qcow2", backing_file=below, backing_fmt=before.image_format)
    qemu_img(folder, "check", "over.qcow2")
    qemu_img(folder, "compare", "over.qcow2", IMAGE)
