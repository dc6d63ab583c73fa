"""Recover the disks of a damaged image: write each as a new, sound image, and tell what each range stands on.

The active disk goes to OUTPUT, snapshots and the disks of other images in the file beside it. What an intact table
names is written, or a copy of it; what is only inferred is left out unless --accept inferred; what is lost is zeros,
and listed. The image itself is never written. Exit status: 0 all is there and named, 1 failed, 2 something is lost, 3
nothing is lost but something is only inferred.

examples:
  qcow2c recover broken.qcow2 new.qcow2
  qcow2c recover --dry-run --report - broken.qcow2
  qcow2c recover --accept inferred --fragments pieces broken.qcow2 new.qcow2
"""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import qcow2c
from qcow2c.cli import arguments, interrupts, progress, sizes, text
from qcow2c.errors import UsageError

if TYPE_CHECKING:
    from qcow2c.recovery.recovered import RecoveredDisk, Recovery

_MOST_LINES = 20
"""Ranges that are listed for people; the report has all of them."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-O", "--output-format", metavar="FMT", default="qcow2", help="qcow2 (default), or raw")
    parser.add_argument("-n", "--dry-run", action="store_true", help="write nothing: only tell what is found")
    parser.add_argument("--accept", metavar="LEVEL", action="append", default=[], help="write what is `inferred`, too")
    parser.add_argument("--offset", metavar="BYTES", help="where in the file the image begins (default: searched for)")
    parser.add_argument("--data-file", metavar="FILE", help="the external data file")
    parser.add_argument("-b", "--backing", metavar="FILE", help="the backing file")
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="format of the backing file")
    parser.add_argument("--fragments", metavar="DIR", help="a new directory for what has no place, with an index")
    parser.add_argument("--report", metavar="FILE", help='write the report as JSON ("-": to standard output)')
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    arguments.add_share(parser)
    arguments.add_gate(parser)
    parser.add_argument("image", metavar="IMAGE", help="the damaged image file")
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help="the new file, not with --dry-run")


def run(chosen: Namespace) -> int:
    if chosen.dry_run != (chosen.output is None):
        raise UsageError("give OUTPUT, or --dry-run, and not both")
    if chosen.dry_run and chosen.fragments:
        raise UsageError("--dry-run writes no fragments")
    from qcow2c.ops.recover import recover

    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        report = stack.enter_context(progress.shown(wanted=chosen.progress and not chosen.quiet))
        found = recover(
            chosen.image,
            chosen.output,
            output_format=chosen.output_format,
            accept=chosen.accept,
            offset=_offset(chosen.offset),
            data_file=chosen.data_file,
            backing=chosen.backing,
            backing_format=chosen.backing_format,
            fragments=chosen.fragments,
            gate=chosen.gate,
            share=chosen.force_share,
            progress=report,
        )
    found.tool = f"qcow2c {qcow2c.__version__}"
    found.command = shlex.join(["qcow2c", *sys.argv[1:]])
    if chosen.report is not None:
        _write_report(found, chosen.report)
    if not chosen.quiet and chosen.report != "-":
        _tell(found)
    return found.exit_status


def _offset(words: str | None) -> int | None:
    if words is None:
        return None
    try:
        return sizes.parse_size(words)
    except ArgumentTypeError:
        raise UsageError(f"Invalid offset specified. {sizes.SUFFIXES_HELP}") from None


def _write_report(found: Recovery, place: str) -> None:
    import json

    words = json.dumps(found.as_dict(), indent=2) + "\n"
    if place == "-":
        text.write(words)
        return
    try:
        with open(place, "w", encoding="utf-8") as file:
            file.write(words)
    except OSError as exc:
        raise UsageError(f"cannot write the report to {place!r}: {exc.strerror}") from exc


def _tell(found: Recovery) -> None:
    for image in found.images:
        kind = "header found" if image.has_header else "no header"
        votes = ", ".join(f"{count} for {1 << bits}" for bits, count in sorted(image.score.items())[:3])
        text.write(f"image at {image.offset:#x}: {kind}, version {image.version}, cluster size {image.cluster_size}\n")
        text.write(f"  entries that speak for a cluster size: {votes or 'none'}\n")
        for doubt in image.doubts:
            text.write(f"  not believed: {doubt}\n")
        if image.unplaced:
            text.write(f"  {image.unplaced} bytes in {len(image.fragments)} pieces belong to no disk\n")
    for disk in found.disks:
        _tell_of(disk)
    same = "unchanged" if found.hash_before == found.hash_after else "CHANGED while it was read"
    text.write(f"source {found.hash_method} {found.hash_before}, {same}\n")


def _tell_of(disk: RecoveredDisk) -> None:
    from qcow2c.recovery.recovered import LEVEL_NAMES

    label = f"{disk.kind} {disk.snapshot_id} {disk.name}".replace("  ", " ").strip()
    totals: dict[Any, int] = dict(disk.totals)
    counts = ", ".join(f"{totals.get(level, 0)} {name}" for level, name in LEVEL_NAMES.items() if totals.get(level, 0))
    text.write(f"{label}: {disk.size} bytes ({disk.size_evidence}): {counts or 'nothing'}\n")
    if disk.output is not None:
        text.write(f"  written to {disk.output}\n")
    lost = disk.lost
    for found in lost[:_MOST_LINES]:
        text.write(f"  lost: {found.length} bytes at {found.guest:#x}: {found.reason}\n")
    if len(lost) > _MOST_LINES:
        text.write(f"  and {len(lost) - _MOST_LINES} more ranges, which the report lists (--report)\n")
