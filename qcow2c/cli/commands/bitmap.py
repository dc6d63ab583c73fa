"""Change the bitmaps of an image, which record what the guest writes, or read what one of them has recorded.

Options and messages are those of qemu-img bitmap: everything is done to the bitmap NAME, in the order given, and all of
it by one change of the image.

What is dirty is listed by --show. --overlay writes it as a qcow2 image, an incremental backup over the last one, and
--stream writes it to standard output, for `qcow2c patch`. The bitmap stays as it is: clear it when the backup is safe.

examples:
  qcow2c bitmap --add -g 64k disk.qcow2 since-monday
  qcow2c bitmap --add --disable --merge monday --merge tuesday disk.qcow2 both
  qcow2c bitmap --merge since-monday -b old.qcow2 -F qcow2 disk.qcow2 since-monday
  qcow2c bitmap --show --output=json disk.qcow2 since-monday
  qcow2c bitmap --overlay tuesday.qcow2 -o backing_file=monday.qcow2,backing_fmt=qcow2 disk.qcow2 since-monday
  qcow2c bitmap --stream disk.qcow2 since-monday | ssh backup qcow2c patch copy.raw
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING

from qcow2c.cli import arguments, interrupts, option_list, output, progress, secrets, sizes, text
from qcow2c.cli.commands.create import OPTIONS
from qcow2c.cli.image_names import NamedImage, chosen_image, open_named
from qcow2c.errors import Span, UsageError

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.disk.disk import Disk

_PURPOSES = {
    "add": "add the bitmap",
    "remove": "remove it",
    "clear": "clear all its bits",
    "enable": "let it record every write",
    "disable": "let it record none",
}
_LINES = 4096
"""Ranges that are written at a time."""


def add_arguments(parser: ArgumentParser) -> None:
    for verb, purpose in _PURPOSES.items():
        parser.add_argument(f"--{verb}", dest="actions", action="append_const", const=verb, default=[], help=purpose)
    parser.add_argument(
        "--merge", dest="actions", action="append", type=_merge, metavar="NAME2", help="set the bits of another one"
    )
    parser.add_argument("--show", action="store_true", help="list its dirty ranges")
    arguments.add_output(parser)
    parser.add_argument("--overlay", metavar="TARGET", help="write what is dirty as an image over a backing file")
    arguments.add_creation_options(parser, "the overlay")
    parser.add_argument("-c", dest="compress", action="store_true", help="compress the overlay's clusters")
    parser.add_argument("--stream", action="store_true", help="write what is dirty to standard output")
    parser.add_argument("-p", "--progress", action="store_true", help="show progress (with --overlay)")
    parser.add_argument("-g", "--granularity", metavar="SIZE", help="bytes that one bit of a new one stands for")
    parser.add_argument("-b", "--source-file", metavar="FILE", help="merge bitmaps of this image")
    parser.add_argument("-F", "--source-format", metavar="FMT", help="its format")
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image: qcow2 or raw (default: detected)")
    parser.add_argument("--image-opts", action="store_true", help="FILE is given as driver=...,file.filename=...")
    arguments.add_object(parser)
    parser.add_argument(
        "-U", "--force-share", action="store_true", help="read it although another program may be writing to it"
    )
    arguments.add_gate(parser)
    parser.add_argument("words", metavar="FILE NAME", nargs="*", help="the image and its bitmap")


def _merge(name: str) -> tuple[str, str]:
    return "merge", name


def run(chosen: Namespace) -> int:
    chosen.image = ""
    if option_list.asks_for_help(chosen.options):
        text.write(option_list.listing("qcow2", OPTIONS["qcow2"]))
        return 0
    try:
        granularity = _granularity(chosen.granularity)
        _judge(chosen, granularity)
    except UsageError as error:
        for line in error.message.splitlines():
            text.complain(line)
        return 1
    word, name = chosen.words
    named = chosen_image(chosen, word, chosen.format)
    if chosen.show:
        with open_named(named, gate=chosen.gate, **_alone(named)) as disk:
            _show(disk, name, chosen.output)
        return 0
    if chosen.overlay is not None or chosen.stream:
        _back_up(chosen, named, name)
        return 0
    return _change(chosen, named, name, granularity)


def _granularity(word: str | None) -> int | None:
    if word is None:
        return None
    try:
        return sizes.parse_size(word) or None
    except ArgumentTypeError:
        raise UsageError(f"Invalid granularity specified. {sizes.SUFFIXES_HELP}") from None


def _judge(chosen: Namespace, granularity: int | None) -> None:
    """Raise UsageError for options that do not go together, in QEMU's words."""
    added, merged = "add" in chosen.actions, any(isinstance(action, tuple) for action in chosen.actions)
    reads = chosen.show + chosen.stream + (chosen.overlay is not None)
    problems = (
        (reads + bool(chosen.actions) > 1, "--show, --overlay and --stream go alone, and without any change"),
        (chosen.force_share and not reads, "--force-share/-U is for reading, with --show, --overlay or --stream"),
        (
            chosen.overlay is None and (chosen.options or chosen.compress or chosen.progress),
            "-o, -c and -p go with --overlay",
        ),
        (
            not reads and not chosen.actions,
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        ),
        (granularity is not None and not added, "granularity only supported with --add"),
        (chosen.source_format is not None and chosen.source_file is None, "-F only supported with -b"),
        (chosen.source_file is not None and not merged, "Merge bitmap source file only supported with --merge"),
        (len(chosen.words) != 2, "Expecting filename and bitmap name"),
    )
    for holds, message in problems:
        if holds:
            raise UsageError(message)


