"""check -r and undo: what they print, their exit status, and what the image holds afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcow2c.cli import main
from tests.corpus.damage import DAMAGE
from tests.corpus.patch import put, refcount, seed_bytes

Capture = pytest.CaptureFixture[str]


def run(capfd: Capture, *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    return status, *capfd.readouterr()


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """An image with a leak and a refcount that is too low."""
    image = bytearray(seed_bytes("v3.qcow2"))
    refcount(5, 3)(image)
    refcount(6, 0)(image)
    return stored(tmp_path, image)


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """An image whose L1 table is lost."""
    image = bytearray(seed_bytes("v3.qcow2"))
    DAMAGE["L1 table zeroed"](image)
    return stored(tmp_path, image)


def stored(folder: Path, image: bytearray) -> Path:
    path = folder / "image.qcow2"
    path.write_bytes(image)
    return path


def test_a_repair_prints_what_qemu_img_prints(wrong: Path, capfd: Capture) -> None:
    status, out, err = run(capfd, "check", "-r", "all", wrong)
    assert (status, out) == (
        0,
        "The following inconsistencies were found and repaired:\n\n    1 leaked clusters\n    1 corruptions\n\n"
        "Double checking the fixed image now...\nNo errors were found on the image.\n"
        "7/2048 = 0.34% allocated, 0.00% fragmented, 0.00% compressed clusters\nImage end offset: 57344\n",
    )
    assert err == (
        "Repairing: lower-refcount bytes 0x5000..0x5fff: 3 -> 1 (1 references)\n"
        "Repairing: raise-refcount bytes 0x6000..0x6fff: 0 -> 1 (1 references)\n"
    )


def test_a_repair_as_json(wrong: Path, capfd: Capture) -> None:
    status, out, _ = run(capfd, "check", "-r", "leaks", "--output=json", wrong)
    assert status == 2
    found = json.loads(out)
    assert list(found) == [
        "image-end-offset",
        "total-clusters",
        "corruptions",
        "check-errors",
        "leaks-fixed",
        "allocated-clusters",
        "filename",
        "format",
        "findings",
    ]
    assert (found["leaks-fixed"], found["corruptions"]) == (1, 2)


def test_a_dry_run_changes_nothing_and_shows_the_plan(wrong: Path, capfd: Capture, tmp_path: Path) -> None:
    before = wrong.read_bytes()
    status, out, err = run(capfd, "check", "-r", "all", "--dry-run", "--undo", tmp_path / "undo", wrong)
    assert (status, err) == (0, "")
    assert out.startswith(
        "Nothing is changed. A repair would do this:\n"
        "  lower-refcount bytes 0x5000..0x5fff: 3 -> 1 (1 references)\n"
        "  raise-refcount bytes 0x6000..0x6fff: 0 -> 1 (1 references)\n\n"
        "The following inconsistencies would be repaired:\n\n    1 leaked clusters\n"
    )
    assert wrong.read_bytes() == before
    assert not (tmp_path / "undo").exists()


def test_a_dry_run_as_json_has_the_plan(lost: Path, capfd: Capture) -> None:
    status, out, _ = run(capfd, "check", "-r", "all", "--dry-run", "--output=json", lost)
    plan = json.loads(out)["plan"]
    assert (status, plan["clusters-kept"], plan["refused"]) == (3, 10, [])
    assert plan["action-count"] == len(plan["actions"])
    assert plan["actions"][0] == {
        "kind": "keep",
        "host-offset": 0x4000,
        "host-length": 0xA000,
        "old": 1,
        "new": 1,
        "reason": "0 references; kept, because tables may be lost",
        "may-lose-data": False,
    }
    assert "what nothing refers to looks like L2 tables that were lost" in plan["doubts"]


def test_a_plan_names_the_guest_range_of_an_entry(tmp_path: Path, capfd: Capture) -> None:
    image = bytearray(seed_bytes("v3.qcow2"))
    DAMAGE["L2 entry with reserved bits"](image)
    _, out, _ = run(capfd, "check", "-r", "all", "--dry-run", "--output=json", stored(tmp_path, image))
    action = json.loads(out)["plan"]["actions"][0]
    assert (action["kind"], action["host-length"], action["guest-length"]) == ("entry", 8, 4096)
    _, out, _ = run(capfd, "check", "-r", "all", "--dry-run", stored(tmp_path, image))
    assert ", guest bytes " in out


def test_what_is_kept_is_told(lost: Path, capfd: Capture) -> None:
    before = lost.read_bytes()
    status, out, err = run(capfd, "check", "-r", "all", lost)
    assert (status, lost.read_bytes()) == (3, before)
    assert "10 leaked clusters were found on the image." in out
    assert "10 clusters are left as they are, although too little refers to them:\n  what nothing" in err
    assert err.startswith("Left: keep bytes 0x4000..0xdfff: 1 -> 1 (0 references; kept")
    assert "With --allow-data-loss they are freed all the same." in err
    status, out, err = run(capfd, "check", "-r", "leaks", "--allow-data-loss", lost)
    assert status == 0
    assert "DATA MAY BE LOST" in err


def test_stale_bitmaps_are_told(tmp_path: Path, capfd: Capture) -> None:
    image = bytearray(seed_bytes("bitmaps.qcow2"))
    put(88, bytes(8))(image)
    status, _, err = run(capfd, "check", "-r", "all", "-q", stored(tmp_path, image))
    assert status == 3
    assert "they hold bitmaps that are no longer in use" in err


def test_what_cannot_be_repaired_is_told(tmp_path: Path, capfd: Capture) -> None:
    image = bytearray(seed_bytes("v3.qcow2"))
    DAMAGE["refcount table zeroed"](image)
    status, _, err = run(capfd, "check", "-r", "leaks", stored(tmp_path, image))
    assert status == 2
    assert "Not repaired: clusters in use have no refcount block; it stays so: only what leaks" in err


def test_many_actions_are_counted(tmp_path: Path, capfd: Capture) -> None:
    image = bytearray(seed_bytes("c512.qcow2"))
    image.extend(bytes(512 * 120))
    for cluster in range(2, 120, 2):
        refcount(cluster, 7)(image)
    path = stored(tmp_path, image)
    _, out, _ = run(capfd, "check", "-r", "leaks", "--dry-run", path)
    assert "lower-refcount" in out
    _, _, err = run(capfd, "check", "-r", "leaks", path)
    assert "... and " in err


def test_a_long_plan_is_cut(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcow2c.recovery.plan.MAX_ACTIONS", 1)
    image = bytearray(seed_bytes("v3.qcow2"))
    refcount(5, 3)(image)
    refcount(7, 3)(image)
    _, out, _ = run(capfd, "check", "-r", "leaks", "--dry-run", stored(tmp_path, image))
    assert "  ... and 1 more\n" in out


def test_a_sound_image_needs_nothing(tmp_path: Path, capfd: Capture) -> None:
    path = stored(tmp_path, bytearray(seed_bytes("v3.qcow2")))
    status, out, _ = run(capfd, "check", "-r", "all", "--dry-run", path)
    assert (status, out.startswith("There is nothing to repair.\n\nNo errors were found")) == (0, True)
    status, plain, _ = run(capfd, "check", path)
    status, repaired, err = run(capfd, "check", "-r", "all", path)
    assert (status, repaired, err) == (0, plain, "")


def test_a_repair_is_taken_back(wrong: Path, capfd: Capture, tmp_path: Path) -> None:
    before, undo = wrong.read_bytes(), tmp_path / "undo"
    assert run(capfd, "check", "-r", "all", "--undo", undo, wrong)[0] == 0
    assert wrong.read_bytes() != before
    assert run(capfd, "undo", undo, wrong) == (0, "The image is as it was before the repair.\n", "")
    assert wrong.read_bytes() == before
    assert run(capfd, "undo", undo, wrong)[:2] == (0, "The image was as before the repair.\n")
    assert run(capfd, "undo", "-q", undo, wrong) == (0, "", "")
    status, _, err = run(capfd, "check", "-r", "all", "--undo", undo, wrong)
    assert (status, err) == (1, f"qcow2c: {wrong}: {str(undo)!r} exists: an undo file is never overwritten\n")
    wrong.write_bytes(bytes(len(before)))
    status, _, err = run(capfd, "undo", undo, wrong)
    assert (status, err.count("\n")) == (1, 1)
    assert "does not hold what the repair wrote" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-r", "all", "-U"), "force-share=on can only be used with read-only images"),
        (("--dry-run",), "--dry-run is about a repair: give -r leaks or -r all"),
        (("--undo", "x"), "--undo is about a repair: give -r leaks or -r all"),
        (("--allow-data-loss",), "--allow-data-loss is about a repair: give -r leaks or -r all"),
    ],
)
def test_options_that_do_not_go_together(words: tuple[str, ...], message: str, wrong: Path, capfd: Capture) -> None:
    before = wrong.read_bytes()
    assert run(capfd, "check", *words, wrong) == (1, "", f"qcow2c: {wrong}: {message}\n")
    assert wrong.read_bytes() == before


def test_raw_images_have_nothing_to_repair(wrong: Path, capfd: Capture) -> None:
    assert run(capfd, "check", "-r", "all", "-f", "raw", wrong)[0] == 63
