"""Copy an image, or several consecutively, into a new file; formats qcow2 and raw.

Options, messages and progress are those of qemu-img convert. A source "-" is raw data from standard input, a target
"-" goes to standard output. The copy has its name, or its magic value, only when it is complete; until then a target
that is there stays as it is, unless hard links, a mount point or another owner make it be written in place. As with
qemu-img, whole sectors are copied: the bytes of a qcow2 disk behind its last whole 512 are left out (image.read() of
the library has them), and a raw file gets zeros up to the next 512.

examples:
  qcow2c convert -p -O raw disk.qcow2 disk.raw
  qcow2c convert -c -O qcow2 -o compression_type=zstd,compression_level=9 disk.raw disk.qcow2
  qcow2c convert -O qcow2 -B base.qcow2 -F qcow2 overlay.qcow2 copy.qcow2
  qcow2c convert -l before-upgrade -O raw disk.qcow2 - | sha256sum
"""

from __future__ import annotations

import os
import stat
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import AbstractContextManager, ExitStack

from qcow2c.cli import arguments, interrupts, option_list, output, pipes, progress, secrets, sizes, text
from qcow2c.cli.commands.create import OPTIONS
from qcow2c.cli.image_names import NamedImage, chosen_image, named_image, open_named, snapshot_key
from qcow2c.cli.option_list import Option
from qcow2c.errors import UnsupportedFeature, UsageError
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.disk.disk import Disk, SnapshotKey

_LEVEL = Option("compression_level", "num", "Compression level: 1 to 9 for zlib, 1 to 22 for zstd")
_LOST = 2
"""Exit status with --lost, where something is."""

_STREAM = pipes.STREAM


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--format",
        "--source-format",
        metavar="FMT",
        help="qcow2, raw or luks (default: detected)",
    )
    parser.add_argument(
        "-O",
        "--output-format",
        "--target-format",
        metavar="FMT",
        help="qcow2, luks, or raw (default)",
    )
    parser.add_argument("-B", "--backing", metavar="FILE", help="backing file of the target, which holds the rest")
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="format of that backing file")
    parser.add_argument("-c", "--compress", action="store_true", help="compress the target's clusters")
    parser.add_argument(
        "-C", "--copy-range-offloading", dest="copy_range", action="store_true", help="let the system copy where it can"
    )
    arguments.add_creation_options(parser, "the target", "--target-options")
    parser.add_argument(
        "-l",
        "--snapshot",
        "--source-snapshot",
        metavar="SNAPSHOT",
        help="copy an internal snapshot, all of it even if the disk is smaller: name, ID, or snapshot.id=ID,...",
    )
    parser.add_argument("-S", "--sparse-size", metavar="SIZE", help="zeros that become a hole (4k); 0: none")
    parser.add_argument(
        "-n", "--no-create", dest="existing", action="store_true", help="write into a target that is there"
    )
    parser.add_argument("--target-is-zero", action="store_true", help="a target that is there reads as zeros (with -n)")
    parser.add_argument("--salvage", action="store_true", help="go on where the source cannot be read: zeros")
    parser.add_argument("--lost", metavar="FILE", help="with --salvage: list what is lost as JSON; then exit status 2")
    parser.add_argument("--bitmaps", action="store_true", help="copy persistent bitmaps, too")
    parser.add_argument("--skip-broken-bitmaps", action="store_true", help="leave out bitmaps that are in use")
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("-m", "--parallel", dest="threads", metavar="N", help="requests at a time, 1 to 16")
    parser.add_argument(
        "-W", "--oob-writes", dest="out_of_order", action="store_true", help="write out of order where that is faster"
    )
    parser.add_argument(
        "-t",
        "--target-cache",
        dest="cache",
        metavar="MODE",
        default="unsafe",
        help="cache mode of the target; the default, unsafe, makes no sync: a crash of the machine can lose the copy",
    )
    parser.add_argument("-T", "--source-cache", metavar="MODE", default="writeback", help="... of the sources")
    parser.add_argument("-r", "--rate", metavar="RATE", help="(only QEMU can limit the rate)")
    arguments.add_share(parser)
    parser.add_argument("--image-opts", action="store_true", help="sources are given as driver=...,file.filename=...")
    parser.add_argument("--target-image-opts", action="store_true", help="the target, too (with -n)")
    arguments.add_object(parser)
    arguments.add_gate(parser)
    parser.add_argument("images", metavar="FILE", nargs="*", help="sources, and the target")


