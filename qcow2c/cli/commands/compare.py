"""Tell whether two images, qcow2 or raw, hold the same data. A longer one that ends in zeros is the same.

The output and the exit status are those of qemu-img compare: 0 identical, 1 different (or the command line is wrong),
2 an image cannot be opened, 3 its tables cannot be read, 4 its data cannot be read.

examples:
  qcow2c compare disk.raw disk.qcow2
  qcow2c compare -p -f raw -F qcow2 disk.raw disk.qcow2
  qcow2c compare -s -q before.qcow2 after.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack

from qcow2c.cli import arguments, image_names, text
from qcow2c.errors import Qcow2Error
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from qcow2c.disk.disk import Disk
    from qcow2c.ops.compare import Comparison

CANNOT_OPEN = 2

_PERCENT_STEP = 2.0
"""Progress that is worth a line."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("first", metavar="IMAGE1", help="one image")
    parser.add_argument("second", metavar="IMAGE2", help="the other image")
    parser.add_argument(
        "-f", "--a-format", dest="first_format", metavar="FMT", help="format of IMAGE1 (default: detected)"
    )
    parser.add_argument(
        "-F", "--b-format", dest="second_format", metavar="FMT", help="format of IMAGE2 (default: detected)"
    )
    parser.add_argument("-s", "--strict", action="store_true", help="sizes and allocation must be the same, too")
    parser.add_argument("-p", "--progress", action="store_true", help="show how much is done")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("-T", "--cache", metavar="CACHE", default="writeback", help="cache mode; does nothing")
    arguments.add_share(parser)
    image_names.add_arguments(parser, "each image")
    arguments.add_gate(parser)


def run(chosen: Namespace) -> int:
    chosen.image = chosen.first  # What an error that no image causes is told of.
    shows_progress = chosen.progress and not chosen.quiet
    try:
        return _compared(chosen, shows_progress=shows_progress)
    finally:
        if shows_progress:
            text.report("\n")


def _compared(chosen: Namespace, *, shows_progress: bool) -> int:
    if chosen.cache not in arguments.CACHE_MODES:
        text.complain(f"Invalid source cache option: {chosen.cache}")
        return CANNOT_OPEN
    from qcow2c.ops.compare import compare_disks

    disks: list[Disk] = []
    with ExitStack() as stack:
        for name, image_format in ((chosen.first, chosen.first_format), (chosen.second, chosen.second_format)):
            try:
                named = image_names.chosen_image(chosen, name, image_format)
                disks.append(stack.enter_context(image_names.open_named(named, gate=chosen.gate)))
            except Qcow2Error as error:
                text.complain(f"{name}: {error}" if chosen.image else str(error))
                return CANNOT_OPEN
        chosen.image = chosen.first
        first, second = disks
        report = _Report(first.size, second.size, quiet=chosen.quiet, shows_progress=shows_progress)
        try:
            report.result(compare := compare_disks(first, second, strict=chosen.strict, progress=report.progress))
        except Qcow2Error as error:
            text.complain(str(error))
            return error.exit_code
        return 0 if compare.identical else 1


class _Report:
    """What is written to standard output."""

    def __init__(self, first_size: int, second_size: int, *, quiet: bool, shows_progress: bool) -> None:
        self._common = min(first_size, second_size)
        self._quiet = quiet
        self._shows_progress = shows_progress
        self._shown = 0.0
        self._unequal = first_size != second_size
        if shows_progress:
            self._show(0.0)

    def progress(self, done: int, total: int) -> None:
        percent = 100 * done / total if total else 0.0
        if self._shows_progress and (percent > self._shown + _PERCENT_STEP or percent == 100 > self._shown):
            self._show(percent)
        if self._unequal and done >= self._common:
            self._say("Warning: Image size mismatch!")
            self._unequal = False

    def result(self, found: Comparison) -> None:
        if found.identical:
            self._say("Images are identical.")
        elif found.why == "content":
            self._say(f"Content mismatch at offset {found.offset}!")
        elif found.why == "allocation":
            self._say(f"Strict mode: Offset {found.offset} block status mismatch!")
        else:
            self._say("Strict mode: Image size mismatch!")

    def _say(self, line: str) -> None:
        if not self._quiet:
            text.report(line + "\n")

    def _show(self, percent: float) -> None:
        self._shown = percent
        text.report(f"    ({percent:3.2f}/100%)\r")
