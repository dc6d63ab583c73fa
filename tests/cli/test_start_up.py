"""What a short command does not need is not imported: start-up is most of its time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.building import Builder, deflate

NEVER = {"numpy", "json", "pathlib", "concurrent.futures", "logging", "asyncio", "shutil", "subprocess", "tempfile"}
NEVER |= {"zstandard", "isal", "zlib_ng", "deflate", "kaitaistruct", "tqdm", "argcomplete", "hypothesis"}
NEVER |= {"construct", "qcow2c.structs", "hashlib", "dataclasses", "inspect", "typing"}
"""Modules that no short command needs."""

COMMANDS = {
    "info IMAGE": {
        "qcow2c.disk.opening",
        "qcow2c.layers.reader",
        "qcow2c.format.tables",
        "qcow2c.storage.gate",
        "threading",
    },
    "info --output=json IMAGE": {"qcow2c.disk.opening", "qcow2c.layers.reader", "qcow2c.format.tables"},
    "check IMAGE": {
        "qcow2c.disk.opening",
        "qcow2c.layers.reader",
        "qcow2c.references.walk",
        "qcow2c.format.codecs",
        "threading",
    },
    "check --output=json IMAGE": {"qcow2c.disk.opening", "qcow2c.layers.reader", "qcow2c.references.walk"},
    "map IMAGE": {"qcow2c.disk.map_arrays", "qcow2c.engine", "qcow2c.writer.cache"},
    "map --output=json IMAGE": {"qcow2c.disk.map_arrays", "qcow2c.engine", "qcow2c.writer.cache"},
    "create -f qcow2 new.qcow2 64M": {"qcow2c.disk.opening", "qcow2c.layers.reader", "qcow2c.engine"},
    "measure -O qcow2 IMAGE": {"qcow2c.engine", "qcow2c.writer.cache"},
    "compare IMAGE IMAGE": {"qcow2c.engine", "qcow2c.writer.cache"},
    "convert -O raw IMAGE copy.raw": {"qcow2c.engine", "qcow2c.writer.cache"},
    "convert -O qcow2 IMAGE copy.qcow2": {"qcow2c.engine", "qcow2c.writer.cache"},
    "dd if=IMAGE of=part.raw bs=4k count=1": {"qcow2c.engine", "qcow2c.writer.cache"},
}
"""Commands, with modules of their own that they do without as well."""

WITHOUT_FORMAT = ["--version", "--help", "info --help", "convert --help", "create -f qcow2 -o help", "nonsense"]
"""Commands that need nothing of the format: not even its numbers."""

_REPORT = "import sys; from qcow2c.cli import main; main(); print('\\n'.join(sys.modules), file=sys.stderr)"


def imported(words: list[str], directory: Path, root: Path) -> set[str]:
    """Return the modules that a command has imported in a process of its own, once it has succeeded."""
    done = subprocess.run(
        [sys.executable, "-c", _REPORT, *words],
        cwd=directory,
        env={"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout or not done.stderr.startswith("qcow2c: ") or words == ["nonsense"]
    return set(done.stderr.splitlines())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = Builder(1 << 20)
    for cluster in (0, 1, 7):
        builder.data(cluster, b"x")
    builder.snapshot(b"before")
    path = tmp_path_factory.mktemp("images") / "disk.qcow2"
    path.write_bytes(builder.build())
    return path


def importers_of_typing(modules: set[str], root: Path) -> list[str]:
    """Return those of our modules that import typing or dataclasses at run time: light.py is for that."""
    slow = re.compile(r"^(?:from|import) (?:typing|dataclasses)\b", re.MULTILINE)
    files = (root.joinpath(*module.split(".")).with_suffix(".py") for module in sorted(modules))
    return [file.relative_to(root).as_posix() for file in files if file.is_file() and slow.search(file.read_text())]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_short_command_imports_nothing_that_it_does_not_need(
    command: str, image: Path, tmp_path: Path, project_root: Path
) -> None:
    words = command.replace("IMAGE", str(image)).split()
    modules = imported(words, tmp_path, project_root)
    assert "qcow2c.format.header" in modules
    assert importers_of_typing(modules, project_root) == []
    assert sorted(modules & (NEVER | COMMANDS[command])) == []


@pytest.mark.parametrize("command", ["dump IMAGE", "dump --output=json --section snapshots IMAGE"])
def test_a_dump_needs_no_construct_either(command: str, image: Path, tmp_path: Path, project_root: Path) -> None:
    modules = imported(command.replace("IMAGE", str(image)).split(), tmp_path, project_root)
    assert "qcow2c.forensic.nodes" in modules and "construct" not in modules


@pytest.mark.parametrize("command", WITHOUT_FORMAT)
def test_help_and_mistakes_import_nothing_of_the_format(command: str, tmp_path: Path, project_root: Path) -> None:
    modules = imported(command.split(), tmp_path, project_root)
    assert sorted(modules & (NEVER | {"qcow2c.constants", "qcow2c.format.derived"})) == []


def test_a_small_image_is_written_without_numpy_and_construct(image: Path, tmp_path: Path, project_root: Path) -> None:
    copy = tmp_path / "copy.qcow2"
    builder = Builder(1 << 20, refcount_order=1)
    builder.data(3, b"x")
    builder.compressed(5, deflate(b"c" * 4096))
    copy.write_bytes(builder.build())
    script = (
        "import sys, qcow2c\n"
        "with qcow2c.open(sys.argv[1], 'r+') as image: image.pwrite(b'new', 40960)\n"
        "slow = {'numpy', 'construct', 'dataclasses', 'typing'} & set(sys.modules)\n"
        "print(slow, qcow2c.check(sys.argv[1]).exit_code, 'numpy' in sys.modules)\n"
    )
    environment = {"PYTHONPATH": str(project_root), "PYTHONDONTWRITEBYTECODE": "1"}
    for path in (image, copy):
        done = subprocess.run(
            [sys.executable, "-c", script, path], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == "set() 0 False\n"


OLD = "import runpy, sys; sys.version_info = (3, 10, 13); sys.argv = [{first!r}]; "


@pytest.mark.parametrize(
    ("first", "code", "before"),
    [("-m", "runpy.run_module('qcow2c')", ""), ("", "import qcow2c", "ImportError: ")],
)
def test_an_old_python_is_refused_with_one_line(first: str, code: str, before: str) -> None:
    command = [sys.executable, "-c", OLD.format(first=first) + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    expected = f"{before}qcow2c: Python 3.11 or newer is needed, and this is 3.10"
    assert done.stderr.splitlines()[-1] == expected and (before or len(done.stderr.splitlines()) == 1)
