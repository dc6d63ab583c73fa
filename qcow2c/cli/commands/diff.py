"""Show what differs between two states: images, layers of a chain, or internal snapshots of them.

FROM is the earlier state, TO the later one; with --from-snapshot or --to-snapshot the state is an internal snapshot of
the image, as convert -l reads it. Without TO both are states of one image. What is shown is where, and with what kind
of contents, the later disk differs: written over a copy of the earlier disk, brought to the size of the later one, it
makes the later one. Beyond its end the earlier disk reads as zeros.

What both states take from one place of one file is known to be the same, and never read; the rest is compared sector
by sector. With --fast nothing is read but tables: then ranges can be the same after all.

--stream writes ranges and contents to standard output, for `qcow2c patch`: the line "qcow2c-diff 1 from SIZE to SIZE",
for each range "data OFFSET LENGTH" and the bytes, or "zero OFFSET LENGTH", and finally "end COUNT SHA256".
--overlay writes a qcow2 image whose backing file is FROM, which then must not be a snapshot.

examples:
  qcow2c diff --from-snapshot monday disk.qcow2
  qcow2c diff --output=json --from-snapshot monday --to-snapshot tuesday disk.qcow2
  qcow2c diff --stream base.qcow2 disk.qcow2 | ssh backup qcow2c patch copy.raw
  qcow2c diff --overlay changes.qcow2 -o compression_type=zstd -c before.raw after.raw
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from qcow2c.cli import arguments, image_names, interrupts, option_list, output, progress, secrets, text
from qcow2c.cli.commands.create import OPTIONS
from qcow2c.cli.image_names import NamedImage, chosen_image, open_named, snapshot_key
from qcow2c.errors import UsageError
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from qcow2c.disk.disk import Disk
    from qcow2c.ops.diff import Difference


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", dest="from_format", metavar="FMT", help="format of FROM (default: detected)")
    parser.add_argument("-F", dest="to_format", metavar="FMT", help="format of TO (default: detected)")
    parser.add_argument("--from-snapshot", metavar="SNAPSHOT", help="snapshot of FROM: name, ID, or snapshot.id=ID,...")
    parser.add_argument("--to-snapshot", metavar="SNAPSHOT", help="snapshot of TO")
    parser.add_argument("--fast", action="store_true", help="compare tables only, and read no data")
    arguments.add_output(parser)
    parser.add_argument("--stream", action="store_true", help="write ranges and contents to standard output")
    parser.add_argument("--overlay", metavar="FILE", help="write a new qcow2 image over FROM")
    arguments.add_creation_options(parser, "the overlay")
    parser.add_argument("-c", "--compress", action="store_true", help="compress the overlay's clusters")
    parser.add_argument("-p", "--progress", action="store_true", help="show progress (with --overlay)")
    arguments.add_share(parser)
    arguments.add_gate(parser)
    parser.add_argument("image", metavar="FROM", help="the image of the earlier state")
    parser.add_argument("second", metavar="TO", nargs="?", help="the image of the later state")
    image_names.add_arguments(parser, "each image")


def run(chosen: Namespace) -> int:
    from qcow2c.ops.diff import differences, require_two, write_stream

    _judge(chosen)
    snapshots = snapshot_key(chosen.from_snapshot), snapshot_key(chosen.to_snapshot)
    require_two(*snapshots, has_second=chosen.second is not None)
    formats = chosen.from_format, chosen.to_format if chosen.second is not None else chosen.from_format
    images = chosen.image, chosen.image if chosen.second is None else chosen.second
    disks: list[Disk] = []
    names = []
    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        for word, image_format, snapshot in zip(images, formats, snapshots, strict=True):
            named = chosen_image(chosen, word, image_format)
            names.append(named)
            disks.append(stack.enter_context(open_named(named, gate=chosen.gate, snapshot=snapshot)))
        chosen.image = images[0]
        before, after = disks
        if chosen.overlay is not None:
            report = stack.enter_context(progress.shown(wanted=chosen.progress))
            _write_overlay(chosen, names[0], before, after, report)
        elif chosen.stream:
            from qcow2c.copy.targets import Pipe

            # Without any buffer.
            taken = stack.enter_context(output.unbuffered(sys.stdout, "output"))
            write_stream(before, after, Pipe(taken, "standard output").write, exact=not chosen.fast)
        else:
            found = differences(before, after, exact=not chosen.fast)
            (_write_json if chosen.output == "json" else _write_human)(found)
    return 0


def _judge(chosen: Namespace) -> None:
    if chosen.stream and (chosen.overlay is not None or chosen.output == "json"):
        raise UsageError("--stream goes with neither --overlay nor --output=json")
    if chosen.overlay is not None and chosen.from_snapshot is not None:
        raise UsageError("an overlay lies on an image: export the snapshot first, and give it as FROM")
    if chosen.overlay is None and (chosen.options or chosen.compress):
        raise UsageError("-o and -c go with --overlay")


def _write_overlay(chosen: Namespace, named: NamedImage, before: Disk, after: Disk, report: Progress | None) -> None:
    from qcow2c.ops.diff import write_overlay

    create: dict[str, Any] = option_list.parse(chosen.options, sorted(OPTIONS["qcow2"]))
    secrets.settle(create, chosen.secrets)
    if named.options.keys() - {"key"}:
        raise UsageError("only the image itself and its driver can be given as FROM of an overlay")
    base = named.filename
    if not os.path.isabs(base):  # As seen from the overlay.
        base = os.path.relpath(base, os.path.dirname(plain_path(chosen.overlay)) or os.curdir)
    create = {"backing_file": base, "backing_fmt": before.image_format} | create
    chosen.image = chosen.overlay
    write_overlay(
        before, after, chosen.overlay, exact=not chosen.fast, compress=chosen.compress, progress=report, **create
    )


def _write_human(found: Iterator[Difference]) -> None:
    text.write(f"{'Offset':<16}{'Length':<16}Kind\n")
    for one in found:
        text.write(f"{_hex(one.start):<16}{_hex(one.length):<16}{'zero' if one.zero else 'data'}\n")


def _write_json(found: Iterator[Difference]) -> None:
    before = "["
    for one in found:
        zero = "true" if one.zero else "false"
        text.write(f'{before}{{ "start": {one.start}, "length": {one.length}, "zero": {zero}}}')
        before = ",\n"
    text.write("[]\n" if before == "[" else "]\n")


def _hex(number: int) -> str:
    return f"{number:#x}" if number else "0"
