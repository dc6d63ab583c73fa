"""info, map and check: the output and exit status of the real qemu-img on the same image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcow2c import structs
from qcow2c.format.rules import LOST_OWNERS
from qcow2c.structs import ExtensionType
from tests.building import Builder, extension
from tests.corpus.case import HostileCase
from tests.corpus.hostile import BY_NAME, CASES, make_case

from .conftest import Outcome, older, older_text, run_qemu_img
from .images import RECIPES
from .workshop import IMAGE, RealImage

Run = Callable[..., Outcome]

ALL = [recipe.name for recipe in RECIPES]
OPEN = [recipe.name for recipe in RECIPES if not recipe.sealed]
CHAINS = [name for name in ALL if "chain" in name or "over-raw" in name or "backing" in name]

pytestmark = pytest.mark.usefixtures("requires_qemu")


def check_both(image: RealImage, run_ours: Run, output: str) -> tuple[Outcome, Outcome]:
    """Check one image with both programs; qemu-img wants the secret of a sealed one, and names it otherwise."""
    theirs = run_qemu_img(image.folder, "check", f"--output={output}", *image.source())
    return run_ours(image.folder, "check", f"--output={output}", IMAGE), theirs


def map_both(image: RealImage, run_ours: Run, output: str) -> tuple[Outcome, Outcome]:
    """Map one image with both programs: ext4 finds fewer holes of a new file when it is asked again, so ask twice."""
    words = "map", f"--output={output}", IMAGE
    run_qemu_img(image.folder, *words)
    ours = run_ours(image.folder, *words)
    return ours, run_qemu_img(image.folder, *words)


def without_name(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without the name, and without `findings`, which only ours lists."""
    return {key: value for key, value in report.items() if key not in ("filename", "findings")}


@pytest.mark.parametrize("image", ALL, indirect=True)
def test_info_as_json(image: RealImage, run_ours: Run) -> None:
    theirs = run_qemu_img(image.folder, "info", "--output=json", IMAGE)
    ours = run_ours(image.folder, "info", "--output=json", IMAGE)
    assert (older(ours.json()), ours.status) == (theirs.json(), theirs.status)


@pytest.mark.parametrize("image", ALL, indirect=True)
def test_info_as_text(image: RealImage, run_ours: Run) -> None:
    theirs = run_qemu_img(image.folder, "info", IMAGE)
    ours = run_ours(image.folder, "info", IMAGE)
    assert ours.out == theirs.out


@pytest.mark.parametrize("image", CHAINS, indirect=True)
def test_info_of_the_backing_chain(image: RealImage, run_ours: Run) -> None:
    theirs = run_qemu_img(image.folder, "info", "--backing-chain", "--output=json", IMAGE)
    ours = run_ours(image.folder, "info", "--backing-chain", "--output=json", IMAGE)
    assert older(ours.json()) == theirs.json()
    theirs = run_qemu_img(image.folder, "info", "--backing-chain", "-U", IMAGE)
    ours = run_ours(image.folder, "info", "--backing-chain", "-U", IMAGE)
    assert ours.out == theirs.out


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_map_as_json(image: RealImage, run_ours: Run) -> None:
    ours, theirs = map_both(image, run_ours, "json")
    assert (older(ours.json()), ours.status) == (theirs.json(), theirs.status)
    assert older_text(ours.out) == theirs.out


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_map_as_text(image: RealImage, run_ours: Run) -> None:
    ours, theirs = map_both(image, run_ours, "human")
    assert (ours.out, ours.status) == (theirs.out, theirs.status)


@pytest.mark.parametrize("image", [name for name in ALL if name not in OPEN], indirect=True)
def test_map_of_an_encrypted_image_needs_no_key(image: RealImage, run_ours: Run) -> None:
    theirs = run_qemu_img(image.folder, "map", "--output=json", *image.source())
    ours = run_ours(image.folder, "map", "--output=json", IMAGE)
    assert (older_text(ours.out), ours.status) == (theirs.out, theirs.status)


@pytest.mark.parametrize("image", ALL, indirect=True)
def test_check_as_json(image: RealImage, run_ours: Run) -> None:
    ours, theirs = check_both(image, run_ours, "json")
    assert (without_name(ours.json()), ours.status) == (without_name(theirs.json()), theirs.status)


