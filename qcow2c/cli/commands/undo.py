"""Take a repair back: let an image be what it was before qcow2c check -r, bit for bit, its size too.

UNDO is the file that qcow2c check -r wrote because of --undo. An image that does not hold what the repair wrote (it was
written to since, or is another one) is refused and not changed. One that is half repaired, or half taken back, after
a crash, is taken back as well. The undo file stays.

examples:
  qcow2c check -r all --undo disk.undo disk.qcow2
  qcow2c undo disk.undo disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from qcow2c.cli import text


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("undo", metavar="UNDO", help="the undo file")
    parser.add_argument("image", metavar="IMAGE", help="the image file")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def run(chosen: Namespace) -> int:
    from qcow2c.ops.repair import undo_repair

    done = undo_repair(chosen.image, chosen.undo)
    if not chosen.quiet:
        text.report("The image is as it was before the repair.\n" if done else "The image was as before the repair.\n")
    return 0
