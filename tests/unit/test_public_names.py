"""What `import qcow2c` offers: each name is listed, explained, typed and found, whatever was imported before."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import qcow2c
from qcow2c import errors

HOMES: dict[str, str] = vars(qcow2c)["_HOMES"]

WAYS = [
    "import qcow2c",
    "import qcow2c.dump",
    "from qcow2c.dump import Dump",
    "from qcow2c import dump; import qcow2c.dump",
    "import qcow2c; qcow2c.dump; import qcow2c.dump",
    "import importlib, qcow2c; importlib.import_module('qcow2c.dump')",
    "from qcow2c import *; import qcow2c.dump",
]
"""Orders in which the module `qcow2c.dump` and the function of that name may meet."""


def printed(script: str, root: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", qcow2c.__all__)
def test_each_public_name_is_what_its_home_has(name: str) -> None:
    assert getattr(qcow2c, name) is pkgutil.resolve_name(HOMES[name])


def test_the_names_are_those_that_mypy_sees(project_root: Path) -> None:
    tree = ast.parse((project_root / "qcow2c/__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    seen, renamed = {}, {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                home = module if (project_root / f"{module.replace('.', '/')}.py").exists() else ""
                seen[alias.asname or alias.name] = home or f"{node.module}:{alias.name}"
        elif isinstance(node, ast.Assign):
            renamed[ast.unparse(node.targets[0])] = ast.unparse(node.value)
    for name, other in renamed.items():
        seen[name] = seen.pop(other)
    assert seen == HOMES


def test_every_error_and_every_operation_is_public(project_root: Path) -> None:
    tree = [name for name, found in vars(errors).items() if inspect.isclass(found) and issubclass(found, Exception)]
    assert {*tree} <= {*qcow2c.__all__}
    homes = {home.partition(":")[0] for home in HOMES.values()}
    operations = {f"qcow2c.ops.{file.stem}" for file in (project_root / "qcow2c/ops").glob("[a-z]*.py")}
    assert operations - homes == {"qcow2c.ops.incremental"}  # Its functions take an open `Disk`.


def test_help_is_a_table_of_contents() -> None:
    assert qcow2c.__doc__ is not None
    listed = {line.split()[0] for line in qcow2c.__doc__.splitlines() if line.startswith("    ") and line[4] != " "}
    assert listed - {"testing"} == {*qcow2c.__all__} - ({*vars(errors)} - {"Qcow2Error"})


def test_dir_lists_the_public_names_and_nothing_else() -> None:
    assert dir(qcow2c) == sorted([*qcow2c.__all__, "__version__"])
    with pytest.raises(AttributeError, match="'qcow2c' has no attribute 'nonsense'"):
        _ = qcow2c.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", WAYS)
def test_dump_is_a_function_and_a_module_to_import_from_in_any_order(way: str, project_root: Path) -> None:
    script = (
        f"{way}\nimport sys, qcow2c, types\nfrom qcow2c.dump import Dump, chain\n"
        "with qcow2c.dump('examples/demo.qcow2', ['header']) as dump:\n"
        "    print(type(qcow2c.dump) is types.FunctionType, type(dump) is Dump is qcow2c.Dump,"
        " type(sys.modules['qcow2c.dump']) is types.ModuleType)\n"
    )
    assert printed(script, project_root) == "True True True\n"


def test_no_submodule_hides_a_public_function(project_root: Path) -> None:
    script = (
        "import importlib, pkgutil, types, qcow2c\n"
        "for found in pkgutil.iter_modules(qcow2c.__path__):\n"
        "    if found.name not in ('testing', '__main__'): importlib.import_module(f'qcow2c.{found.name}')\n"
        "print([name for name in qcow2c.__all__ if type(getattr(qcow2c, name)) is types.ModuleType])\n"
    )
    assert printed(script, project_root) == "['bitmap', 'errors', 'snapshots', 'structs']\n"


def test_importing_the_package_imports_nothing_of_it(project_root: Path) -> None:
    before = printed("import sys; print(*sys.modules)", project_root).split()
    after = printed("import sys, qcow2c; print(*sys.modules)", project_root).split()
    assert {*after} - {*before} <= {"__future__", "types", "qcow2c"}


def test_what_is_returned_can_be_read(examples: Path) -> None:
    with qcow2c.open(examples / "demo.qcow2") as image:
        first = next(iter(qcow2c.map(image)))
    assert repr(first).startswith("Extent(start=0, length=8192, depth=0, present=True,")
    assert repr(qcow2c.map).startswith("<function map at ")
    with qcow2c.dump(examples / "demo.qcow2") as dump:
        assert repr(dump) == f"<Dump of {str(examples / 'demo.qcow2')!r}>"
