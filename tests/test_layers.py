"""The rooms of qcow2c/, from the ground up: what each may import is read from the docstring of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "qcow2c"
LINE_LIMIT = 400


@dataclass(frozen=True)
class Room:
    """One package, or one file at the top; what it may import, and whatever that may, is its docstring's `May import`.

    A file has no such line: for it the rule stands here, in `may`.
    """

    name: str
    may: tuple[str, ...] = ()


# From the ground up: a room may import only those above it in this list. A new package gets its row here.
ROOMS = (
    Room("light.py"),
    Room("errors.py", may=("light.py",)),
    Room("schema.py", may=("light.py",)),
    Room("constants.py", may=("light.py",)),
    Room("structs.py", may=("schema.py", "constants.py")),
    Room("storage"),
    Room("format"),
    Room("crypto"),
    Room("references"),
    Room("layers"),
    Room("bitmaps"),
    Room("attest"),
    Room("writer"),
    Room("engine.py", may=("writer",)),
    Room("builder"),
    Room("recovery"),
    Room("forensic"),
    Room("dump.py", may=("forensic",)),
    Room("atomic"),
    Room("internal_snapshots.py", may=("atomic",)),
    Room("image.py", may=("engine.py", "internal_snapshots.py")),
    Room("disk"),
    Room("copy"),
    Room("ops"),
    Room("serve"),
    Room("fs.py", may=("ops",)),
    Room("__init__.py", may=("ops",)),
    Room("testing"),
    Room("cli"),
    Room("__main__.py", may=("cli",)),
)
NAMES = tuple(room.name for room in ROOMS)

YET_TO_COME: dict[str, str] = {}
"""Rooms that rows name already, and what they will lie on."""

ALONE = {"ops": {("repair", "check")}}
"""Folders whose files do not import each other, with the pairs that may."""

WITNESS = "attest/_kaitai"
"""Compiled from formats/qcow2.ksy; only `attest` may ask it."""

LONG_FILES = {
    "format/derived.py": "made from structs.py by formats/derive.py",
    "structs.py": "every on-disk structure of the format, declared in one place and read from top to bottom",
}
"""Files that may be longer than LINE_LIMIT, each with the reason."""


@dataclass(frozen=True)
class Import:
    """One import of a package file: who, in which line, what (a path inside the package; "" if unknown)."""

    importer: str
    line: int
    imported: str


def room_of(path: str) -> str | None:
    name = path.split("/", maxsplit=1)[0]
    return name if name in NAMES else None


def stated(package: Path, name: str, line: str) -> list[str]:
    """Return the words of one line of a package's docstring: `May import` or `numpy at import`."""
    tree = ast.parse((package / name / "__init__.py").read_text(encoding="utf-8"))
    found = re.search(rf"^{line}: ([^.]*)\.", ast.get_docstring(tree) or "", re.MULTILINE)
    assert found, f"{name}/__init__.py does not say `{line}: ...`"
    return [word.strip() for word in re.sub(r"\s+", " ", found[1]).split(",")]


def may_import(package: Path) -> dict[str, set[str]]:
    """Return for each room the rooms below it that it may import, directly or because those may."""
    allowed: dict[str, set[str]] = {}
    for room in ROOMS:
        direct = list(room.may)
        if (package / room.name).is_dir():
            files = {name.removesuffix(".py"): name for name in NAMES}
            named = stated(package, room.name, "May import")
            direct += [files.get(YET_TO_COME.get(word, word), word) for word in named]
        allowed[room.name] = set(direct).union(*(allowed[name] for name in direct if name in allowed))
        unknown = sorted(name for name in direct if name not in allowed or name == room.name)
        assert not unknown, f"{room.name} may import {unknown}, which do not lie below it"
    return allowed


def package_files(package: Path) -> dict[str, str]:
    """Path inside the package and dotted module name of each Python file."""
    files = {}
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package).as_posix()
        parts = [PACKAGE, *path.removesuffix(".py").split("/")]
        files[path] = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return files


