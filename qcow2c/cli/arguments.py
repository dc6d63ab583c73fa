"""Options that several commands share, as qemu-img spells them. Knows no command and nothing of the format."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError

GATE_VARIABLE = "QCOW2C_GATE"
"""Of the environment: the gate where none is given, for scripts that were written for qemu-img."""

CACHE_MODES = ("none", "off", "directsync", "writeback", "unsafe", "writethrough")

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


def add_change(parser: ArgumentParser) -> None:
    """Add what the commands have in common that change one image, FILE, and open others with it."""
    parser.add_argument("-t", "--cache", metavar="MODE", default="writeback", help="cache mode; always durable")
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--image-opts", action="store_true", help="FILE is given as driver=...,file.filename=...")
    add_object(parser)
    add_gate(parser)
    parser.add_argument("images", metavar="FILE", nargs="*", help="the image")


def add_object(parser: ArgumentParser) -> None:
    """Add the secrets that open encrypted images."""
    parser.add_argument(
        "--object",
        metavar="OBJECT",
        action="append",
        default=[],
        help="a secret: secret,id=ID,file=FILE[,format=raw|base64], or data=... instead of a file",
    )


def add_drop_trailing(parser: ArgumentParser) -> None:
    """Add the choice to lose what lies in the file behind the image."""
    parser.add_argument(
        "--drop-trailing",
        action="store_true",
        help="cut the file off behind the image's last cluster, even if something else lies there (default: keep that)",
    )


def add_output(parser: ArgumentParser) -> None:
    """Add the choice between text and JSON."""
    parser.add_argument("--output", choices=("human", "json"), default="human", help="form of the output")


def add_creation_options(parser: ArgumentParser, of: str = "the format", *names: str) -> None:
    """Add the options of what is to be made, as a list of lists: each -o, or one of `names`, has several."""
    parser.add_argument(
        "-o",
        "--options",
        *names,
        dest="options",
        metavar="K=V,...",
        action="append",
        default=[],
        help=f"options of {of}; help lists them",
    )


def add_gate(parser: ArgumentParser) -> None:
    """Add the choice of which files an image may name."""
    action = parser.add_argument(
        "--gate",
        type=_gate,  # What comes from the environment is judged, too, unless there is an option.
        metavar="GATE",
        default=os.environ.get(GATE_VARIABLE) or "directory",
        help="which files named inside an image may be opened: deny (none), directory (those in the directory of the "
        "image), DIR[:DIR...] (those in these directories, too), or any "
        f"(default: what the environment variable {GATE_VARIABLE} says, else directory)",
    )
    action.completer = lambda **_: GATES  # type: ignore[attr-defined] # argcomplete asks for it.


def _gate(word: str) -> str | list[str]:
    if word in GATES:
        return word
    directories = word.split(os.pathsep)
    for directory in directories:
        if not os.path.isdir(directory):
            known = f"{', '.join(GATES)}, or directories, DIR[:DIR...]"
            raise ArgumentTypeError(
                f"{directory!r} is no gate and no directory: it can be {known} ({GATE_VARIABLE} is the default)"
            )
    return directories
