"""README.md is true: each of its commands runs, each Python block runs, and prints what it is said to print.

A ```sh block is a list of commands. One that ends in `# exit status N` leaves with N, any other with 0;
`make X` is not run (it would run this test), but must be a target of the Makefile. A ```text block below
the commands or the Python holds what they print, in this order; a line `...` stands for any number of
lines.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
EXIT_STATUS = re.compile(r"#\s*exit status (\d+)\s*$")


@dataclass(frozen=True)
class Block:
    """One ```sh or ```python block, and the lines that the ```text block below it promises (None: none)."""

    line: int
    language: str
    source: str
    promised: tuple[str, ...] | None


def blocks_of(text: str) -> list[Block]:
    fences = list(FENCE.finditer(text))
    blocks = []
    for number, fence in enumerate(fences):
        if fence[1] not in {"sh", "python"}:
            continue
        below = fences[number + 1] if number + 1 < len(fences) else None
        promised = None
        if below is not None and below[1] == "text" and not text[fence.end() : below.start()].strip():
            promised = tuple(below[2].splitlines())
        blocks.append(Block(text.count("\n", 0, fence.start()) + 1, fence[1], fence[2], promised))
    return blocks


def commands_of(source: str) -> list[tuple[str, int]]:
    """Each command of a ```sh block with the exit status that it announces."""
    commands = []
    for command in source.replace("\\\n", " ").splitlines():
        if not command.strip() or command.lstrip().startswith("#"):
            continue
        status = EXIT_STATUS.search(command)
        commands.append((command, int(status[1]) if status else 0))
    return commands


def missing_line(printed: str, promised: tuple[str, ...]) -> str | None:
    """The first promised line that does not come next in what was printed; None if all of them do."""
    lines = iter(printed.splitlines())
    skipping = False
    for wanted in promised:
        if wanted.strip() == "...":
            skipping = True
            continue
        found = any(line.rstrip() == wanted for line in lines) if skipping else next(lines, None) == wanted
        if not found:
            return wanted
        skipping = False
    rest = next(lines, None)
    return None if skipping or rest is None else f"(nothing, but {rest!r} follows)"


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a copy of examples/ and a `qcow2c` on the way to it that runs this checkout."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("python", ""), ("qcow2c", "-m qcow2c ")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return tmp_path


def run(arguments: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = {
        **os.environ,
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        arguments, cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


README = blocks_of((ROOT / "README.md").read_text(encoding="utf-8"))


def follow(block: Block, place: Path) -> None:
    """Run a block, and hold what it prints against what is promised."""
    printed = ""
    if block.language == "python":
        done = run([sys.executable, "-W", "error", "-c", block.source], place)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        for command, status in commands_of(block.source):
            if command.startswith("make "):
                assert set(command.split("#")[0].split()[1:]) <= makefile_targets()
                continue
            done = run(["bash", "-o", "pipefail", "-c", command], place)
            assert done.returncode == status, f"{command}\n{done.stdout}{done.stderr}"
            printed += done.stdout + done.stderr
    if block.promised is not None:
        assert missing_line(printed, block.promised) is None, printed


@pytest.mark.parametrize("block", README, ids=[f"{block.language}-line-{block.line}" for block in README])
def test_the_block_does_what_the_readme_says(block: Block, place: Path) -> None:
    follow(block, place)


def test_all_blocks_run_in_order_in_one_checkout_and_leave_it_as_it_was(place: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=place, check=True)
    shutil.copy(ROOT / ".gitignore", place)
    before = {path: path.read_bytes() for path in (place / "examples").iterdir() if path.is_file()}
    for block in README:
        follow(block, place)
    assert {path: path.read_bytes() for path in before} == before
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    left = subprocess.run(status, cwd=place, capture_output=True, text=True, check=True).stdout.split()[1::2]
    assert {name for name in left if not name.startswith(("bin/", ".gitignore"))} == {
        str(path.relative_to(place)) for path in before
    }


def test_the_readme_shows_the_tour() -> None:
    source = "\n".join(block.source for block in README)
    tour = ("qcow2c dump", "qcow2c info", "qcow2c map", "qcow2c check", "qcow2c.open", "on_error", "gate")
    assert [part for part in tour if part not in source] == []


DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def anchors(document: Path) -> set[str]:
    """What a link into a document may name: its headings, in lower case, with hyphens for spaces."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_files_and_headings_that_a_document_points_to_exist(document: Path) -> None:
    for link, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")):
        target = document.parent / link if link else document
        assert target.exists(), link
        assert not heading or heading in anchors(target), f"{link}#{heading}"


def test_the_hooks_before_a_commit_are_those_of_the_makefile() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["entry"] for hook in local["hooks"]] == ["make lint", "make types"]
    assert {"lint", "types"} <= makefile_targets()


def test_the_console_script_names_a_function() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["qcow2c"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_readme_that_is_not_true_is_noticed(place: Path) -> None:
    text = "```sh\nprintf 'one\\ntwo\\n'\nfalse # exit status 1\n```\n\n```text\none\ntwo\n```\n"
    (block,) = blocks_of(text)
    assert block.promised == ("one", "two")
    assert commands_of(block.source) == [("printf 'one\\ntwo\\n'", 0), ("false # exit status 1", 1)]
    assert missing_line("one\ntwo\n", block.promised) is None
    assert missing_line("one\n", block.promised) == "two"
    assert missing_line("one\nzero\ntwo\n", block.promised) == "two"
    assert missing_line("one\ntwo\nthree\n", block.promised) is not None
    assert missing_line("zero\none\nthree\ntwo\n", ("...", "one", "...", "two")) is None
    wrong = Block(1, "sh", "true # exit status 1\n", None)
    with pytest.raises(AssertionError):
        follow(wrong, place)


TESTING = [block for block in blocks_of((ROOT / "docs/testing.md").read_text("utf-8")) if block.language == "python"]


@pytest.mark.parametrize("block", TESTING, ids=[f"line-{block.line}" for block in TESTING])
def test_the_examples_of_testing_run(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block.source],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "CI"} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_examples_of_testing_are_typed(tmp_path: Path) -> None:
    for block in TESTING:
        (tmp_path / f"line_{block.line}.py").write_text(block.source, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), *map(str, sorted(tmp_path.glob("line_*.py")))]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
