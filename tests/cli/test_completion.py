"""`qcow2c completion`: what a real bash offers after its script was read, and what happens without argcomplete."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qcow2c.cli import COMMANDS, main
from qcow2c.cli.commands import completion

argcomplete = pytest.importorskip("argcomplete")

ASK = """
eval "$(qcow2c completion bash)"
COMP_LINE="$1" COMP_POINT="${#1}" COMP_TYPE=9
_python_argcomplete qcow2c
printf '%s\\n' "${COMPREPLY[@]}"
"""

Offers = Callable[[str], list[str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with some files, to be in."""
    files = tmp_path / "files"
    (files / "images").mkdir(parents=True)
    for name in ("disk.qcow2", "disk two.raw", ".hidden", "images/one.qcow2"):
        (files / name).touch()
    monkeypatch.chdir(files)
    return files


@pytest.fixture
def bash(place: Path, tmp_path: Path, project_root: Path) -> Offers:
    """Return a function from a line that was typed to what bash offers for its last word."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    program = tmp_path / "bin/qcow2c"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qcow2c "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(project_root),
    }

    def offers(line: str) -> list[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", ASK, "bash", line],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return sorted(done.stdout.splitlines())

    return offers


LINES = {
    "qcow2c ": sorted(COMMANDS),
    "qcow2c me": ["measure "],
    "qcow2c info ": ["disk.qcow2", "disk\\ two.raw", "images/"],
    "qcow2c info disk.q": ["disk.qcow2 "],
    "qcow2c info images/": ["images/one.qcow2 "],
    "qcow2c info .": [".hidden "],
    "qcow2c info nowhere/": [""],
    "qcow2c info disk.qcow2 --ba": ["--backing-chain "],
    "qcow2c map --output=j": ["json "],
    "qcow2c map --gate ": ["any", "deny", "directory"],
    "qcow2c create new.qcow2 -f ": ["qcow2", "raw"],
    "qcow2c convert disk.qcow2 -O q": ["qcow2 "],
    "qcow2c convert disk.qcow2 ima": ["images/"],
    "qcow2c create -o cluster_size=4k,refc": ["4k,refcount_bits="],
    "qcow2c compare -T direct": ["directsync "],
    "qcow2c measure --size ": [""],
    "qcow2c dd c": ["count="],
    "qcow2c dd bs=512 if=disk.": ["disk.qcow2 "],
    "qcow2c dd bs=5": [""],
    "qcow2c completion ": ["bash", "fish", "zsh"],
}


WRITERS = {"amend", "commit", "patch", "resize"}
"""Commands that change the image, which they then never share."""


@pytest.mark.parametrize("line", LINES)
def test_bash_offers_what_could_be_typed(line: str, bash: Offers) -> None:
    assert bash(line) == LINES[line]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_each_command_are_offered(command: str, bash: Offers) -> None:
    offered = bash(f"qcow2c {command} --")
    assert "--help" in [option.strip() for option in offered]
    if "--gate" in offered and command not in WRITERS:
        assert "--force-share" in offered


@pytest.mark.usefixtures("place")
def test_the_answer_is_written_where_the_shell_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder(argcomplete.CompletionFinder):  # type: ignore[misc,name-defined]
        """Writes to where the test reads, and leaves other descriptors alone."""

        def _init_debug_stream(self) -> None:
            argcomplete.io.debug_stream = sys.stderr

        def __call__(self, *arguments: object, **how: object) -> None:
            super().__call__(*arguments, **how, output_stream=written, exit_method=sys.exit)

    monkeypatch.setattr(argcomplete, "autocomplete", Finder())
    for line, offer in {
        **{line: LINES[line] for line in ("qcow2c info ", "qcow2c info .", "qcow2c info nowhere/", "qcow2c dd bs=5")},
        "qcow2c convert -O q": ["qcow2 "],
        "qcow2c compare -T direct": ["directsync "],
        "qcow2c measure --size ": [""],
        "qcow2c create -o cluster_size=4k,refc": ["cluster_size=4k,refcount_bits="],
        "qcow2c dd if=disk.": ["if=disk.qcow2 "],
        "qcow2c dd c": ["count="],
    }.items():
        written = io.StringIO()
        for name, value in {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            completion.answer(COMMANDS)
        assert (end.value.code, sorted(written.getvalue().split("\013"))) == (0, offer)
    monkeypatch.delenv("_ARGCOMPLETE")
    assert completion.answer(COMMANDS) == 0


@pytest.mark.parametrize(
    ("shell", "words"),
    [("bash", "complete -o nospace"), ("zsh", "#compdef qcow2c"), ("fish", "complete --command qcow2c")],
)
def test_the_script_of_each_shell(shell: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert words in capfd.readouterr().out


def test_another_shell_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 1
    assert "invalid choice: 'tcsh'" in capfd.readouterr().err


def test_without_argcomplete_the_extra_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.setitem(sys.modules, "argcomplete.shell_integration", None)
    assert main(["completion", "bash"]) == 1
    complaint = "qcow2c: argcomplete is not installed: pip install 'qcow2c[completion]'\n"
    assert capfd.readouterr() == ("", complaint)
    assert completion.answer(COMMANDS) == 1
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    assert main() == 1


def test_other_commands_do_without_it(place: Path, project_root: Path) -> None:
    program = (
        "import sys; from qcow2c.cli import main; status = main(['info', 'disk.qcow2'])\n"
        "print(status, [name for name in sys.modules if 'argcomplete' in name or name.endswith('completion')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(project_root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0 []", "")
