"""Copy what an image holds into its backing file, or into a layer further below, and empty the image.

Options, messages and exit status are those of qemu-img commit. The base is durable before anything of the image is let
go of: whenever the command ends, the image shows the same disk. A base that is smaller grows. With -b, all layers above
that base are copied; those between the image and the base show something else then, and the image is not emptied.
Internal snapshots of the image show the same as before, unless -d: what changes below, they hold themselves then (qemu-
img lets them change).

examples:
  qcow2c commit overlay.qcow2
  qcow2c commit -d -p overlay.qcow2 && rm overlay.qcow2
  qcow2c commit -b base.qcow2 third.qcow2
  qcow2c commit -r 50M -t writeback overlay.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import ExitStack

from qcow2c.cli import arguments, image_names, interrupts, progress, sizes, text
from qcow2c.errors import UnsupportedFeature, UsageError

_LARGEST = (1 << 63) - 1


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image: qcow2 or raw (default: detected)")
    parser.add_argument("-b", "--base", metavar="FILE", help="the layer below that takes it all; implies -d")
    parser.add_argument("-d", "--drop", action="store_true", help="do not empty the image: it will be dropped")
    parser.add_argument("-r", "--rate", metavar="RATE", help="bytes a second that are copied at most; 0: no limit")
    arguments.add_drop_trailing(parser)
    arguments.add_change(parser)


def run(chosen: Namespace) -> int:
    chosen.image = ""
    try:
        rate_limit = None if chosen.rate is None else _rate(chosen.rate)
        if len(chosen.images) != 1:
            text.complain("Expecting one image file name", hint="qcow2c commit --help")
            return 1
        if chosen.cache not in arguments.CACHE_MODES:
            raise UsageError(f"Invalid cache option: {chosen.cache}")
        _commit(chosen, rate_limit)
    except UsageError as error:
        for line in error.message.splitlines():
            text.complain(line)
        return 1
    if not chosen.quiet:
        text.report("Image committed.\n")
    return 0


def _rate(words: str) -> int:
    try:
        return sizes.parse_size(words)
    except ArgumentTypeError as exc:
        if "must be between" in str(exc):
            raise UsageError(f"Invalid rate limit specified. Must be between 0 and {_LARGEST}.") from None
        raise UsageError(f"Invalid rate limit specified. {sizes.SUFFIXES_HELP}") from None


def _commit(chosen: Namespace, rate_limit: int | None) -> None:
    chosen.force_share = False
    named = image_names.chosen_image(chosen, chosen.images[0], chosen.format)
    if named.share:
        raise UsageError(f"Could not open {named.name!r}: force-share=on can only be used with read-only images")
    from qcow2c.ops.commit import commit_chain, open_chain

    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        how = {"image_format": named.format, "gate": chosen.gate, "name": named.name, **named.options}
        chain = stack.enter_context(open_chain(named.filename, **how))
        if named.backing_format not in (None, *(link.image_format for link in chain.links[:1])):
            raise UnsupportedFeature("Could not open backing file: the image says that it has another format")
        # The line of the progress ends before an error is told.
        report = stack.enter_context(progress.shown(wanted=chosen.progress and not chosen.quiet))
        how_far = {"drop": chosen.drop, "drop_trailing": chosen.drop_trailing}
        commit_chain(chain, chosen.base, **how_far, progress=report, rate_limit=rate_limit)
