"""Forms of a newer qemu-img, beside a program of that version: options, keys of JSON, compressed rebasing.

The program is named by the environment; without it, one line says that nothing was compared.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Outcome, run_qemu_img
from .images import RECIPES
from .workshop import IMAGE, MIB, RealImage, Workshop

Run = Callable[..., Outcome]

ALL = [recipe.name for recipe in RECIPES]
OPEN = [recipe.name for recipe in RECIPES if not recipe.sealed]
CHAINS = [name for name in ALL if "chain" in name or "over-raw" in name or "backing" in name]
BOTH = (
    "amend", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map", "measure", "rebase",
    "resize", "snapshot",
)  # fmt: skip
"""The commands of both programs."""

TYPING_ERRORS = {"--progres": "--progress"}
"""Of the help of version 10; the program itself takes the whole word."""

pytestmark = pytest.mark.usefixtures("requires_qemu")


@pytest.mark.parametrize("image", ALL, indirect=True)
def test_info_as_json_has_the_keys_of_the_newer_version(image: RealImage, second_qemu_img: Path, run_ours: Run) -> None:
    words = "info", "--output=json", IMAGE
    theirs = run_qemu_img(image.folder, *words, program=second_qemu_img)
    assert run_ours(image.folder, *words).json() == theirs.json()


@pytest.mark.parametrize("image", CHAINS, indirect=True)
def test_info_of_the_backing_chain(image: RealImage, second_qemu_img: Path, run_ours: Run) -> None:
    words = "info", "-b", "--output=json", IMAGE
    theirs = run_qemu_img(image.folder, *words, program=second_qemu_img)
    assert run_ours(image.folder, *words).out == theirs.out


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_map_says_what_is_compressed(image: RealImage, second_qemu_img: Path, run_ours: Run) -> None:
    words = "map", "--output=json", IMAGE
    run_qemu_img(image.folder, *words, program=second_qemu_img)  # ext4 finds fewer holes when it is asked again.
    ours = run_ours(image.folder, *words)
    assert ours.out == run_qemu_img(image.folder, *words, program=second_qemu_img).out


@pytest.mark.parametrize("options", ["", "cluster_size=4k", "extended_l2=on,cluster_size=16k"])
@pytest.mark.parametrize("backing", ["", "other.raw"])
def test_a_compressed_rebase_copies_the_same(
    options: str, backing: str, second_qemu_img: Path, tmp_path: Path, run_ours: Run
) -> None:
    shop = Workshop(tmp_path, 3)
    shop.create(3 * MIB, name="base.qcow2")
    shop.io(
        "write -P 7 0 1M", shop.write(MIB, 100 * 1024), "write -z 2M 64k", "write -P 1 2560k 64k", name="base.qcow2"
    )
    shop.raw("other.raw", 2 * MIB, (0, b"\7" * 65536))
    shop.create(3 * MIB, options, "-b", "base.qcow2", "-F", "qcow2", name="ours.qcow2")
    shop.io("write -P 9 64k 64k", "write -P 9 300k 2k", name="ours.qcow2")
    for copy in ("theirs.qcow2", "before.qcow2"):
        shutil.copy(tmp_path / "ours.qcow2", tmp_path / copy)
    words = ["rebase", "--compress", "--backing", backing, *(["--backing-format", "raw"] if backing else [])]
    assert run_ours(tmp_path, *words, "ours.qcow2").status == 0
    done = run_qemu_img(tmp_path, *words, "theirs.qcow2", program=second_qemu_img)
    if "extended" in options:
        # Over clusters that are there in part, version 10 ends by an assertion.
        assert done.status in (0, -6)
        shutil.copy(tmp_path / "before.qcow2", tmp_path / "theirs.qcow2")
    else:
        assert done.status == 0
    assert run_qemu_img(tmp_path, "compare", "ours.qcow2", "theirs.qcow2").status == 0
    assert run_qemu_img(tmp_path, "check", "ours.qcow2", program=second_qemu_img).status == 0
    told = [run_ours(tmp_path, "map", "--output=json", f"{name}.qcow2").json() for name in ("ours", "theirs")]
    compressed = [{extent["start"] for extent in extents if extent["compressed"]} for extents in told]
    assert compressed[0]
    if "extended" not in options:
        assert compressed[0] == compressed[1]


SNAPSHOT_WORDS = [
    (["-f", "qcow2", "--create", "one"], "-c"),
    (["--format", "qcow2", "--list"], "-l"),
    (["--apply", "one"], "-a"),
    (["--delete=one", "--quiet"], "-d"),
]
"""Words, and the short option: version 10 knows the long ones, but forgets that three of them take a name."""


@pytest.mark.parametrize("words", [SNAPSHOT_WORDS[:count] for count in range(1, 5)], ids=len)
def test_long_options_of_snapshot_do_the_same(
    words: list[tuple[list[str], str]], second_qemu_img: Path, tmp_path: Path, run_ours: Run
) -> None:
    shop = Workshop(tmp_path, 4)
    for name in ("ours.qcow2", "theirs.qcow2"):
        shop.create(MIB, name=name)
    for options, short in words:
        asked = [short] if short == "-l" else [short, "one"]
        theirs = run_qemu_img(tmp_path, "snapshot", "-f", "qcow2", *asked, "theirs.qcow2", program=second_qemu_img)
        ours = run_ours(tmp_path, "snapshot", *options, "ours.qcow2")
        assert ours.status == theirs.status == 0
        assert len(ours.out.splitlines()) == len(theirs.out.splitlines())
    listed = [run_qemu_img(tmp_path, "snapshot", "-l", name).out for name in ("ours.qcow2", "theirs.qcow2")]
    assert len({re.sub(r" *\d{4}-\d\d-\d\d \S+", "", found) for found in listed}) == 1


# --- options ----------------------------------------------------------------------------------------------------------

OPTION = re.compile(r"(--?[A-Za-z][\w-]*)(?:[ =]([^,\s-][^,]*))?")


def listed_options(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the options that a help text lists, each with whether it takes a value."""
    for line in text.splitlines():
        if re.match(r"\s{1,6}-", line):
            names = line.strip().split("  ")[0]
            takes_value = any(found[2] for found in OPTION.finditer(names))
            for found in OPTION.finditer(names):
                name = found[1].rstrip("-")
                yield TYPING_ERRORS.get(name, name), takes_value


