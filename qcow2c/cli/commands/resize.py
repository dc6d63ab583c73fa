"""Change the size of a disk: SIZE bytes, +SIZE more, or -SIZE less. What is new reads as zeros.

A disk that becomes smaller loses what lies behind its new end, which --shrink must allow. Internal snapshots keep their
sizes, bitmaps follow. It happens all at once: a crash leaves the old size or the new one. Options, messages and exit
status are those of qemu-img resize.

examples:
  qcow2c resize disk.qcow2 +10G
  qcow2c resize --preallocation=falloc disk.qcow2 40G
  qcow2c resize --shrink disk.qcow2 -5G
  qcow2c resize -f raw disk.raw 1.5T
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack

from qcow2c.cli import arguments, image_names, interrupts, option_list, text
from qcow2c.cli.option_list import Option
from qcow2c.errors import UnsupportedFeature, UsageError

LAST_WORD_IS_NO_OPTION = True
"""It may be -5G."""

_MODES = ("off", "metadata", "falloc", "full")
_SECTOR = 512
_SHRINKING = """\
Use the --shrink option to perform a shrink operation.
warning: Shrinking an image will delete all data beyond the shrunken image's end. \
Before performing such an operation, make sure there is no important data there."""

_PROBED = """\
WARNING: Image format was not specified for '{}' and probing guessed raw.
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.
         Specify the 'raw' format explicitly to remove the restrictions."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image: qcow2 or raw (default: detected)")
    parser.add_argument("--preallocation", metavar="HOW", default="off", help=f"of what is new: {', '.join(_MODES)}")
    parser.add_argument("--shrink", action="store_true", help="the disk may lose what lies behind its new end")
    arguments.add_drop_trailing(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--image-opts", action="store_true", help="FILE is given as driver=...,file.filename=...")
    arguments.add_object(parser)
    arguments.add_gate(parser)
    parser.add_argument("words", metavar="FILE SIZE", nargs="*", help="the image, and its new size")


def run(chosen: Namespace) -> int:
    chosen.image = ""
    try:
        if chosen.preallocation not in _MODES:
            raise UsageError(f"Invalid preallocation mode '{chosen.preallocation}'")
        if len(chosen.words) != 2:
            problem = "Not enough arguments" if len(chosen.words) < 2 else "Expecting image file name and size"
            text.complain(problem, hint="qcow2c resize --help")
            return 1
        word, size = chosen.words
        _resize(chosen, word, _change(size))
    except UsageError as error:
        for line in error.message.splitlines():
            text.complain(line)
        return 1
    if not chosen.quiet:
        text.report("Image resized.\n")
    return 0


def _change(word: str) -> tuple[int, int]:
    """Return how many times the present size counts, and the bytes that are added to it. Raises UsageError."""
    sign = word[:1] if word[:1] in ("+", "-") else ""
    number = word.removeprefix(sign).replace(",", ",,")
    size: int = option_list.parse([f"size={number}"], [Option("size", "size", "")])["size"]
    return int(bool(sign)), -size if sign == "-" else size


def _resize(chosen: Namespace, word: str, change: tuple[int, int]) -> None:
    named = image_names.named_image(
        word, secrets=chosen.secrets, image_opts=chosen.image_opts, image_format=chosen.format
    )
    if named.share:
        raise UsageError(f"Could not open {word!r}: force-share=on can only be used with read-only images")
    from qcow2c.ops.resize import open_resizable, require_wanted

    chosen.image = word
    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        how = {"image_format": named.format, "gate": chosen.gate, **named.options}
        disk = stack.enter_context(open_resizable(named.filename, **how))
        if named.backing_format not in (None, disk.backing_format):
            raise UnsupportedFeature("Could not open backing file: the image says that it has another format")
        if named.format is None and disk.image_format == "raw":
            for line in _PROBED.format(word).splitlines():
                text.note(line)
        times, added = change
        size = disk.size // _SECTOR * _SECTOR * times + added
        if 0 < size < disk.size and not chosen.shrink and chosen.preallocation == "off":
            raise UsageError(_SHRINKING)
        require_wanted(disk, size, shrink=chosen.shrink, preallocation=chosen.preallocation)
        disk.resize(size, chosen.preallocation, drop_trailing=chosen.drop_trailing)
