"""Options that several commands share, as qemu-img spells them. Knows no command and nothing of the format."""

from __future__ import annotations

from argparse import ArgumentParser

GATES = ("deny", "directory", "any")


def add_image(parser: ArgumentParser) -> None:
    """Add the image and the options that say how it is opened."""
    parser.add_argument("image", metavar="IMAGE", help="the image file")
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image: qcow2 or raw (default: detected)")
    add_share(parser)


def add_share(parser: ArgumentParser) -> None:
    """Add the choice to do without the locks that keep others from writing."""
    parser.add_argument(
        "-U", "--force-share", action="store_true", help="open the image although another program may be writing to it"
    )


def add_output(parser: ArgumentParser) -> None:
    """Add the choice between text and JSON."""
    parser.add_argument("--output", choices=("human", "json"), default="human", help="form of the output")


def add_gate(parser: ArgumentParser) -> None:
    """Add the choice of which files an image may name."""
    parser.add_argument(
        "--gate",
        choices=GATES,
        default="directory",
        help="which files named inside an image may be opened: none, relative names that stay in the directory "
        "of the image (default), or any",
    )
