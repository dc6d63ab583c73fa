"""List the internal snapshots of an image, take one, go back to one, delete or rename one.

Options, messages and exit status are those of qemu-img snapshot. Each change is one write of the header: whenever it
is interrupted, the image is wholly what it was, or wholly what it will be. No other file is opened.

examples:
  qcow2c snapshot -l disk.qcow2
  qcow2c snapshot -c before-upgrade disk.qcow2
  qcow2c snapshot -a before-upgrade disk.qcow2
  qcow2c snapshot --rename before-upgrade fallback disk.qcow2
  qcow2c snapshot -d fallback disk.qcow2
"""

from __future__ import annotations

import errno
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial

from qcow2c.cli import arguments, image_names, text
from qcow2c.cli.commands.info import snapshot_list
from qcow2c.errors import LimitExceeded, NoSuchSnapshot, Qcow2Error, UnsupportedFeature, UsageError
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.cli.image_names import NamedImage
    from qcow2c.storage.store import Store

_HINT = "qcow2c snapshot --help"
_UNKNOWN = "snapshot not found"
_ON_RAW = {
    "create": "-95 (Operation not supported)",
    "apply": "Block driver does not support snapshots",
    "delete": _UNKNOWN,
    "rename": "Block driver does not support snapshots",
}


def add_arguments(parser: ArgumentParser) -> None:
    add = partial(parser.add_argument, dest="actions", default=[])
    add("-l", "--list", action="append_const", const=("list",), help="list the snapshots")
    for verb, metavar, purpose in (
        ("create", "NAME", "take a snapshot of the disk as it is"),
        ("apply", "SNAPSHOT", "let the disk be what it was in a snapshot, given by ID or name; what it is now is lost"),
        ("delete", "NAME", "delete the first snapshot of that name"),
    ):
        add(f"-{verb[0]}", f"--{verb}", action="append", type=_named(verb), metavar=metavar, help=purpose)
    parser.add_argument(
        "--rename",
        dest="renamed",
        nargs=2,
        action="append",
        default=[],
        metavar=("SNAPSHOT", "NAME"),
        help="give a snapshot, given by name or ID, another name",
    )
    arguments.add_output(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="accepted for qemu-img's sake; does nothing")
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image: qcow2 or raw (default: detected)")
    parser.add_argument(
        "-U", "--force-share", action="store_true", help="with -l: although another program may be writing to it"
    )
    parser.add_argument("--image-opts", action="store_true", help="FILE is given as driver=...,file.filename=...")
    arguments.add_object(parser)
    parser.add_argument("images", metavar="FILE", nargs="*", help="the image")


def _named(verb: str) -> Callable[[str], tuple[str, str]]:
    return lambda word: (verb, word)


def run(chosen: Namespace) -> int:
    chosen.image = ""
    actions = chosen.actions + [("rename", *words) for words in chosen.renamed]
    if len(actions) > 1:
        text.complain("Cannot mix '-l', '-a', '-c', '-d', '--rename'", hint=_HINT)
        return 1
    if len(chosen.images) != 1:
        text.complain("Expecting one image file name", hint=_HINT)
        return 1
    verb, *words = actions[0] if actions else ("",)
    word = chosen.images[0]
    named = image_names.chosen_image(chosen, word, chosen.format)
    if named.share and verb != "list":
        chosen.image = ""
        raise UsageError(f"Could not open {word!r}: force-share=on can only be used with read-only images")
    from qcow2c.storage.sources import opened

    if verb == "list":
        with image_names.source_of(named) as source:
            _show(_snapshots(source, named), chosen.output)
        return 0
    with opened(named.filename, writable=True) as store:
        if not verb:
            _snapshots(store, named)
            return 0
        return _change(store, named.format, verb, *words)


def _snapshots(source: str | Store, named: NamedImage) -> list[dict[str, Any]]:
    from qcow2c.ops.info import info

    found = info(source, image_format=named.format, share=named.share)
    snapshots: list[dict[str, Any]] = found.get("snapshots", [])
    return snapshots


def _show(snapshots: list[dict[str, Any]], output: str) -> None:
    if output == "json":
        text.write(text.pretty_json(snapshots) + "\n")
    elif snapshots:
        text.write("".join(line + "\n" for line in snapshot_list(snapshots)))


def _change(store: Store, image_format: str | None, verb: str, name: str, *new_name: str) -> int:
    """Change an image; what goes wrong is told in QEMU's words, and then in ours where they say more."""
    from qcow2c.format.detection import Format, known_format

    failed = f"Could not {verb} snapshot '{name}': "
    if known_format(store, image_format) is Format.RAW:
        text.complain(failed + _ON_RAW[verb])
        return 1
    try:
        _carry_out(store, verb, name, *new_name)
    except NoSuchSnapshot:
        text.complain(failed + ("Failed to load snapshot: No such file or directory" if verb == "apply" else _UNKNOWN))
    except UsageError as error:
        text.complain(failed + error.message)
    except UnsupportedFeature as error:
        _complain_twice(failed, verb, errno.EOPNOTSUPP, error)
    except LimitExceeded as error:
        _complain_twice(failed, verb, errno.EFBIG if error.spec == "Snapshots" else errno.EINVAL, error)
    else:
        return 0
    return 1


def _carry_out(store: Store, verb: str, name: str, *new_name: str) -> None:
    """Make the change. Raises as the functions of `ops/snapshots.py`."""
    from qcow2c.ops import snapshots

    if verb == "create":
        snapshots.create(store, name)
    elif verb == "apply":
        snapshots.apply(store, name)
    elif verb == "delete":
        snapshots.delete(store, name, by=("name",))
    else:
        snapshots.rename(store, name, *new_name)


def _complain_twice(failed: str, verb: str, number: int, error: Qcow2Error) -> None:
    """Tell the number of a system's error that QEMU would have come upon, and what has gone wrong."""
    reason = os.strerror(number)
    text.complain(failed + (f"-{number} ({reason})" if verb == "create" else f"Failed to load snapshot: {reason}"))
    text.complain(str(error))
