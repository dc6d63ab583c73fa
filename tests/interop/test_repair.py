"""check -r beside qemu-img's: the same where that is safe, and qemu-img agrees with every state that is left."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from tests.corpus.damage import DAMAGE
from tests.corpus.patch import Edit, refcount, seed_bytes

from .conftest import run_qemu_img
from .workshop import Workshop

IMAGE = "image.qcow2"

SAFE = (
    "copied bit flipped",
    "misaligned zero cluster",
    "refcount block zeroed",
    "refcount block overwritten",
    "refcount table zeroed",
    "refcount table lost",
    "no refcount table",
    "refcount of data 0",
    "refcount of data 1 too high",
    "leaked cluster behind all",
    "marked dirty",
    "marked corrupt",
)
"""Damage that qemu-img repairs without touching data."""

pytestmark = pytest.mark.usefixtures("requires_qemu")


def damaged(folder: Path, seed: str, *edits: Edit) -> Path:
    image = bytearray(seed_bytes(f"{seed}.qcow2"))
    for edit in edits:
        edit(image)
    path = folder / IMAGE
    path.write_bytes(image)
    return path


def their_repair(folder: Path, what: str) -> tuple[int, dict[str, Any]]:
    done = run_qemu_img(folder, "check", "-f", "qcow2", "--output=json", "-r", what, IMAGE)
    return done.status, json.loads(done.out)


def their_verdict(folder: Path) -> int:
    return run_qemu_img(folder, "check", "-q", "-f", "qcow2", IMAGE).status


@pytest.mark.parametrize("name", SAFE)
@pytest.mark.parametrize("seed", ["v3", "snapshots"])
def test_what_qemu_img_repairs_safely_is_repaired_alike(seed: str, name: str, tmp_path: Path) -> None:
    path = damaged(tmp_path, seed, DAMAGE[name])
    ours = qcow2c.repair(path, "all")
    assert their_verdict(tmp_path) == ours.exit_code == 0
    damaged(tmp_path, seed, DAMAGE[name])
    status, found = their_repair(tmp_path, "all")
    fixed = found.get("leaks-fixed", 0), found.get("corruptions-fixed", 0)
    assert (status, *fixed) == (0, ours.leaks_fixed, ours.corruptions_fixed)


@pytest.mark.parametrize("name", DAMAGE)
def test_qemu_img_agrees_with_what_is_left(name: str, tmp_path: Path) -> None:
    path = damaged(tmp_path, "snapshots", DAMAGE[name])
    ours = qcow2c.repair(path, "all")
    # qemu-img does not look for metadata that is something else, too: it sees the leaks that are left of it.
    unseen = (3, 2) if any("are also something else" in doubt for doubt in ours.doubts) else ()
    verdicts = their_verdict(tmp_path), ours.exit_code
    assert verdicts[0] == verdicts[1] or verdicts == unseen


@pytest.mark.parametrize("name", ["L1 table zeroed", "L2 table zeroed"])
@pytest.mark.parametrize("what", ["leaks", "all"])
def test_qemu_img_frees_what_was_lost_and_we_do_not(name: str, what: str, tmp_path: Path) -> None:
    path = damaged(tmp_path, "v3", DAMAGE[name])
    before = path.read_bytes()
    assert qcow2c.repair(path, what).exit_code == 3
    assert path.read_bytes() == before
    status, found = their_repair(tmp_path, what)
    assert (status, found["leaks-fixed"] > 0) == (0, True)
    theirs = path.read_bytes()
    path.write_bytes(before)
    ours = qcow2c.repair(path, what, allow_data_loss=True)
    assert (ours.exit_code, ours.leaks_fixed) == (0, found["leaks-fixed"])
    assert len(theirs) <= len(path.read_bytes())


def test_the_output_is_qemu_imgs(tmp_path: Path, run_ours: Any) -> None:
    for words in (("-r", "all"), ("-r", "leaks"), ("-r", "all", "--output=json"), ("-r", "all", "-q")):
        damaged(tmp_path, "v3", refcount(5, 3))
        theirs = run_qemu_img(tmp_path, "check", *words, IMAGE)
        damaged(tmp_path, "v3", refcount(5, 3))
        ours = run_ours(tmp_path, "check", *words, IMAGE)
        assert (ours.status, ours.out) == (theirs.status, theirs.out)


def test_a_writer_that_was_killed_leaves_what_both_repair_alike(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, 3)
    shop.create(8 << 20, "lazy_refcounts=on,cluster_size=4k")
    shop.io("write -P 1 0 256k", "write -z 64k 8k")
    words = ["qemu-io", "-f", "qcow2", "-c", "write -P 2 1M 300k", "-c", "discard 0 40k", "-c", "sigraise 9", IMAGE]
    subprocess.run(words, cwd=tmp_path, check=False, capture_output=True)
    path = tmp_path / IMAGE
    before = path.read_bytes()
    with qcow2c.open(before) as image:
        disk = image.pread(image.size(), 0)
    ours = qcow2c.repair(path, "all")
    assert ours.corruptions_fixed > 0
    assert their_verdict(tmp_path) == ours.exit_code == 0
    with qcow2c.open(path, "r+") as image:
        assert image.pread(image.size(), 0) == disk
    path.write_bytes(before)
    status, found = their_repair(tmp_path, "all")
    assert (status, found["corruptions-fixed"]) == (0, ours.corruptions_fixed)