def absolute(name: str, level: int, path: str, module: str) -> str:
    """Dotted name of a relative import (`level` dots) found in the file `path`, which is `module`."""
    if level == 0:
        return name
    around = module.split(".") if path.endswith("__init__.py") else module.split(".")[:-1]
    base = around[: len(around) - (level - 1)]
    return ".".join([*base, *([name] if name else [])])


def named_by_call(node: ast.Call) -> str | None:
    """Name given to importlib.import_module or __import__; "?" if it is computed, None for other calls."""
    function = getattr(node.func, "attr", "") or getattr(node.func, "id", "")
    if function not in {"import_module", "__import__"}:
        return None
    first = node.args[0] if node.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else "?"


def names_in(node: ast.Import | ast.ImportFrom | ast.Call, path: str, module: str) -> list[str]:
    """Dotted names that a statement or a call imports into the file `path`, which is `module`; "?" if computed."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = absolute(node.module or "", node.level, path, module)
        return [f"{base}.{alias.name}" for alias in node.names]
    called = named_by_call(node) or ""
    dots = len(called) - len(called.lstrip("."))
    return [absolute(called[dots:], dots, path, module)] if called else []


def imports_of(package: Path, path: str, files: dict[str, str]) -> Iterator[Import]:
    """Each import of a package module anywhere in the file: in functions and TYPE_CHECKING blocks too."""
    modules = {module: file for file, module in files.items()}

    def target(name: str) -> str | None:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return modules.get(name)

    for node in ast.walk(ast.parse((package / path).read_text(encoding="utf-8"), path)):
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            continue
        for name in names_in(node, path, files[path]):
            if (found := "" if name == "?" else target(name)) is not None:
                yield Import(path, node.lineno, found)


def complaint(one: Import, allowed: dict[str, set[str]]) -> str:
    """Return what is wrong with an import, "" if nothing is."""
    mine, other = room_of(one.importer), room_of(one.imported)
    assert mine is not None
    if not one.imported:
        return "" if mine in ("__init__.py", "cli") else "a module whose name is computed"
    if one.imported == one.importer or other is None:
        return ""
    if one.imported.startswith(WITNESS) and mine != "attest":
        return f"{one.imported} (the second witness)"
    if mine != other:
        if other in allowed[mine]:
            return ""
        return f"{one.imported} ({'upward' if NAMES.index(other) > NAMES.index(mine) else 'not among what it may'})"
    for folder, pairs in ALONE.items():
        both = [path.removeprefix(f"{folder}/").removesuffix(".py") for path in (one.importer, one.imported)]
        if not any("/" in part or part == "__init__" for part in both) and tuple(both) not in pairs:
            return f"{one.imported} (a neighbour)"
    return ""


def violations(package: Path) -> list[str]:
    """One sentence for each thing in `package` that breaks the rules; none if all is well."""
    files, allowed = package_files(package), may_import(package)
    found = []
    for path in files:
        if room_of(path) is None:
            found.append(f"{path} is in no room")
            continue
        for one in imports_of(package, path, files):
            if wrong := complaint(one, allowed):
                found.append(f"{path}:{one.line} imports {wrong}")
        lines = len((package / path).read_text(encoding="utf-8").splitlines())
        if lines > LINE_LIMIT and path not in LONG_FILES and not path.startswith(WITNESS):
            found.append(f"{path} has {lines} lines, more than {LINE_LIMIT}")
    return found


def type_names(source: str) -> Iterator[str]:
    """Yield the classes and type aliases that a module defines; one is an alias if it is named like a class."""
    pending = list(ast.parse(source).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If):
            pending += node.body + node.orelse
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [node.name] if isinstance(node, ast.ClassDef) else [ast.unparse(target) for target in targets if target]
        yield from (name for name in names if re.fullmatch(r"_?[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*", name))


def repeated_types(package: Path) -> dict[str, list[str]]:
    """Return the names of types that stand in more than one module, with these; an underscore makes no other name."""
    found: dict[str, list[str]] = {}
    for path in package_files(package):
        if not path.startswith(WITNESS):
            for name in type_names((package / path).read_text(encoding="utf-8")):
                found.setdefault(name.removeprefix("_"), []).append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def imports_numpy(source: str) -> bool:
    """Return whether importing a module imports numpy, by itself."""
    return any(
        (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "numpy" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numpy")
        for node in ast.parse(source).body
    )


def test_every_import_of_the_package_goes_downward(project_root: Path) -> None:
    assert violations(project_root / PACKAGE) == []


def test_what_works_on_images_that_the_engine_refuses_does_without_it(project_root: Path) -> None:
    allowed = may_import(project_root / PACKAGE)
    for name in ("dump.py", "forensic", "recovery", "attest"):
        assert not allowed[name] & {"writer", "engine.py", "atomic", "image.py", "disk"}, name


def test_a_package_holds_nothing_but_its_docstring(project_root: Path) -> None:
    for name in [name for name in NAMES if (project_root / PACKAGE / name).is_dir() and name not in ("testing", "cli")]:
        tree = ast.parse((project_root / PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))
        assert len(tree.body) == 1 and ast.get_docstring(tree), name


def test_packages_say_which_of_their_modules_import_numpy(project_root: Path) -> None:
    package = project_root / PACKAGE
    for name in [name for name in NAMES if (package / name).is_dir() and name not in ("testing", "cli")]:
        users = [file.stem for file in sorted((package / name).glob("*.py")) if imports_numpy(file.read_text("utf-8"))]
        assert stated(package, name, "numpy at import") == (users or ["nowhere"]), name
    top = [file.name for file in sorted(package.glob("*.py")) if imports_numpy(file.read_text(encoding="utf-8"))]
    assert top == []


def test_the_name_of_a_type_stands_once(project_root: Path) -> None:
    assert repeated_types(project_root / PACKAGE) == {}


def test_a_type_whose_name_stands_twice_is_named(tmp_path: Path) -> None:
    sources = {
        "format/tables.py": "class Extent: pass\nLIMIT = 1\nPlace = int\nOnce: TypeAlias = int\n",
        "references/walk.py": "class _Extent: pass\nLIMIT = 2\nif TYPE_CHECKING:\n    Place = bytes\n",
    }
    package = write_package(tmp_path, {**NEIGHBOURS, **sources})
    both = ["format/tables.py", "references/walk.py"]
    assert repeated_types(package) == {"Extent": both, "Place": both}


def test_the_walk_sees_the_imports_of_the_package(project_root: Path) -> None:
    package = project_root / PACKAGE
    files = package_files(package)
    seen = {(one.importer, one.imported) for path in files for one in imports_of(package, path, files)}
    assert ("storage/store.py", "errors.py") in seen
    assert ("format/header.py", "format/derived.py") in seen


def test_no_files_import_each_other_in_a_circle(project_root: Path) -> None:
    """Files of one package that import some of their neighbours still have an order."""
    package = project_root / PACKAGE
    files = package_files(package)
    graph = {path: {one.imported for one in imports_of(package, path, files)} - {path, ""} for path in files}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("errors.py") < order.index("storage/sources.py") < order.index("image.py")


def test_the_picture_in_the_readme_and_in_contributing_names_each_room(project_root: Path) -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (project_root / document).read_text(encoding="utf-8")
        for name in NAMES:
            if not name.startswith("__"):
                assert re.search(rf"`{re.escape(name)}/?`", text), f"{document} does not show {name}"


def write_package(root: Path, sources: dict[str, str]) -> Path:
    package = root / PACKAGE
    for path, source in {"__init__.py": "", **sources}.items():
        file = package / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
    return package


NEIGHBOURS = {
    "engine.py": "",
    "image.py": "",
    "format/__init__.py": '"""Structures.\n\nMay import: structs, errors.\n"""\n',
    "format/rules.py": "",
    "references/__init__.py": '"""The walk.\n\nMay import: format.\n"""\n',
    "references/walk.py": "",
    "attest/__init__.py": '"""Witnesses.\n\nMay import: format.\n"""\n',
    "attest/_kaitai/__init__.py": "",
    "attest/_kaitai/qcow2.py": "",
    "ops/__init__.py": '"""Operations.\n\nMay import: references.\n"""\n',
    "ops/check.py": "",
    "ops/info.py": "",
    "cli/__init__.py": '"""Commands.\n\nMay import: __init__, ops.\n"""\n',
    "cli/commands/__init__.py": "",
    "cli/commands/info.py": "",
}

BAD = {
    "relative": ("format/tables.py", "from ..engine import Engine\n", "engine.py (upward)"),
    "a module": ("format/tables.py", "from .. import engine\n", "engine.py (upward)"),
    "absolute": ("format/tables.py", "import qcow2c.engine as e\n", "engine.py (upward)"),
    "in a function": ("format/tables.py", "def late():\n    from qcow2c.image import Image\n", "image.py (upward)"),
    "for types": ("format/tables.py", "if TYPE_CHECKING:\n    from qcow2c.image import Image\n", "image.py (upward)"),
    "by importlib": ("format/tables.py", "import_module('..engine', __package__)\n", "engine.py (upward)"),
    "computed": ("format/tables.py", "import_module('a' + 'b')\n", "a module whose name is computed"),
    "from a directory": ("ops/map.py", "from ..cli import main\n", "cli/__init__.py (upward)"),
    "the public package": ("image.py", "from . import open\n", "__init__.py (upward)"),
    "an operation from another": ("ops/map.py", "from .info import info\n", "ops/info.py (a neighbour)"),
    "dump from the engine": ("dump.py", "from .engine import Engine\n", "engine.py (not among what it may)"),
    "the second witness": (
        "ops/map.py",
        "from ..attest._kaitai.qcow2 import Qcow2\n",
        "attest/_kaitai/qcow2.py (the second witness)",
    ),
}


@pytest.mark.parametrize(("path", "source", "wrong"), BAD.values(), ids=BAD)
def test_a_bad_import_is_named(tmp_path: Path, path: str, source: str, wrong: str) -> None:
    package = write_package(tmp_path, {**NEIGHBOURS, path: source})
    assert violations(package) == [f"{path}:{source.count(chr(10))} imports {wrong}"]


def test_a_file_in_no_room_and_one_that_is_too_long_are_named(tmp_path: Path) -> None:
    package = write_package(tmp_path, {**NEIGHBOURS, "helpers.py": "", "format/tables.py": "\n" * 401})
    assert violations(package) == ["format/tables.py has 401 lines, more than 400", "helpers.py is in no room"]


def test_a_package_that_may_import_what_lies_above_it_is_named(tmp_path: Path) -> None:
    package = write_package(tmp_path, {**NEIGHBOURS, "format/__init__.py": '"""x\n\nMay import: image.\n"""\n'})
    with pytest.raises(AssertionError, match="do not lie below it"):
        violations(package)


def test_allowed_imports_are_not_named(tmp_path: Path) -> None:
    sources = {
        "errors.py": "import os, construct\n",
        "structs.py": "\n" * 900,
        "format/tables.py": "from qcow2c import errors, structs\nfrom .rules import RULES\n",
        "references/sweep.py": "from . import walk\nfrom ..format import tables\nfrom qcow2c.errors import Span\n",
        "attest/verify.py": "from ._kaitai.qcow2 import Qcow2\n",
        "ops/repair.py": "from .check import check\nfrom ..format import rules\n",
        "__init__.py": "from .ops.info import info\nimport_module(name)\n",
        "cli/commands/map.py": "from . import info\nfrom .. import arguments\nfrom qcow2c import Image, ops\n",
        "cli/arguments.py": "",
    }
    assert violations(write_package(tmp_path, {**NEIGHBOURS, **sources})) == []
