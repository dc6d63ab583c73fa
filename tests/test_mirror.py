"""The tests mirror the package: who looks for the test of a module finds it, and each unit test has its module.

`qcow2c/ROOM/MODULE.py` is tested by `tests/unit/ROOM/test_MODULE.py`, an operation by `tests/ops/test_MODULE.py`, a
part of the command line by `tests/cli/test_MODULE.py`, too. What spans several modules lies in other folders of tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ELSEWHERE = {
    "atomic/copied_bits.py": "ops/test_snapshots.py",
    "atomic/in_place.py": "crash/test_full_disk.py",
    "atomic/new_refcounts.py": "unit/atomic/test_refcounts.py",
    "atomic/size.py": "ops/test_resize.py",
    "atomic/snapshots.py": "ops/test_snapshots.py",
    "builder/compaction.py": "ops/test_compact.py",
    "cli/arguments.py": "cli/test_convert.py",
    "cli/commands/check.py": "cli/test_info_map_check.py",
    "cli/commands/export.py": "cli/test_diff.py",
    "cli/commands/info.py": "cli/test_info_map_check.py",
    "cli/commands/map.py": "cli/test_info_map_check.py",
    "cli/commands/patch.py": "cli/test_diff.py",
    "cli/commands/undo.py": "cli/test_repair.py",
    "cli/image_names.py": "cli/test_image_options.py",
    "cli/pipes.py": "cli/test_convert_processes.py",
    "cli/repair_report.py": "cli/test_repair.py",
    "copy/from_backing.py": "ops/test_rebase.py",
    "copy/image_pipe.py": "ops/test_convert_pipes.py",
    "copy/overlay.py": "ops/test_diff.py",
    "copy/send.py": "ops/test_convert.py",
    "disk/size.py": "ops/test_resize.py",
    "disk/map_json.py": "cli/test_info_map_check.py",
    "forensic/compressed_streams.py": "ops/test_inspect.py",
    "forensic/entry_words.py": "unit/test_dump.py",
    "forensic/header_nodes.py": "unit/test_dump.py",
    "forensic/inspection.py": "ops/test_inspect.py",
    "forensic/isolation.py": "ops/test_inspect.py",
    "forensic/report_html.py": "ops/test_report.py",
    "forensic/report_maps.py": "ops/test_report.py",
    "forensic/report_page.py": "ops/test_report.py",
    "forensic/signatures.py": "ops/test_inspect.py",
    "forensic/summary.py": "unit/test_dump.py",
    "forensic/table_load.py": "ops/test_inspect.py",
    "forensic/trace.py": "unit/test_dump.py",
    "forensic/verdicts.py": "ops/test_inspect.py",
    "internal_snapshots.py": "ops/test_snapshots.py",
    "ops/bitmaps.py": "cli/test_bitmap.py",
    "ops/create.py": "cli/test_create.py",
    "ops/dd.py": "cli/test_dd.py",
    "ops/incremental.py": "cli/test_bitmap_backups.py",
    "recovery/changes.py": "ops/test_repair.py",
    "recovery/forsaken.py": "ops/test_broken_bitmaps.py",
    "recovery/found_bitmaps.py": "ops/test_recover.py",
    "recovery/found_header.py": "ops/test_recover.py",
    "recovery/found_image.py": "ops/test_recover.py",
    "recovery/found_ranges.py": "ops/test_recover.py",
    "recovery/found_refcounts.py": "ops/test_recover.py",
    "recovery/found_states.py": "ops/test_recover.py",
    "recovery/found_tables.py": "ops/test_recover.py",
    "recovery/range_data.py": "ops/test_recover.py",
    "recovery/recovered.py": "ops/test_recover.py",
    "recovery/rival_tables.py": "ops/test_recover.py",
    "recovery/shape.py": "ops/test_recover.py",
    "recovery/table_scan.py": "ops/test_recover.py",
    "references/admission_count.py": "unit/references/test_admission.py",
    "references/full_check.py": "ops/test_check.py",
    "references/image_check.py": "ops/test_check.py",
    "storage/descriptors.py": "unit/storage/test_open_file.py",
    "storage/thread_locks.py": "unit/storage/test_processes.py",
    "testing/machine.py": "properties/test_machine.py",
    "writer/session.py": "unit/test_engine.py",
}
"""Modules that are one half of something that is only tested as a whole, and where that is done."""

WITHOUT_LOGIC = {
    "__main__.py": "calls the command line",
    "constants.py": "numbers and names; tests/unit/test_structs.py holds them against the specification",
    "copy/options.py": "a record of choices",
    "format/array_types.py": "names of types",
    "schema.py": "what a field says of itself; tests/unit/test_structs.py reads all that is said",
}
"""Modules without a test file, and why."""

WITHOUT_MODULE = {
    "ops/test_broken_bitmaps.py": "info, check, repair and the removal of a bitmap, of what is broken",
    "ops/test_convert_bitmaps.py": "convert, one part of it",
    "ops/test_convert_failures.py": "convert, one part of it",
    "ops/test_convert_pipes.py": "convert, one part of it",
    "ops/test_encrypted.py": "all operations, on encrypted images",
    "ops/test_measure_promise.py": "measure and convert, held against each other",
    "ops/test_repair_of_one_field.py": "check and repair, where one field is wrong",
    "ops/test_open_images.py": "all operations, given an open image",
    "ops/test_torn_files.py": "all operations, on files that end within a cluster",
    "unit/storage/test_file_likes.py": "objects that are almost files, as sources of all kinds",
    "unit/storage/test_contract.py": "all stores, by one contract",
    "unit/test_image_end.py": "images that are closed, forgotten, flushed after an end, in several threads",
    "unit/test_option_names.py": "options of public functions beside the records that hold them",
    "unit/test_public_names.py": "the package as it is imported",
    "unit/testing/test_init.py": "qcow2c.testing as it is imported",
}
"""Test files that are about no single module, and what they are about."""


def modules(root: Path) -> set[str]:
    """Return the paths of all modules that may have logic: packages are docstrings, the second witness is compiled."""
    package = root / "qcow2c"
    found = {file.relative_to(package).as_posix() for file in package.rglob("*.py")}
    return {path for path in found if not path.endswith("__init__.py") and "_kaitai" not in path}


def files_of_tests(root: Path) -> set[str]:
    tests = root / "tests"
    return {file.relative_to(tests).as_posix() for file in tests.rglob("test_*.py")}


def places_of(module: str) -> list[str]:
    """Return where the tests of a module lie, unless they lie elsewhere: in one of these places."""
    room, _, name = module.rpartition("/")
    folders = {"ops": ["ops"], "cli": ["unit/cli", "cli"], "cli/commands": ["cli"], "": ["unit"]}
    return [f"{folder}/test_{name}" for folder in folders.get(room, [f"unit/{room}"])]


def complaints(known: set[str], files: set[str]) -> list[str]:
    """Return a sentence for each module without tests, each test file without a module, and each needless exception."""
    found = []
    for module in sorted(known):
        excepted = module in ELSEWHERE or module in WITHOUT_LOGIC
        has_tests = not files.isdisjoint(places_of(module))
        if not has_tests and not excepted:
            found.append(f"{module} has no {' or '.join(places_of(module))}")
        if has_tests and excepted:
            found.append(f"{module} has tests of its own, and is an exception")
    for module, place in ELSEWHERE.items():
        if place not in files:
            found.append(f"{module} is tested in {place}, which is not there")
    for module in sorted((ELSEWHERE.keys() | WITHOUT_LOGIC.keys()) - known):
        found.append(f"{module} is an exception, and not there")
    places = {place for module in known for place in places_of(module)} | WITHOUT_MODULE.keys()
    for file in sorted(file for file in files if file.startswith(("unit/", "ops/"))):
        if file not in places:
            found.append(f"{file} has no module")
    return found


def test_each_module_has_its_tests_and_each_unit_test_its_module(project_root: Path) -> None:
    assert complaints(modules(project_root), files_of_tests(project_root)) == []


MISSING = {
    "format/new.py": "format/new.py has no unit/format/test_new.py",
    "ops/new.py": "ops/new.py has no ops/test_new.py",
    "cli/new.py": "cli/new.py has no unit/cli/test_new.py or cli/test_new.py",
    "cli/commands/new.py": "cli/commands/new.py has no cli/test_new.py",
    "top.py": "top.py has no unit/test_top.py",
}
NEEDLESS = {
    "unit/format/test_gone.py": "unit/format/test_gone.py has no module",
    "ops/test_gone.py": "ops/test_gone.py has no module",
    "unit/writer/test_session.py": "writer/session.py has tests of its own, and is an exception",
}


@pytest.mark.parametrize(("module", "complaint"), MISSING.items())
def test_a_module_without_tests_is_named(module: str, complaint: str, project_root: Path) -> None:
    assert complaints(modules(project_root) | {module}, files_of_tests(project_root)) == [complaint]


@pytest.mark.parametrize(("file", "complaint"), NEEDLESS.items())
def test_a_test_file_in_the_wrong_place_is_named(file: str, complaint: str, project_root: Path) -> None:
    assert complaints(modules(project_root), files_of_tests(project_root) | {file}) == [complaint]


def test_an_exception_for_what_is_gone_is_named(project_root: Path) -> None:
    assert complaints(modules(project_root) - {"schema.py"}, files_of_tests(project_root)) == [
        "schema.py is an exception, and not there"
    ]
    assert complaints(modules(project_root), files_of_tests(project_root) - {"properties/test_machine.py"}) == [
        "testing/machine.py is tested in properties/test_machine.py, which is not there"
    ]
