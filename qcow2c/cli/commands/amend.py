"""Change options of an image that exists: its version, its refcounts, its size. -o help lists them.

The snapshots stay as they are, and so does the disk, unless it gets another size. What cannot be done is told before
anything is changed. The options, the messages and the exit status are those of qemu-img amend.

examples:
  qcow2c amend -o compat=1.1,lazy_refcounts=on disk.qcow2
  qcow2c amend -o compat=0.10 disk.qcow2
  qcow2c amend -p -o refcount_bits=64 disk.qcow2
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from qcow2c.cli import arguments, image_names, interrupts, option_list, progress, secrets, text
from qcow2c.cli.commands.create import QCOW2_OPTIONS
from qcow2c.cli.option_list import Option
from qcow2c.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qcow2c.crypto.secrets import OneKey
    from qcow2c.storage.store import Store

_FOR_CREATION = ("cluster_size", "compression_type", "extended_l2", "extent_size_hint", "nocow", "preallocation")
_KEYS = (
    Option("encrypt.iter-time", "num", "Time to spend in PBKDF in milliseconds"),
    Option("encrypt.keyslot", "num", "Select a single keyslot to modify explicitly"),
    Option("encrypt.new-secret", "str", "New secret to set in the matching keyslots. Empty string to erase"),
    Option("encrypt.old-secret", "str", "Select all keyslots that match this password"),
    Option("encrypt.state", "str", "Select new state of affected keyslots (active/inactive)"),
)
_KEPT = [option for option in QCOW2_OPTIONS if option.name not in _FOR_CREATION and option not in secrets.OPTIONS]
OPTIONS = tuple(sorted([*_KEPT, *_KEYS]))
_VOLUME_OPTIONS = tuple(option._replace(name=option.name.removeprefix(secrets.PREFIX)) for option in _KEYS)
_KNOWN = {"qcow2": (OPTIONS, QCOW2_OPTIONS), "luks": (_VOLUME_OPTIONS, secrets.VOLUME_OPTIONS)}
"""Of each format the options of amend, and those of create."""
_HINT = "qcow2c amend --help"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image: qcow2, or luks (default: detected)")
    arguments.add_creation_options(parser, "the image")
    parser.add_argument("--force", action="store_true", help="allow to overwrite key slots, and to remove the last one")
    arguments.add_change(parser)


def run(chosen: Namespace) -> int:
    chosen.image = ""
    try:
        return _run(chosen)
    except UsageError as error:  # In QEMU's words, which need no name of the image.
        first, *hints = error.message.splitlines()
        text.complain(first)
        for line in hints:
            text.note(line)
        return 1


def _run(chosen: Namespace) -> int:
    _require_lists(chosen.options)
    if not chosen.options:
        text.complain("Must specify options (-o)", hint=_HINT)
        return 1
    if chosen.format is not None and option_list.asks_for_help(chosen.options):
        return _help(chosen.format)
    if len(chosen.images) != 1:
        raise UsageError("Expecting one image file name")
    if chosen.cache not in arguments.CACHE_MODES:
        raise UsageError(f"Invalid cache option: {chosen.cache}")
    word = chosen.images[0]
    named = image_names.named_image(
        word, secrets=chosen.secrets, image_opts=chosen.image_opts, image_format=chosen.format
    )
    if named.share:
        raise UsageError(f"Could not open {word!r}: force-share=on can only be used with read-only images")
    from qcow2c.ops.amend import Amendment, amend_store, format_of_amendable, open_amendable

    chosen.image = word
    if format_of_amendable(named.filename, named.format) == "luks":
        _amend_volume(chosen, named)
        return 0
    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        # The line of the progress ends before an error is told.
        stack.enter_context(progress.shown(wanted=chosen.progress and not chosen.quiet))
        store = stack.enter_context(open_amendable(named.filename, image_format=named.format))
        if option_list.asks_for_help(chosen.options):
            return _help("qcow2")
        options = _options(chosen.options, "qcow2")
        keys = {name: options.pop(name) for name in list(options) if name.startswith(secrets.PREFIX)}
        wish = Amendment(**options)
        if keys:
            _change_keys(store, keys, named.options.get("key"), chosen)
        amend_store(store, wish, gate=chosen.gate, **named.options)
    return 0


def _require_lists(lists: list[str]) -> None:
    """Raise UsageError for a list that begins or ends with a comma; a value can: there two stand for one."""
    for words in lists:
        if not words or any(len(found) % 2 for found in re.findall(r"^,+|,+$", words)):
            raise UsageError(f"Invalid option list: {words}")


def _amend_volume(chosen: Namespace, named: image_names.NamedImage) -> None:
    """Change key slots of a raw LUKS volume. Raises UsageError, WrongKey."""
    if option_list.asks_for_help(chosen.options):
        _help("luks")
        return
    chosen.image = ""
    keys = named.options.get("key")
    if not keys:
        raise UsageError(f"Could not open {named.name!r}: Parameter 'key-secret' is required for cipher")
    given = _options(chosen.options, "luks")
    chosen.image = named.name
    _change_keys(named.filename, given, keys, chosen)


def _change_keys(
    store: str | Store, given: dict[str, Any], keys: Mapping[int, OneKey] | None, chosen: Namespace
) -> None:
    """Change key slots as the options of encryption say. Raises UsageError, WrongKey."""
    from qcow2c.ops.keys import SlotChange, change_slots

    known = chosen.secrets or secrets.Secrets()
    values = {name.removeprefix(secrets.PREFIX): value for name, value in given.items()}
    for name in ("new-secret", "old-secret"):
        if name in values:
            values[name] = known.get(values[name])
    if "state" not in values:
        raise UsageError("Parameter 'state' is missing")
    wish = SlotChange(
        values["state"], values.get("keyslot"), values.get("new-secret"), values.get("old-secret"),
        values.get("iter-time"),
    )  # fmt: skip
    change_slots(store, (keys or {}).get(0), wish, force=chosen.force)


def _help(image_format: str) -> int:
    from qcow2c.ops.amend import require_amendable

    if image_format not in _KNOWN:
        require_amendable(image_format)
    _, *lines = option_list.listing(image_format, _KNOWN[image_format][0]).splitlines()
    text.write("\n".join([f"Amend options for '{image_format}':", *lines, ""]))
    return 0


def _options(lists: list[str], image_format: str) -> dict[str, Any]:
    """Return the options as values. Raises UsageError, with a hint where create knows what amend does not."""
    own, of_create = _KNOWN[image_format]
    try:
        return option_list.parse(lists, own)
    except UsageError as error:
        try:
            option_list.parse(lists, of_create)
        except UsageError:
            raise error from None
        raise UsageError(f"{error}\nThis option is only supported for image creation") from error
