"""The layers of qcow2c/: a file imports only from below. LAYERS is the one place that says who is where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "qcow2c"
LINE_LIMIT = 400
TOP = 9


@dataclass(frozen=True)
class Layer:
    """Where one file (or each file of one directory: a path that ends in `/`) stands.

    It may import what stands on levels below `below` (default: its own level), and the paths in `also`.
    """

    level: int
    path: str
    below: int = -1
    also: tuple[str, ...] = ()

    def holds(self, path: str) -> bool:
        return path.startswith(self.path) if self.path.endswith("/") else path == self.path

    def may_import(self, other: Layer, path: str) -> bool:
        # `_kaitai` is the second witness: only who names it in `also` may ask it.
        limit = self.level if self.below < 0 else self.below
        if any(Layer(0, allowed).holds(path) for allowed in self.also):
            return True
        return other.level < limit and other.path != "_kaitai/"


# The table of the design. A new file gets its row here, and nowhere else.
LAYERS = (
    Layer(0, "errors.py"),
    Layer(0, "structs.py"),
    Layer(0, "locks.py", also=("errors.py",)),
    Layer(0, "store.py", also=("errors.py", "locks.py")),
    Layer(0, "local_file.py", also=("errors.py", "locks.py", "store.py")),
    Layer(0, "storage.py", also=("errors.py", "local_file.py", "store.py")),
    Layer(0, "_kaitai/", also=("_kaitai/",)),
    Layer(1, "layout.py"),
    Layer(1, "geometry.py"),
    Layer(1, "codecs.py"),
    Layer(1, "processors.py"),
    Layer(1, "findings.py"),
    Layer(1, "gate.py"),
    Layer(1, "probing.py"),
    Layer(1, "replacing.py"),
    Layer(1, "positioned.py"),
    Layer(1, "diff_stream.py"),
    Layer(2, "header.py"),
    Layer(2, "header_writer.py", also=("header.py",)),
    Layer(2, "tables.py"),
    Layer(2, "refcounts.py"),
    Layer(2, "records.py", also=("header.py",)),
    Layer(2, "crypto.py", also=("header.py",)),
    Layer(2, "table_rules.py", also=("tables.py", "refcounts.py")),
    Layer(2, "rules.py", below=3),
    Layer(2, "references.py", also=("header.py", "tables.py", "records.py", "refcounts.py")),
    Layer(2, "sweep.py", also=("references.py", "tables.py", "table_rules.py")),
    Layer(2, "accounting.py", also=("references.py", "refcounts.py", "sweep.py", "tables.py", "table_rules.py")),
    Layer(2, "overlaps.py", also=("references.py", "sweep.py")),
    Layer(2, "ownership.py", also=("references.py", "refcounts.py")),
    Layer(3, "layer.py"),
    Layer(3, "salvage.py"),
    Layer(3, "reader.py", also=("layer.py",)),
    Layer(3, "compressed.py", also=("reader.py",)),
    Layer(3, "cache.py"),
    Layer(3, "header_edit.py", also=("cache.py",)),
    Layer(3, "header_growth.py", also=("cache.py", "header_edit.py")),
    Layer(3, "allocation.py", also=("cache.py",)),
    Layer(3, "bitmap_store.py"),
    Layer(3, "bitmap_edit.py", also=("bitmap_store.py", "header_edit.py")),
    Layer(3, "tracking.py", also=("allocation.py", "bitmap_store.py", "cache.py")),
    Layer(3, "cow.py", also=("layer.py", "reader.py")),
    Layer(3, "small_check.py"),
    Layer(3, "admission_count.py"),
    Layer(3, "admission.py", also=("admission_count.py", "small_check.py")),
    Layer(3, "image_layout.py"),
    Layer(3, "create_options.py"),
    Layer(3, "bitmap_copy.py", also=("bitmap_store.py",)),
    Layer(3, "census.py"),
    Layer(3, "reference_delta.py"),
    Layer(3, "refcount_change.py", also=("reference_delta.py",)),
    Layer(3, "undo.py"),
    Layer(4, "repair_survey.py"),
    Layer(4, "repair_doubt.py", also=("repair_survey.py",)),
    Layer(4, "repair_plan.py", also=("repair_doubt.py", "repair_survey.py")),
    Layer(4, "repair_changes.py", also=("repair_plan.py", "repair_survey.py")),
    Layer(4, "successor.py"),
    Layer(4, "snapshot_change.py", also=("successor.py",)),
    Layer(4, "vm_state.py"),
    Layer(4, "image_builder.py"),
    Layer(4, "cluster_file.py", also=("image_builder.py",)),
    Layer(5, "compaction.py"),
    Layer(4, "written.py"),
    Layer(4, "engine.py", also=("written.py",)),
    Layer(5, "version_change.py"),
    Layer(5, "image.py"),
    Layer(5, "opening.py", also=("image.py",)),
    Layer(5, "new_image.py"),
    Layer(5, "slabs.py", also=("disk.py", "disk_map.py")),
    Layer(5, "targets.py", also=("image.py", "slabs.py")),
    Layer(5, "image_pipe.py", also=("slabs.py", "targets.py")),
    Layer(5, "copying.py", also=("disk.py", "slabs.py", "targets.py")),
    Layer(
        5,
        "copy_targets.py",
        also=("copying.py", "image_pipe.py", "new_image.py", "opening.py", "slabs.py", "targets.py"),
    ),
    Layer(5, "commit_targets.py", also=("image.py", "opening.py", "resizing.py", "slabs.py", "targets.py")),
    Layer(5, "emptying.py"),
    Layer(5, "resizing.py", also=("image.py", "new_image.py")),
    Layer(5, "layer_map.py"),
    Layer(5, "map_arrays.py", also=("layer_map.py",)),
    Layer(5, "segments.py", also=("layer_map.py",)),
    Layer(5, "chain_copy.py", also=("disk.py", "layer_map.py", "places.py", "segments.py")),
    Layer(5, "places.py", also=("disk.py", "layer_map.py", "segments.py")),
    Layer(5, "differing.py", also=("disk.py", "layer_map.py", "places.py", "segments.py")),
    Layer(5, "overlaying.py", also=("differing.py", "disk.py", "new_image.py", "slabs.py")),
    Layer(5, "disk_map.py", also=("layer_map.py", "map_arrays.py")),
    Layer(5, "disk.py", also=("image.py", "opening.py", "disk_map.py")),
    Layer(6, "ops/__init__.py"),
    Layer(6, "ops/bitmaps.py"),
    Layer(6, "ops/incremental.py"),
    Layer(6, "ops/info.py"),
    Layer(6, "ops/map.py"),
    Layer(6, "ops/check_result.py"),
    Layer(6, "ops/full_check.py", also=("ops/check_result.py",)),
    Layer(6, "ops/amend.py"),
    Layer(6, "ops/check.py", also=("ops/check_result.py", "ops/full_check.py")),
    Layer(6, "ops/create.py"),
    Layer(6, "ops/compact.py"),
    Layer(6, "ops/compare.py"),
    Layer(6, "ops/convert.py"),
    Layer(6, "ops/commit.py"),
    Layer(6, "ops/dd.py"),
    Layer(6, "ops/diff.py"),
    Layer(6, "ops/patch.py"),
    Layer(6, "ops/export.py"),
    Layer(6, "ops/measure.py"),
    Layer(6, "ops/rebase.py"),
    Layer(6, "ops/resize.py"),
    Layer(6, "ops/repair.py", also=("ops/check.py", "ops/check_result.py")),
    Layer(6, "ops/snapshots.py"),
    Layer(6, "dump.py", below=3, also=("nodes.py", "dump_header.py", "dump_tables.py", "dump_trace.py", "verify.py")),
    Layer(6, "dump_header.py", below=3, also=("nodes.py",)),
    Layer(6, "dump_tables.py", below=3, also=("nodes.py",)),
    Layer(6, "dump_trace.py", below=3, also=("nodes.py", "dump_tables.py")),
    Layer(6, "nodes.py", below=3),
    Layer(6, "verify.py", below=3, also=("agreement.py", "witnesses.py", "_kaitai/")),
    Layer(6, "agreement.py", below=3, also=("witnesses.py",)),
    Layer(6, "witnesses.py", below=3, also=("_kaitai/",)),
    Layer(6, "render/", below=3, also=("render/", "nodes.py")),
    Layer(7, "__init__.py"),
    Layer(7, "testing/", also=("testing/",)),
    Layer(8, "cli/", also=("cli/",)),
    Layer(TOP, "__main__.py"),
)

# Files that may be longer than LINE_LIMIT, each with the reason.
LONG_FILES = {
    "structs.py": "every on-disk structure of the format, declared in one place and read from top to bottom",
}


@dataclass(frozen=True)
class Import:
    """One import of a package file: who, in which line, what (a path inside the package; "" if unknown)."""

    importer: str
    line: int
    imported: str


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
    function = ast.unparse(node.func).split(".")[-1]
    if function not in {"import_module", "__import__"}:
        return None
    first = node.args[0] if node.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else "?"


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
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node.module or "", node.level, path, files[path])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif (called := named_by_call(node)) is not None:
            if called == "?":
                yield Import(path, node.lineno, "")
                continue
            dots = len(called) - len(called.lstrip("."))
            names = [absolute(called[dots:], dots, path, files[path])]
        for name in names:
            if (found := target(name)) is not None:
                yield Import(path, node.lineno, found)


def layer_of(path: str) -> Layer | None:
    return next((layer for layer in LAYERS if layer.holds(path)), None)


def violations(package: Path) -> list[str]:
    """One sentence for each thing in `package` that breaks the layers; none if all is well."""
    files = package_files(package)
    found = []
    for path in files:
        mine = layer_of(path)
        if mine is None:
            found.append(f"{path} is in no layer")
            continue
        for one in imports_of(package, path, files):
            if not one.imported:
                if mine.level < 7:
                    found.append(f"{path}:{one.line} imports a module whose name is computed")
                continue
            other = layer_of(one.imported)
            if other is not None and one.imported != path and not mine.may_import(other, one.imported):
                direction = "upward" if other.level > mine.level else "sideways or past its limit"
                found.append(f"{path}:{one.line} imports {one.imported} ({direction})")
        lines = len((package / path).read_text(encoding="utf-8").splitlines())
        if lines > LINE_LIMIT and path not in LONG_FILES and mine.path != "_kaitai/":
            found.append(f"{path} has {lines} lines, more than {LINE_LIMIT}")
    return found


def test_every_import_of_the_package_goes_downward(project_root: Path) -> None:
    assert violations(project_root / PACKAGE) == []


def test_the_walk_sees_the_imports_of_the_package(project_root: Path) -> None:
    package = project_root / PACKAGE
    files = package_files(package)
    seen = {(one.importer, one.imported) for path in files for one in imports_of(package, path, files)}
    assert ("storage.py", "errors.py") in seen
    assert ("layout.py", "structs.py") in seen or ("geometry.py", "structs.py") in seen


def test_no_files_import_each_other_in_a_circle(project_root: Path) -> None:
    """Files of one layer that may import some of their neighbours still have an order."""
    package = project_root / PACKAGE
    files = package_files(package)
    graph = {path: {one.imported for one in imports_of(package, path, files)} - {path, ""} for path in files}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("errors.py") < order.index("storage.py") < order.index("image.py")


def test_no_path_stands_in_two_layers() -> None:
    paths = [layer.path for layer in LAYERS]
    assert len(paths) == len(set(paths))
    assert all(layer_of(layer.path) == layer for layer in LAYERS)


def write_package(root: Path, sources: dict[str, str]) -> Path:
    package = root / PACKAGE
    for path, source in {"__init__.py": "", **sources}.items():
        file = package / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
    return package


BAD = {
    "relative": ("header.py", "from .engine import Engine\n", "header.py:1 imports engine.py (upward)"),
    "a module": ("header.py", "from . import engine\n", "header.py:1 imports engine.py (upward)"),
    "absolute": ("header.py", "import qcow2c.engine as e\n", "header.py:1 imports engine.py (upward)"),
    "in a function": (
        "tables.py",
        "def late():\n    from qcow2c.image import Image\n    return Image\n",
        "tables.py:2 imports image.py (upward)",
    ),
    "for types only": (
        "tables.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .image import Image\n",
        "tables.py:3 imports image.py (upward)",
    ),
    "by importlib": (
        "tables.py",
        "import importlib\nengine = importlib.import_module('.engine', __package__)\n",
        "tables.py:2 imports engine.py (upward)",
    ),
    "computed": (
        "tables.py",
        "import_module('a' + 'b')\n",
        "tables.py:1 imports a module whose name is computed",
    ),
    "from a directory": (
        "ops/info.py",
        "from ..cli import main\n",
        "ops/info.py:1 imports cli/__init__.py (upward)",
    ),
    "the public package": ("image.py", "from . import open\n", "image.py:1 imports __init__.py (upward)"),
    "sideways": (
        "tables.py",
        "from .records import read\n",
        "tables.py:1 imports records.py (sideways or past its limit)",
    ),
    "one operation from another": (
        "ops/info.py",
        "from .map import extents\n",
        "ops/info.py:1 imports ops/map.py (sideways or past its limit)",
    ),
    "dump from the engine": (
        "dump.py",
        "from .engine import Engine\n",
        "dump.py:1 imports engine.py (sideways or past its limit)",
    ),
    "references from rules": (
        "references.py",
        "from .rules import RULES\n",
        "references.py:1 imports rules.py (sideways or past its limit)",
    ),
    "the second witness": (
        "header.py",
        "from ._kaitai.qcow2 import Qcow2\n",
        "header.py:1 imports _kaitai/qcow2.py (sideways or past its limit)",
    ),
    "no layer": ("helpers.py", "", "helpers.py is in no layer"),
    "too long": ("tables.py", "\n" * 401, "tables.py has 401 lines, more than 400"),
}

NEIGHBOURS = {
    "engine.py": "",
    "image.py": "",
    "records.py": "",
    "rules.py": "",
    "ops/__init__.py": "",
    "ops/map.py": "",
    "cli/__init__.py": "",
    "_kaitai/__init__.py": "",
    "_kaitai/qcow2.py": "",
}


@pytest.mark.parametrize(("path", "source", "complaint"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    package = write_package(tmp_path, {**NEIGHBOURS, path: source})
    assert violations(package) == [complaint]


def test_allowed_imports_are_not_named(tmp_path: Path) -> None:
    package = write_package(
        tmp_path,
        {
            **NEIGHBOURS,
            "errors.py": "import os, construct\n",
            "storage.py": "from .errors import StoreError\n",
            "tables.py": "from qcow2c import errors, structs\nfrom .errors import Span\n",
            "structs.py": "\n" * 900,
            "references.py": "from . import records, tables\n",
            "rules.py": "from .references import walk\nfrom . import tables\n",
            "dump.py": "def late():\n    from . import rules\n    return rules\n",
            "verify.py": "from ._kaitai.qcow2 import Qcow2\n",
            "__init__.py": "from .image import Image\nimport_module(name)\n",
            "cli/info.py": "from ..ops import map\nfrom . import arguments\nfrom qcow2c import Image\n",
            "cli/arguments.py": "",
        },
    )
    assert violations(package) == []
