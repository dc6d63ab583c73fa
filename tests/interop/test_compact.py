"""Compact copies of real images: qemu-img finds them clean and equal in every state, and can go on with them."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import CorruptMetadata, MissingKey, Span
from qcow2c.format.records import SnapshotRecord
from qcow2c.ops.compact import compact_in_place
from tests.bitmap_bits import bitmap_bits

from .images import ONE_OF_EACH
from .workshop import IMAGE, MIB, RealImage, Workshop

pytestmark = pytest.mark.usefixtures("requires_qemu")

COPY = "compact.qcow2"


def qemu_img(folder: Path, *words: str) -> str:
    return subprocess.run(["qemu-img", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def digest(folder: Path, *words: str) -> str:
    """Return the hash of a disk as qemu-img converts it."""
    qemu_img(folder, "convert", *words, "-O", "raw", "state.raw")
    found = hashlib.sha256((folder / "state.raw").read_bytes()).hexdigest()
    (folder / "state.raw").unlink()
    return found


def facts(folder: Path, name: str) -> dict[str, Any]:
    """Return what qemu-img info tells, without what a compact copy may have otherwise."""
    found: dict[str, Any] = json.loads(qemu_img(folder, "info", "-U", "--output=json", "-f", "qcow2", name))
    for changed in ("filename", "actual-size", "dirty-flag"):
        del found[changed]
    found["format-specific"]["data"].pop("bitmaps", None)
    return found


def snapshot_records(path: Path) -> list[SnapshotRecord]:
    """Return the records of the snapshots, without what tells places."""
    with qcow2c.open(path, backing=False, gate="any") as image:
        records = [snapshot.record for snapshot in image.snapshots.list()]
    return [record._replace(span=Span(0, 0), l1_table_offset=0) for record in records]


def require_same(image: RealImage, copy: Path) -> None:
    folder, sealed = copy.parent, bool(image.recipe.sealed)
    source = [word.replace(IMAGE, copy.name) for word in image.source()]
    qemu_img(folder, "check", *source)
    assert qcow2c.check(copy).exit_code == 0
    assert facts(folder, copy.name) == facts(folder, IMAGE)
    if sealed:
        assert digest(folder, *source) == digest(folder, *image.source())
    elif image.recipe.whole:
        assert digest(folder, "-f", "qcow2", copy.name) == digest(folder, "-f", "qcow2", IMAGE)
    else:
        assert "identical" in qemu_img(folder, "compare", "-f", "qcow2", "-F", "qcow2", copy.name, IMAGE)
    for snapshot in image.recipe.snapshots:
        one, other = (digest(folder, "-l", snapshot, "-f", "qcow2", name) for name in (copy.name, IMAGE))
        assert one == other
    if not sealed:
        assert snapshot_records(copy) == snapshot_records(folder / IMAGE)
    assert bitmap_bits(copy.read_bytes()) == bitmap_bits((folder / IMAGE).read_bytes())


@pytest.mark.parametrize("image", ONE_OF_EACH, indirect=True)
def test_a_compact_copy_of_a_real_image_is_clean_and_the_same_in_each_state(image: RealImage) -> None:
    copy = image.folder / COPY
    try:
        before = (image.folder / IMAGE).read_bytes()
        found = qcow2c.compact(image.path, copy)
        assert found == qcow2c.compact(image.path) and found.compacted_length == copy.stat().st_size
        assert (image.folder / IMAGE).read_bytes() == before
        require_same(image, copy)
        assert qcow2c.compact(copy).saved == 0
        for snapshot in image.recipe.snapshots:
            if image.recipe.name == "snapshots-refcount-2":  # One reference more than it can count.
                continue
            qemu_img(image.folder, "snapshot", "-a", snapshot, COPY)
            assert (
                digest(image.folder, "-f", "qcow2", COPY)
                == hashlib.sha256(image.applied_snapshot(snapshot)).hexdigest()
            )
            qemu_img(image.folder, "check", "-q", COPY)
    finally:
        copy.unlink(missing_ok=True)


COMPRESSED = [
    name for name in ONE_OF_EACH if not name.startswith(("external", "aes", "empty", "huge", "header", "unknown"))
]


@pytest.mark.parametrize("image", COMPRESSED[::3], indirect=True)
def test_compressing_changes_nothing_else(image: RealImage) -> None:
    copy = image.folder / COPY
    try:
        found = qcow2c.compact(image.path, copy, compress=True)
        assert found.compacted_length == copy.stat().st_size
        require_same(image, copy)
        assert qcow2c.compact(copy, compress=True).saved == 0
    finally:
        copy.unlink(missing_ok=True)


@pytest.mark.parametrize("image", ["luks", "corrupt-bit"], indirect=True)
def test_what_cannot_be_moved_is_refused(image: RealImage) -> None:
    with pytest.raises((MissingKey, CorruptMetadata), match=r"LUKS.*needs the key|corrupt"):
        qcow2c.compact(image.path, image.folder / COPY)
    assert not (image.folder / COPY).exists()


@pytest.mark.parametrize("seed", range(4))
def test_in_place_after_a_random_life_with_qemu(tmp_path: Path, seed: int) -> None:
    """Writes, snapshots, deletions and resizes by qemu; all states are the same afterwards, and life goes on."""
    shop = Workshop(tmp_path, seed)
    chooser = random.Random(seed)
    options = ("", "cluster_size=4096,refcount_bits=8", "extended_l2=on,cluster_size=16k", "compat=0.10")[seed]
    shop.create(4 * MIB, options)
    names: list[str] = []
    for number in range(6):
        shop.io(*shop.scattered(2 * MIB, 16384, 8), shop.write(2 * MIB + number * 131072, 65536, flags="-c"))
        shop.io(f"write -P 0 {number * 131072} 131072")
        shop.img("snapshot", "-c", f"s{number}", IMAGE)
        names.append(f"s{number}")
        if len(names) > 2 and chooser.random() < 0.5:
            shop.img("snapshot", "-d", names.pop(chooser.randrange(len(names))), IMAGE)
    before = [digest(tmp_path, "-l", name, IMAGE) for name in names] + [digest(tmp_path, IMAGE)]
    found = compact_in_place(tmp_path / IMAGE, compress=bool(seed % 2))
    assert found.saved > 0 and found.zero_clusters and found.snapshots == len(names)
    assert [digest(tmp_path, "-l", name, IMAGE) for name in names] + [digest(tmp_path, IMAGE)] == before
    qemu_img(tmp_path, "check", IMAGE)
    shop.io(*shop.scattered(2 * MIB, 16384, 8))
    qemu_img(tmp_path, "check", IMAGE)
    assert [digest(tmp_path, "-l", name, IMAGE) for name in names] == before[:-1]
    for name in names:
        shop.img("snapshot", "-d", name, IMAGE)
    qemu_img(tmp_path, "check", IMAGE)


def test_a_vm_state_stays_and_one_that_nobody_can_read_goes(made: Callable[[str], RealImage], tmp_path: Path) -> None:
    """A VM state as qemu stores it: behind the disk, by way of the snapshot's L1 table."""
    shutil.copy(made("snapshots").path, tmp_path / IMAGE)
    state = random.Random(7).randbytes(300_000)
    (tmp_path / "state").write_bytes(state)
    # qemu-io writes behind the disk with -b: that is where the VM state is.
    subprocess.run(
        ["qemu-io", "-f", "qcow2", IMAGE, "-c", f"write -b -s state 0 {299_520}"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    qemu_img(tmp_path, "check", IMAGE)
    with_state = (tmp_path / IMAGE).stat().st_size
    found = qcow2c.compact(tmp_path / IMAGE, tmp_path / COPY)
    assert with_state - found.compacted_length > 250_000
    qemu_img(tmp_path, "check", COPY)
    assert digest(tmp_path, IMAGE) == digest(tmp_path, COPY)
