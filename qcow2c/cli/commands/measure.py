"""Show how large a file would become: a copy of an image in another format, or a new image of a size.

The output is that of qemu-img measure: `required size` counts the data that there is, `fully allocated size` all
that the disk can hold, and `bitmaps size` is what a copy of the bitmaps adds; -o help lists the options of a format.

examples:
  qcow2c measure -O qcow2 disk.raw
  qcow2c measure -O qcow2 -o cluster_size=2M,preallocation=metadata --size 1T
  qcow2c measure --output=json -O qcow2 -l before-upgrade disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from qcow2c.cli import arguments, image_names, option_list, secrets, sizes, text
from qcow2c.cli.commands.create import OPTIONS
from qcow2c.cli.option_list import Option
from qcow2c.errors import UsageError
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.disk.disk import SnapshotKey
    from qcow2c.ops.measure import Measurement

_SIZE_FORM = f"Invalid image size specified. {sizes.SUFFIXES_HELP}"
_SIZE_RANGE = f"Invalid image size specified. Must be between 0 and {(1 << 63) - 1}."


def add_arguments(parser: ArgumentParser) -> None:
    arguments.add_output(parser)
    parser.add_argument(
        "-O",
        "--output-format",
        "--target-format",
        metavar="FMT",
        default="raw",
        help="format to measure for: qcow2, or raw (default)",
    )
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image: qcow2 or raw (default: detected)")
    parser.add_argument(
        "-l",
        "--snapshot",
        metavar="SNAPSHOT",
        help="measure an internal snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME",
    )
    arguments.add_creation_options(parser)
    parser.add_argument("-s", "--size", metavar="SIZE", help="measure a new image of this size, instead of an image")
    arguments.add_share(parser)
    image_names.add_arguments(parser)
    arguments.add_gate(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="the image to measure")


def run(chosen: Namespace) -> int:
    chosen.image = chosen.images[0] if chosen.images else None
    known = sorted(OPTIONS.get(chosen.output_format, ()))
    if chosen.output_format in OPTIONS and option_list.asks_for_help(chosen.options):
        text.write(option_list.listing(chosen.output_format, known))
        return 0
    try:
        size = _size(chosen)
        snapshot = image_names.snapshot_key(chosen.snapshot)
        _check_source(chosen)
        options = _options(chosen, known)
        found = _measure(chosen, size, snapshot, options)
    except UsageError as error:
        for line in error.message.splitlines():
            text.complain(line)
        return 1
    _write(found, chosen.output)
    return 0


def _size(chosen: Namespace) -> int | None:
    if chosen.size is None:
        return None
    try:
        return sizes.parse_size(chosen.size)
    except ArgumentTypeError as exc:
        raise UsageError(_SIZE_RANGE if "must be between" in str(exc) else _SIZE_FORM) from exc


def _check_source(chosen: Namespace) -> None:
    if len(chosen.images) > 1:
        raise UsageError("At most one filename argument is allowed.")
    of_image = chosen.image_opts or chosen.format is not None or chosen.snapshot is not None
    if chosen.image is None and of_image:
        raise UsageError("--image-opts, -f, and -l require a filename argument.")
    if chosen.image is not None and chosen.size is not None:
        raise UsageError("--size N cannot be used together with a filename.")
    if chosen.image is None and chosen.size is None:
        raise UsageError("Either --size N or one filename must be specified.")


def _options(chosen: Namespace, known: list[Option]) -> dict[str, Any]:
    """Return the options by name. There are none of a format that is no good anyway."""
    if chosen.output_format == "luks":
        known = list(secrets.VOLUME_OPTIONS)
    elif chosen.output_format not in OPTIONS:
        return {}
    try:
        found = option_list.parse(chosen.options, known)
    except UsageError as exc:
        raise UsageError(f"{exc}\nInvalid options for file format {chosen.output_format!r}") from exc
    secrets.settle(found, chosen.secrets, chosen.output_format)
    return found


def _measure(
    chosen: Namespace, size: int | None, snapshot: str | SnapshotKey | None, options: dict[str, Any]
) -> Measurement:
    from qcow2c.ops.measure import measure, measure_disk

    asked = options.pop("size", None)
    if size is not None:
        return measure(size=size, output_format=chosen.output_format, **options)
    if asked is not None:
        # It is not measured beside an image, but it must be possible.
        measure(size=asked, output_format=chosen.output_format, **options)
    named = image_names.chosen_image(chosen, chosen.image, chosen.format)
    with image_names.open_named(named, gate=chosen.gate, snapshot=snapshot) as disk:
        return measure_disk(disk, chosen.output_format, **options)


def _write(found: Measurement, form: str) -> None:
    if form == "json":
        # QEMU's JSON has signed numbers of 64 bits.
        facts = {"required": _signed(found.required), "fully-allocated": _signed(found.fully_allocated)}
        before = {} if found.bitmaps is None else {"bitmaps": found.bitmaps}
        text.write(text.pretty_json(before | facts) + "\n")
        return
    text.write(f"required size: {found.required}\nfully allocated size: {found.fully_allocated}\n")
    if found.bitmaps is not None:
        text.write(f"bitmaps size: {found.bitmaps}\n")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