def run(chosen: Namespace) -> int:
    chosen.image = chosen.images[0] if chosen.images else "convert"
    output_format = "raw" if chosen.output_format is None else chosen.output_format
    try:
        if option_list.asks_for_help(chosen.options) and not chosen.existing:
            text.write(option_list.listing(output_format, _known(output_format)))
            return 0
        _judge(chosen)
        how, create = _how(chosen, output_format)

        from qcow2c.copy.options import How
        from qcow2c.ops.convert import judge

        judge(len(chosen.images) - 1, output_format, How(**how), create)
    except (UsageError, UnsupportedFeature) as error:
        for line in error.message.splitlines():
            text.complain(line)
        return 1
    *sources, target = chosen.images
    sources, target = [pipes.as_stream(word, "in") for word in sources], pipes.as_stream(target, "out")
    chosen.image = target
    if target == _STREAM:
        chosen.quiet = True  # Standard output is taken.
    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        # The line of the progress ends before an error is told.
        report = stack.enter_context(progress.shown(wanted=chosen.progress and not chosen.quiet))
        lost = _copy(chosen, sources, target, output_format, how, create, report)
    if chosen.lost is not None:
        _list_lost(lost, chosen.lost)
        return _LOST if lost else 0
    return 0


def _list_lost(lost: list[dict[str, Any]], place: str) -> None:
    """Write the ranges of the target that are zeros because they could not be read."""
    words = text.pretty_json(lost) + "\n"
    try:
        with open(place, "w", encoding="ascii") as file:
            file.write(words)
    except OSError as exc:
        raise UsageError(f"Could not write {place!r}: {exc.strerror}") from exc


def _known(output_format: str) -> tuple[Option, ...]:
    if output_format not in OPTIONS:
        raise UsageError(f"Unknown file format '{output_format}'")
    return OPTIONS[output_format] if output_format != "qcow2" else tuple(sorted((*OPTIONS[output_format], _LEVEL)))


def _judge(chosen: Namespace) -> None:
    """Raise UsageError for options that do not go together, in QEMU's words."""
    problems = (
        (chosen.skip_broken_bitmaps and not chosen.bitmaps, "Use of --skip-broken-bitmaps requires --bitmaps"),
        (chosen.compress and chosen.copy_range, "Cannot enable copy offloading when -c is used"),
        (chosen.sparse_size is not None and chosen.copy_range, "Cannot enable copy offloading when -S is used"),
        (chosen.copy_range and chosen.salvage, "Cannot use copy offloading in salvaging mode"),
        (chosen.target_image_opts and not chosen.existing, "--target-image-opts requires use of -n flag"),
        (chosen.existing and chosen.options, "-o has no effect when skipping image creation"),
        (chosen.target_is_zero and not chosen.existing, "--target-is-zero requires use of -n flag"),
        (chosen.lost is not None and not chosen.salvage, "--lost requires use of --salvage flag"),
        (len(chosen.images) < 2, "Must specify image file name"),
        (chosen.source_cache not in arguments.CACHE_MODES, f"Invalid source cache option: {chosen.source_cache}"),
        (chosen.cache not in arguments.CACHE_MODES, f"Invalid cache option: {chosen.cache}"),
    )
    for holds, message in problems:
        if holds:
            raise UsageError(message)
    if chosen.rate is not None:
        raise UnsupportedFeature(f"-r {chosen.rate}: only QEMU can honour this option")