def _alone(named: NamedImage) -> dict[str, Any]:
    """Return arguments that keep files below from being opened: bitmaps have nothing to do with them."""
    return {} if "backing" in named.options else {"backing": False}


def _change(chosen: Namespace, named: NamedImage, name: str, granularity: int | None) -> int:
    from qcow2c.ops.bitmaps import BitmapChange, SourceImage, Verb, change

    actions = [
        BitmapChange(Verb.MERGE, action[1]) if isinstance(action, tuple) else BitmapChange(Verb(action))
        for action in chosen.actions
    ]
    source = None
    if chosen.source_file is not None:
        source = SourceImage(chosen.source_file, chosen.source_format)
    data_file = {key: value for key, value in named.options.items() if key in ("data_file", "key")}
    try:
        change(
            named.filename,
            name,
            actions,
            granularity=granularity,
            source=source,
            image_format=named.format,
            warn=lambda message: text.note(f"qcow2c: warning: {message}"),
            gate=chosen.gate,
            **data_file,
        )
    except UsageError as error:
        text.complain(f"{named.name}: {error}")
        if error.message.endswith("is inconsistent and cannot be used"):
            text.note("Try --remove to delete this bitmap from disk")
        return 1
    return 0


def _back_up(chosen: Namespace, named: NamedImage, name: str) -> None:
    from qcow2c.copy.targets import Pipe
    from qcow2c.ops.incremental import write_overlay, write_stream

    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        disk = stack.enter_context(open_named(named, gate=chosen.gate))
        if chosen.stream:  # Without any buffer.
            taken = stack.enter_context(output.unbuffered(sys.stdout, "output"))
            write_stream(disk, name, Pipe(taken, "standard output").write)
            return
        create = option_list.parse(chosen.options, sorted(OPTIONS["qcow2"]))
        secrets.settle(create, chosen.secrets)
        report = stack.enter_context(progress.shown(wanted=chosen.progress))
        write_overlay(disk, name, chosen.overlay, compress=chosen.compress, progress=report, **create)


def _show(disk: Disk, name: str, form: str) -> None:
    if disk.image is None:
        raise UsageError(f"Dirty bitmap '{name}' not found")
    ranges = disk.image.bitmaps.find(name).ranges()
    if form == "json":
        _write(ranges, '{ "start": %d, "length": %d}', "[", ",\n", "]\n")
    else:
        _write(ranges, "%#-16x%#x\n", f"{'Offset':<16}Length\n", "", "")


def _write(ranges: Iterator[Span], line: str, head: str, between: str, end: str) -> None:
    """Write a line for each range, as they come."""
    text.write(head)
    before = ""
    while found := list(islice(ranges, _LINES)):
        text.write(before + between.join(line % one for one in found))
        before = between
    text.write(end)