def ours_of(command: str, tmp_path: Path, run_ours: Run) -> dict[str, bool]:
    return dict(listed_options(run_ours(tmp_path, command, "--help").out))


@pytest.mark.parametrize("command", BOTH)
def test_every_option_of_the_newer_version_is_taken(
    command: str, second_qemu_img: Path, tmp_path: Path, run_ours: Run
) -> None:
    theirs = dict(listed_options(run_qemu_img(tmp_path, command, "--help", program=second_qemu_img).out))
    assert {"-h", "--help"} < theirs.keys()
    ours = ours_of(command, tmp_path, run_ours)
    require_all(theirs, ours)


def require_all(theirs: dict[str, bool], ours: dict[str, bool]) -> None:
    """Require each option of theirs, and that it takes a value where theirs say that it does."""
    assert theirs.keys() - ours.keys() == set()
    assert [name for name, takes_value in theirs.items() if takes_value and not ours[name]] == []


USAGE = re.compile(r"(--?[A-Za-z][\w-]*)([ =](?![-|\]\[)])\S+)?")


@pytest.mark.parametrize("command", BOTH)
def test_every_option_of_the_installed_version_is_taken(command: str, tmp_path: Path, run_ours: Run) -> None:
    words = run_qemu_img(tmp_path, "--help").out
    usage = re.search(rf"^  {command} (.*)$", words, re.MULTILINE)
    if usage is None:
        pytest.skip("the installed qemu-img lists its options command by command")
    ours = ours_of(command, tmp_path, run_ours)
    theirs = {found[1]: bool(found[2]) for found in USAGE.finditer(usage[1])}
    assert theirs
    require_all(theirs, ours)
