"""Copy a part of an image, measured in blocks, into a new file; formats qcow2 and raw.

Operands, messages and exit status are those of qemu-img dd. As there, count=N counts blocks from the start of the disk,
those that skip=N leaves out among them. What reads as zeros takes no space in the copy.

operands:
  if=FILE   the image to read
  of=FILE   the file to make; one that exists is replaced
  bs=SIZE   bytes of a block (default: 512)
  count=N   read the first N blocks
  skip=N    ... but leave out N of them at the start

examples:
  qcow2c dd if=disk.qcow2 of=boot.img bs=512 count=1
  qcow2c dd -O qcow2 bs=1M skip=1 if=disk.raw of=rest.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from qcow2c.cli import arguments, image_names, pipes, sizes, text
from qcow2c.errors import UnsupportedFeature, UsageError

_LARGEST = (1 << 63) - 1
_NUMBERS = {"bs": (1, (1 << 31) - 1), "count": (0, _LARGEST), "skip": (0, _LARGEST)}
"""Operands that are numbers, and their bounds."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image: qcow2 or raw (default: detected)")
    parser.add_argument("-O", "--output-format", metavar="FMT", default="raw", help="format of the copy: qcow2 or raw")
    arguments.add_share(parser)
    parser.add_argument("--image-opts", action="store_true", help="if= is given as driver=...,file.filename=...")
    arguments.add_object(parser)
    arguments.add_gate(parser)
    parser.add_argument("operands", metavar="NAME=VALUE", nargs="*", help="what to copy, see above")


def run(chosen: Namespace) -> int:
    try:
        files, numbers = _operands(chosen.operands)
        source = image_names.chosen_image(chosen, files["if"], chosen.format)
    except (UsageError, UnsupportedFeature) as error:
        for line in error.message.splitlines():
            text.complain(line)
        return 1
    from qcow2c.copy.targets import Pipe
    from qcow2c.ops.dd import BLOCK_SIZE, copy_part, part_of

    with image_names.open_named(source, gate=chosen.gate) as disk:
        if chosen.output_format not in ("qcow2", "raw"):
            text.complain("Unknown file format")
            return 1
        part = part_of(
            disk.size,
            block_size=numbers.get("bs", BLOCK_SIZE),
            count=numbers.get("count"),
            skip=numbers.get("skip", 0),
        )
        target = chosen.image = files["of"]
        place = Pipe(pipes.opened(target, "wb"), target) if pipes.is_pipe(target) else target
        copy_part(disk, place, part, chosen.output_format)
    if part.beyond:
        text.complain(f"{source.name}: cannot skip to specified offset")
    return 0


def _operands(words: list[str]) -> tuple[dict[str, str], dict[str, int]]:
    """Return the file names and the numbers by name; a later one replaces an earlier one. Raises UsageError."""
    files: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in _NUMBERS:
            numbers[name] = _number(name, value)
        elif equals and name in ("if", "of"):
            files[name] = value
        else:
            raise UsageError(f"unrecognized operand {name}")
    if files.keys() != {"if", "of"}:
        raise UsageError("Must specify both input and output files")
    return files, numbers


def _number(name: str, words: str) -> int:
    least, most = _NUMBERS[name]
    try:
        number = sizes.parse_size(words)
    except ArgumentTypeError as exc:
        if "must be between" not in str(exc):
            raise UsageError(f"Invalid {name} specified. {sizes.SUFFIXES_HELP}") from None
        number = -1
    if not least <= number <= most:
        raise UsageError(f"Invalid {name} specified. Must be between {least} and {most}.")
    return number
