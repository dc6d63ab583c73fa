"""Check an image: compare references with refcounts, and judge every table entry. With -r, repair what is wrong.

The output and the exit status are those of qemu-img check: 0 clean, 1 could not be checked, 2 corrupt, 3 leaked
clusters only, 63 a format that has nothing to check; with -r it is the state afterwards, with --dry-run as it would be.
No other file is opened.

Each fault is a line on standard error with its cluster or entry; with --output=json a list, "findings", has them too.

A repair frees nothing that may be data: where tables look lost or damaged, clusters that nothing refers to stay as they
are, leaked, unless --allow-data-loss is given. No data is made to read as zeros. --undo FILE writes a file, before
anything is changed, from which qcow2c undo brings back the image as it was.

Where bitmaps are broken, an image is not opened by QEMU at all: -r all lets the header say that all of them are out of
date, as after a program that knows none; bitmap --remove removes a broken one and keeps the others.

examples:
  qcow2c check disk.qcow2
  qcow2c check --output=json disk.qcow2
  qcow2c check -r all --dry-run disk.qcow2
  qcow2c check -r all --undo disk.undo disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import islice

from qcow2c.cli import arguments, image_names, progress, repair_report, text
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.references.check_result import CheckResult

MESSAGES = 20
"""How many places are named on standard error."""

NOT_SUPPORTED = 63

# In the order of QEMU's hash table. The ones that are printed even when they are 0 come in the second tuple.
_KEYS = (
    "image-end-offset",
    "compressed-clusters",
    "total-clusters",
    "corruptions",
    "corruptions-fixed",
    "check-errors",
    "leaks",
    "leaks-fixed",
    "allocated-clusters",
    "filename",
    "format",
    "fragmented-clusters",
)
_ALWAYS = ("check-errors", "filename", "format")


def add_arguments(parser: ArgumentParser) -> None:
    arguments.add_image(parser)
    image_names.add_arguments(parser)
    arguments.add_output(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    repair_report.add_arguments(parser)
    parser.add_argument("-T", "--cache", metavar="CACHE", help="accepted for qemu-img's sake; does nothing")


def run(chosen: Namespace) -> int:
    from qcow2c.format.detection import detect_format, known_format
    from qcow2c.storage.sources import opened

    is_repair = repair_report.is_wanted(chosen)
    wanted = chosen.progress and not chosen.quiet and chosen.output == "human"
    named = image_names.chosen_image(chosen, chosen.image, chosen.format)
    with image_names.source_of(named) as source, opened(source) as store:
        image_format = detect_format(store) if named.format is None else known_format(store, named.format)
        if image_format != "qcow2":
            text.complain(f"{chosen.image}: This image format does not support checks ({image_format})")
            return NOT_SUPPORTED
        if not is_repair:
            from qcow2c.ops.check import check

            with progress.shown(wanted=wanted) as report:
                found = check(store, share=named.share, progress=report)
            return _report(found, chosen)
    result = repair_report.repaired(named, chosen, shows_progress=wanted)
    return _report(result.after, chosen, **repair_report.facts(result))


def _report(result: CheckResult, chosen: Namespace, **more: Any) -> int:
    """Say what a check has found, in JSON with `more` facts."""
    if result.failed is not None:
        text.complain(f"{chosen.image}: Check failed: {result.failed}{_way_out(result)}")
        return result.exit_code
    if not result.check_errors:
        _tell(result)
    if not chosen.quiet:
        is_json = chosen.output == "json"
        text.report(_json(result, chosen.image, more) if is_json else "".join(f"{line}\n" for line in _human(result)))
    if result.check_errors:
        text.complain(f"{chosen.image}: Check failed")
    return result.exit_code


def _way_out(result: CheckResult) -> str:
    """Return what can be done where it is the bitmaps that cannot be checked."""
    from qcow2c.recovery.forsaken import broken_bitmaps

    way_out = "; bitmap --remove removes one that is broken, check -r all gives up all bitmaps"
    return way_out if broken_bitmaps(result) is not None else ""


def _tell(result: CheckResult) -> None:
    """Name the first of what was found on standard error, and say how many more there are."""
    for message in islice(result.messages, MESSAGES):
        text.note(message)
    if result.message_count > MESSAGES:
        text.note(f"... and {result.message_count - MESSAGES} more")


def _json(result: CheckResult, name: str, more: dict[str, Any]) -> str:
    facts = {key: getattr(result, key.replace("-", "_"), 0) for key in _KEYS} | {"filename": name} | more
    facts |= {"findings": result.facts()}
    return text.pretty_json({key: value for key, value in facts.items() if value or key in _ALWAYS}) + "\n"


def _leaks(result: CheckResult) -> Iterator[str]:
    """Say that clusters are leaked; where tables may be lost, that they may be data."""
    if result.has_lost_owners:
        yield f"\n{result.leaks} clusters are in use, and nothing that can be read accounts for that."
        yield "They may be what the errors say is lost: a repair leaves them as they are."
        return
    yield f"\n{result.leaks} leaked clusters were found on the image."
    if not result.doubts:
        yield "This means waste of disk space, but no harm to data."
        return
    yield "They may be data of tables that are lost:"
    yield from (f"  {doubt}" for doubt in result.doubts)


def _human(result: CheckResult) -> Iterator[str]:
    if not (result.corruptions or result.leaks or result.check_errors):
        yield "No errors were found on the image."
    if result.corruptions:
        yield f"\n{result.corruptions} errors were found on the image."
        yield "Data may be corrupted, or further writes to the image may corrupt it."
    if result.leaks:
        yield from _leaks(result)
    if result.check_errors:
        yield f"\n{result.check_errors} internal errors have occurred during the check."
    allocated = result.allocated_clusters
    if result.total_clusters and allocated:
        shares = (
            f"{allocated * 100 / result.total_clusters:.2f}% allocated, "
            f"{result.fragmented_clusters * 100 / allocated:.2f}% fragmented, "
            f"{result.compressed_clusters * 100 / allocated:.2f}% compressed clusters"
        )
        yield f"{allocated}/{result.total_clusters} = {shares}"
    if result.image_end_offset:
        yield f"Image end offset: {result.image_end_offset}"