@pytest.mark.parametrize("image", ALL, indirect=True)
def test_check_as_text(image: RealImage, run_ours: Run) -> None:
    ours, theirs = check_both(image, run_ours, "human")
    assert (ours.out, ours.status) == (theirs.out, theirs.status)


WITHOUT_L1_TABLE = ("l1-offset-at-last-cluster", "cut-v3-at-8200", "cut-v3-at-12288")
OURS_ALONE = {"overlap", "snapshot.l1_too_small", *LOST_OWNERS}
"""Rules that qemu-img does not know: what breaks them may have lost clusters, which are no leaks then."""


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.askable and not case.heavy],
    ids=lambda case: case.name,
)
def test_check_of_a_damaged_image(case: HostileCase, tmp_path: Path, run_ours: Run) -> None:
    """Wherever qemu-img can check a malformed image, the counts, the JSON and the exit status are the same.

    But what breaks a clear rule is an error here, even where QEMU reads zeros past the end of a header; and so is an L1
    table of which the file has nothing, where QEMU reads a disk of zeros.
    """
    path = make_case(case, tmp_path)
    theirs = run_qemu_img(path.parent, "check", "--output=json", "-f", "qcow2", path.name)
    ours = run_ours(path.parent, "check", "--output=json", "-f", "qcow2", path.name)
    if case.check == "error":
        assert ours.status == 1
    elif case.name in WITHOUT_L1_TABLE:
        assert ours.status == 2
    elif theirs.status in (0, 2, 3):
        found = ours.json()
        listed = found.pop("findings", [])
        if OURS_ALONE & {finding["rule"] for finding in listed}:
            assert ours.status == 2
            return
        assert (found, ours.status) == (theirs.json(), theirs.status)
        text = run_qemu_img(path.parent, "check", "-f", "qcow2", path.name)
        said = run_ours(path.parent, "check", "-f", "qcow2", path.name).out
        # qemu-img says of all leaks that they do no harm, also where they are all that is left of a lost table.
        assert said == text.out or "They may be data of tables that are lost" in said
    else:
        assert ours.status in (0, 1, 2, 3)


FOREIGN = [
    "empty-file",
    "text-file",
    "all-zeros",
    "all-ones",
    "random-bytes",
    "gzip-of-an-image",
    "cut-v3-at-3",
]


@pytest.mark.parametrize("command", ["info", "map", "check"])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_image_is_probed_as_raw(name: str, command: str, tmp_path: Path, run_ours: Run) -> None:
    path = make_case(BY_NAME[name], tmp_path)
    for output in ("human", "json"):
        theirs = run_qemu_img(path.parent, command, f"--output={output}", path.name)
        ours = run_ours(path.parent, command, f"--output={output}", path.name)
        if output == "json" and not theirs.status:
            assert older(ours.json()) == theirs.json()
        else:
            assert ours.out == theirs.out
        assert ours.status == theirs.status


def feature_name(kind: int, bit: int, name: bytes, length: int = 48) -> bytes:
    record: bytes = structs.FEATURE_NAME.build({"type": kind, "bit": bit, "name": name.ljust(46, b"\0")})
    return record[:length]


@pytest.mark.parametrize(
    "table",
    [
        b"",
        feature_name(0, 40, b"time travel"),
        feature_name(0, 40, b"ends\0here"),
        feature_name(0, 40, b"short", length=7),
        feature_name(0, 40, b"first") + feature_name(0, 40, b"second") + feature_name(0, 41, b"x" * 46),
        feature_name(0, 40, b"") + feature_name(0, 41, b"behind the end"),
    ],
)
def test_unknown_features_have_the_names_that_qemu_img_gives_them(table: bytes, tmp_path: Path, run_ours: Run) -> None:
    builder = Builder(incompatible_features=3 << 40)
    builder.extensions.append(extension(ExtensionType.FEATURE_NAME_TABLE, table))
    (tmp_path / IMAGE).write_bytes(builder.build())
    ours, theirs = (run(tmp_path, "info", "-f", "qcow2", IMAGE) for run in (run_ours, run_qemu_img))
    named = theirs.err.strip()[theirs.err.index("Unsupported qcow2 feature(s)") :]
    assert ours.status == theirs.status == 1
    assert named in ours.err