def _how(chosen: Namespace, output_format: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how to copy, and the options of the target. Raises UsageError."""
    how: dict[str, Any] = {
        "compressed": chosen.compress,
        "existing": chosen.existing,
        "target_is_zero": chosen.target_is_zero,
        "bitmaps": chosen.bitmaps,
        "skip_broken_bitmaps": chosen.skip_broken_bitmaps,
        "salvage": chosen.salvage,
        "durable": chosen.cache != "unsafe",
    }
    if chosen.sparse_size is not None:
        how["sparse_size"] = _size("buffer size for sparse output", chosen.sparse_size)
    if chosen.threads is not None and (not chosen.threads.isdecimal() or not 1 <= int(chosen.threads) <= 16):
        raise UsageError("Invalid number of coroutines. Allowed number of coroutines is between 1 and 16")
    create = option_list.parse(chosen.options, _known(output_format))
    if not chosen.existing:
        secrets.settle(create, chosen.secrets, output_format)
    if "compression_level" in create:
        how["compression_level"] = create.pop("compression_level")
    create.pop("size", None)
    if chosen.existing:
        how["over_backing"] = chosen.backing is not None
        return how, create
    for name, given in (("backing_file", chosen.backing), ("backing_fmt", chosen.backing_format)):
        if given is not None:
            create[name] = given
    return how, create


def _size(what: str, words: str) -> int:
    try:
        return sizes.parse_size(words)
    except ArgumentTypeError:
        raise UsageError(f"Invalid {what} specified. {sizes.SUFFIXES_HELP}") from None


def _copy(
    chosen: Namespace,
    sources: list[str],
    target: str,
    output_format: str,
    how: dict[str, Any],
    create: dict[str, Any],
    report: Progress | None,
) -> list[dict[str, Any]]:
    """Copy, and return what is lost."""
    lost: list[dict[str, Any]] = []
    from qcow2c.copy.options import How
    from qcow2c.copy.targets import Pipe
    from qcow2c.ops.convert import copy_disks, copy_stream, format_of

    snapshot = snapshot_key(chosen.snapshot)
    if snapshot is not None and len(sources) > 1:
        raise UsageError("No support for concatenating multiple snapshot")
    made = How(**how)
    target_key = None
    place: Any
    if target == _STREAM:
        place = Pipe(output.unbuffered(sys.stdout, "output"), "standard output")
    elif pipes.is_pipe(target):
        place = Pipe(pipes.opened(target, "wb"), target)
    else:
        named = named_image(target, secrets=chosen.secrets, image_opts=chosen.target_image_opts)
        target_key = named.options.pop("key", None)
        if named.options:
            raise UsageError("only the image itself and its driver can be given as the target")
        place = named.filename
        if chosen.target_image_opts:
            output_format = named.format or format_of(place)
    if len(sources) == 1 and pipes.is_pipe(sources[0]) and snapshot is None and not chosen.image_opts:
        piped = pipes.opened(sources[0], "rb")
        copy_stream(piped, place, output_format, made, image_format=chosen.format, gate=chosen.gate, **create)
        return lost
    if _STREAM in sources:
        if sources != [_STREAM] or snapshot is not None or chosen.image_opts:
            raise UsageError("standard input can only be the one source, without snapshots and --image-opts")
        if not _is_file(sys.stdin):
            chosen.image = target
            piped = output.unbuffered(sys.stdin, "input")
            copy_stream(piped, place, output_format, made, image_format=chosen.format, gate=chosen.gate, **create)
            return lost
    with ExitStack() as stack:
        disks = [stack.enter_context(_opened(chosen, word, snapshot)) for word in sources]
        chosen.image = target
        warn = None if chosen.quiet else _warn
        copy_disks(
            disks,
            place,
            output_format,
            made,
            progress=report,
            warn=warn,
            lost=lambda span, why: lost.append({"start": span.offset, "length": span.length, "reason": str(why)}),
            gate=chosen.gate,
            target_key=target_key,
            **create,
        )
    return lost


def _opened(chosen: Namespace, word: str, snapshot: str | SnapshotKey | None) -> AbstractContextManager[Disk]:
    """Open a source, which the errors are about from now on."""
    if word == _STREAM:
        chosen.image = word
        named = NamedImage(word, "/dev/stdin", chosen.format, {}, chosen.force_share)
    else:
        named = chosen_image(chosen, word, chosen.format)
    return open_named(named, gate=chosen.gate, snapshot=snapshot, on_error="zero" if chosen.salvage else "raise")


def _warn(message: str) -> None:
    text.note(f"qcow2c: warning: {message}")


def _is_file(stream: Any) -> bool:
    """Return whether a standard stream is a regular file, which can seek."""
    return stream is not None and stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
