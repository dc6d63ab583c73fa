"""Let an image lie on another backing file, or on none (-b ""), without any change of what it shows.

What the image takes from its old backing file, and would not find in the new one, is copied into it first. With -u only
the names in the header change: for a backing file that has moved, or one that holds the same as the old one. The new
backing file is seen from the directory of the image. Options, messages and exit status are those of qemu-img rebase.

examples:
  qcow2c rebase -p -b new-base.qcow2 -F qcow2 overlay.qcow2
  qcow2c rebase --object secret,id=s,file=key -F qcow2 -b \\
    'json:{"driver":"qcow2","encrypt.key-secret":"s","file.filename":"sealed.qcow2"}' overlay.qcow2
  qcow2c rebase -c -b "" overlay.qcow2
  qcow2c rebase -u -b ../images/base.raw -F raw overlay.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack

from qcow2c.cli import arguments, image_names, interrupts, progress, text
from qcow2c.errors import Qcow2Error, UnsupportedFeature, UsageError
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.file_names import JSON_PREFIX
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from qcow2c.crypto.secrets import Key

_HINT = "qcow2c rebase --help"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image (default: detected)")
    parser.add_argument("-b", "--backing", metavar="FILE", help='the new backing file; "" for none')
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="format of the new backing file")
    parser.add_argument(
        "-u",
        "--unsafe",
        "--backing-unsafe",
        action="store_true",
        help="change the header only; no other file is opened",
    )
    parser.add_argument("-c", "--compress", action="store_true", help="compress the clusters that are copied")
    parser.add_argument(
        "-T",
        "--backing-cache",
        dest="source_cache",
        metavar="MODE",
        default="writeback",
        help="... of the backing files",
    )
    parser.add_argument(
        "-U", "--force-share", action="store_true", help="read the new backing file although it may be written to"
    )
    arguments.add_change(parser)


def run(chosen: Namespace) -> int:
    chosen.image = ""
    if len(chosen.images) != 1:
        text.complain("Expecting one image file name", hint=_HINT)
        return 1
    if not chosen.unsafe and chosen.backing is None:
        text.complain("Must specify backing file (-b) or use unsafe mode (-u)", hint=_HINT)
        return 1
    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        # The line of the progress ends before an error is told.
        report = stack.enter_context(progress.shown(wanted=chosen.progress and not chosen.quiet))
        _rebase(chosen, report)
    return 0


def _rebase(chosen: Namespace, report: Progress | None) -> None:
    for what, mode in (("cache", chosen.cache), ("source cache", chosen.source_cache)):
        if mode not in arguments.CACHE_MODES:
            raise UsageError(f"Invalid {what} option: {mode}")
    word = chosen.images[0]
    named = image_names.named_image(
        word, secrets=chosen.secrets, image_opts=chosen.image_opts, image_format=chosen.format
    )
    if named.share:
        raise UsageError(f"Could not open {word!r}: force-share=on can only be used with read-only images")
    from qcow2c.ops.rebase import NewBacking, open_overlay, rebase_overlay

    chosen.image = word
    with open_overlay(
        named.filename, unsafe=chosen.unsafe, gate=chosen.gate, image_format=named.format, **named.options
    ) as overlay:
        if named.backing_format not in (None, overlay.backing_format):
            raise UnsupportedFeature("Could not open backing file: the image says that it has another format")
        try:
            new = NewBacking(chosen.backing, chosen.backing_format, key=_new_key(chosen))
            rebase_overlay(
                overlay,
                new,
                gate=chosen.gate,
                share=chosen.force_share,
                progress=report,
                compressed=chosen.compress,
            )
        except Qcow2Error:
            chosen.image = ""  # What went wrong is told in QEMU's words, which name the file.
            raise


def _new_key(chosen: Namespace) -> Key:
    """Return the keys that the options of the new backing file name, None for a plain name. Raises UsageError."""
    word = chosen.backing
    if chosen.unsafe or not (word or "").startswith(JSON_PREFIX):
        return None
    named = image_names.named_image(word, secrets=chosen.secrets)
    if named.options.keys() - {"key"} or named.part is not None or named.lower is not None:
        message = "only its file, its format and its key can be given, for what lies below it names itself"
        raise UnsupportedFeature(f"Could not open new backing file '{word}': {message}")
    key: Key = named.options.get("key")
    return key
