"""Write a stream of `qcow2c diff --stream` over an image, qcow2 or raw: its disk becomes that of the later state.

The image must show the state from which the difference was taken; that is not checked, but for its size. A qcow2 image
must have the size of the later state (see qcow2c resize), a raw file takes it. Nothing is written unless the stream is
whole. If writing fails, the same stream, written again, completes it.

examples:
  qcow2c diff --stream --from-snapshot monday disk.qcow2 > monday-to-now
  qcow2c patch monday.qcow2 monday-to-now
  qcow2c diff --stream old.raw new.raw | qcow2c patch -p copy-of-old.raw
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from typing import BinaryIO

from qcow2c.cli import arguments, image_names, interrupts, progress, text
from qcow2c.errors import UsageError

_STREAM = "-"
"""Standard input."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image: qcow2 or raw (default: detected)")
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    image_names.add_arguments(parser)
    arguments.add_gate(parser)
    parser.add_argument("image", metavar="IMAGE", help="the image to change")
    parser.add_argument("stream", metavar="STREAM", nargs="?", default=_STREAM, help="the stream (-: standard input)")


def run(chosen: Namespace) -> int:
    from qcow2c.ops.patch import patch

    named = image_names.named_image(
        chosen.image, secrets=chosen.secrets, image_opts=chosen.image_opts, image_format=chosen.format
    )
    how = {"image_format": named.format, "key": named.options.get("key")}
    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        stream: BinaryIO
        if chosen.stream != _STREAM:
            image, chosen.image = chosen.image, chosen.stream
            stream = stack.enter_context(open(chosen.stream, "rb"))
            chosen.image = image
        elif sys.stdin is None:
            raise UsageError("standard input is closed")
        else:
            stream = sys.stdin.buffer
        report = stack.enter_context(progress.shown(wanted=chosen.progress and not chosen.quiet))
        count = patch(named.filename, stream, **how, gate=chosen.gate, progress=report)
    if not chosen.quiet:
        text.report(f"{chosen.image}: {count} ranges written\n")
    return 0
