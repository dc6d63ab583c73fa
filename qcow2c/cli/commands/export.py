"""Write an internal snapshot as a file of its own: an image that stands alone, or an overlay over another image.

The snapshot, named by ID, name, or snapshot.id=ID,..., is read as convert -l reads it; its VM state stays behind. With
-B the result holds only what differs from that backing file, all of which is compared. With --relative-to, too, it
holds what differs from another snapshot of the image, found from tables and without reading what both share: the
backing file must then show just that snapshot, as an earlier export of it does.

examples:
  qcow2c export disk.qcow2 monday monday.qcow2
  qcow2c export -c -o compression_type=zstd disk.qcow2 monday monday.qcow2
  qcow2c export -B monday.qcow2 -F qcow2 --relative-to monday disk.qcow2 tuesday tuesday.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from typing import Any

from qcow2c.cli import arguments, image_names, interrupts, option_list, pipes, progress, secrets, text
from qcow2c.cli.commands.create import OPTIONS
from qcow2c.cli.image_names import chosen_image, open_named, snapshot_key
from qcow2c.errors import UsageError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image (default: detected)")
    parser.add_argument("-O", "--output-format", metavar="FMT", default="qcow2", help="qcow2 (default), or raw")
    parser.add_argument("-B", "--backing", metavar="FILE", help="backing file of the result, which holds the rest")
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="format of that backing file")
    parser.add_argument("--relative-to", metavar="SNAPSHOT", help="the snapshot that the backing file shows (with -B)")
    parser.add_argument("-c", "--compress", action="store_true", help="compress the result's clusters")
    arguments.add_creation_options(parser, "the result")
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    arguments.add_share(parser)
    arguments.add_gate(parser)
    parser.add_argument("image", metavar="IMAGE", help="the image file")
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="the snapshot")
    parser.add_argument("target", metavar="OUTPUT", help="the new file")
    image_names.add_arguments(parser)


def run(chosen: Namespace) -> int:
    known = OPTIONS.get(chosen.output_format, OPTIONS["qcow2"])
    if option_list.asks_for_help(chosen.options):
        text.write(option_list.listing(chosen.output_format, known))
        return 0
    create: dict[str, Any] = option_list.parse(chosen.options, known)
    secrets.settle(create, chosen.secrets)
    if create.pop("size", None) is not None:
        raise UsageError("the result has the size of the image")
    for name, given in (("backing_file", chosen.backing), ("backing_fmt", chosen.backing_format)):
        if given is not None:
            create[name] = given
    from qcow2c.copy.targets import Pipe
    from qcow2c.ops.export import export_disk

    keys = [snapshot_key(chosen.snapshot)]
    if chosen.relative_to is not None:
        keys.append(snapshot_key(chosen.relative_to))
    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        report = stack.enter_context(progress.shown(wanted=chosen.progress))
        named = chosen_image(chosen, chosen.image, chosen.format)
        disks = [stack.enter_context(open_named(named, gate=chosen.gate, snapshot=key)) for key in keys]
        create |= {"gate": chosen.gate, "progress": report, "compressed": chosen.compress}
        relative = disks[1] if len(disks) > 1 else None
        target = chosen.target
        place = Pipe(pipes.opened(target, "wb"), target) if pipes.is_pipe(target) else target
        export_disk(disks[0], place, chosen.output_format, relative, **create)
    return 0
