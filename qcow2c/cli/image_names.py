"""Images as the user names them: a file name, `json:{...}`, or with --image-opts `driver=...,file.filename=...`.

Only what a user types is understood so, never what an image says. What only QEMU can do is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from qcow2c.cli import option_list, text
from qcow2c.cli.option_list import Option
from qcow2c.errors import UnsupportedFeature, UsageError, doing
from qcow2c.storage import file_names

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from qcow2c.disk.disk import Disk, SnapshotKey
    from qcow2c.storage.gate import Gate

_SNAPSHOT_PREFIX = "snapshot."
_SNAPSHOT_OPTIONS = (Option("snapshot.id", "str", ""), Option("snapshot.name", "str", ""))
_FORMATS = ("qcow2", "raw")
_PROTOCOLS = ("file", "host_device")
_TRUE, _FALSE = (True, "on", "yes", "true", "y"), (False, "off", "no", "false", "n")


class NamedImage(NamedTuple):
    """An image that a user has named. `format` is None where it is to be detected."""

    name: str
    filename: str
    format: str | None
    options: dict[str, Any]
    """Arguments of `open_disk`: `backing` and `data_file`, where they were given."""
    share: bool = False
    backing_format: str | None = None


def add_arguments(parser: ArgumentParser, what: str = "the image") -> None:
    """Add the choice to give images by options, and what may come with it."""
    parser.add_argument("--image-opts", action="store_true", help=f"{what} is given as driver=...,file.filename=...")
    parser.add_argument("--object", metavar="OBJECT", help="accepted for qemu-img's sake; no keys are needed here")


def chosen_image(chosen: Namespace, word: str, image_format: str | None) -> NamedImage:
    """Return what a word of the command line names.

    All errors are about it from now on; those of this function name it themselves. Raises UsageError,
    UnsupportedFeature.
    """
    chosen.image = ""
    named = named_image(word, image_opts=chosen.image_opts, image_format=image_format, share=chosen.force_share)
    chosen.image = word
    return named


def named_image(
    word: str, *, image_opts: bool = False, image_format: str | None = None, share: bool = False
) -> NamedImage:
    """Return what a word of the command line names. Raises UsageError, UnsupportedFeature, in QEMU's words."""
    if image_opts and image_format is not None:
        raise UsageError("--image-opts and --format are mutually exclusive")
    if not image_opts and not word.startswith("json:"):
        return NamedImage(word, file_names.plain_path(word), image_format, {}, share)
    with doing(f"Could not open {word!r}"):
        given = _assignments(word) if image_opts else file_names.flattened(file_names.parsed_json(word))
    if share and image_opts and given.get("force-share", True) not in _TRUE:
        raise UsageError("--force-share/-U conflicts with image options")
    with doing(f"Could not open {word!r}"):
        named = _from_options(word, given, image_format)
    return named._replace(share=share or named.share)


def _assignments(words: str) -> dict[str, Any]:
    """Return options by name. A first word without a value is the name of a block device, any other is on."""
    found: dict[str, Any] = {}
    for number, part in enumerate(option_list.split(words)):
        name, equals, value = part.partition("=")
        if equals:
            found[name] = value
        elif not number:
            found["file"] = name
        else:
            found[name] = "on"
    return found


def _from_options(word: str, given: dict[str, Any], image_format: str | None) -> NamedImage:
    options: dict[str, Any] = {}
    driver = image_format or given.get("driver")
    given.pop("driver", None)
    if driver in _PROTOCOLS:
        driver, given = "raw", {f"file.{name}": value for name, value in (("driver", driver), *given.items())}
    _require_known(driver)
    if driver is None and not any(name == "file" or name.startswith("file.") for name in given):
        raise UsageError("Must specify either driver or file")
    share = given.pop("force-share", "off")
    if share not in (*_TRUE, *_FALSE):
        raise UsageError("Parameter 'force-share' expects 'on' or 'off'")
    if given.get("backing", "none") in (None, ""):
        if given.pop("backing") is not None:
            text.note('qcow2c: warning: Use of "backing": "" is deprecated; use "backing": null instead')
        options["backing"] = False
    filename = _file(given, "file")
    data_file = _data_file(given)
    with doing("Could not open backing file"):
        backing, backing_format = _below(given, "backing")
    options |= {name: value for name, value in (("backing", backing), ("data_file", data_file)) if value is not None}
    _require_no_more(given, f"format {driver or 'qcow2'!r} does not")
    return NamedImage(word, filename, driver, options, share in _TRUE, backing_format)


def _below(given: dict[str, Any], role: str) -> tuple[str | None, str | None]:
    """Take file name and format of a layer below out of what is given; None where the image above says them."""
    names = [name for name in given if name.startswith(f"{role}.")]
    part = {name.removeprefix(f"{role}."): given.pop(name) for name in names}
    driver = part.pop("driver", None)
    if driver in _PROTOCOLS:
        driver, part = "raw", {f"file.{name}": value for name, value in (("driver", driver), *part.items())}
    _require_known(driver)
    filename = _file(part, "file") if any(name == "file" or name.startswith("file.") for name in part) else None
    _require_no_more(part, f"format {driver or 'qcow2'!r} does not")
    return filename, driver


def _data_file(given: dict[str, Any]) -> str | None:
    """Take the external data file, which is a raw one, out of what is given."""
    driver = given.get("data-file.driver")
    if driver == "raw":
        return _below(given, "data-file")[0]
    if driver in _FORMATS:
        raise UnsupportedFeature("An external data file is always raw")
    named = any(name == "data-file" or name.startswith("data-file.") for name in given)
    return _file(given, "data-file") if named else None


def _file(given: dict[str, Any], prefix: str) -> str:
    """Take the file name, and all else that begins with a prefix, out of what is given."""
    names = [name for name in given if name.startswith(f"{prefix}.")]
    part = {name.removeprefix(f"{prefix}."): given.pop(name) for name in names}
    protocol = part.pop("driver", "file")
    if protocol not in _PROTOCOLS:
        raise UnsupportedFeature(f"Unknown driver {protocol!r}")
    filename = part.pop("filename", None)
    device = given.pop(prefix, None)
    if isinstance(device, str):
        raise UsageError(f"Cannot find device={device!r} nor node-name={device!r}")
    if not names:
        raise UsageError(f'A block device must be specified for "{prefix}"')
    if not isinstance(filename, str) or not filename:
        raise UsageError(f"The {protocol!r} block driver requires a file name")
    _require_no_more(part, f"protocol {protocol!r} doesn't")
    return filename


def _require_known(driver: object) -> None:
    if driver is not None and driver not in _FORMATS:
        raise UnsupportedFeature(f"Unknown driver {driver!r}")


def _require_no_more(given: dict[str, Any], driver: str) -> None:
    """Raise UnsupportedFeature for an option that cannot be honoured here."""
    for name in given:
        if name not in file_names.IGNORED_OPTIONS:
            raise UnsupportedFeature(f"Block {driver} support the option {name!r}")


def open_named(named: NamedImage, *, gate: str | Gate, **how: Any) -> AbstractContextManager[Disk]:
    """Open an image as its options say; `how` are arguments of `open_disk`. Raises as it, and UnsupportedFeature."""
    from qcow2c.disk.disk import open_disk

    disk = open_disk(named.filename, image_format=named.format, gate=gate, share=named.share, **named.options, **how)
    return disk if named.backing_format is None else _with_backing(disk, named.backing_format)


@contextmanager
def _with_backing(opened: AbstractContextManager[Disk], image_format: str) -> Iterator[Disk]:
    """Open a disk whose backing file must have a format: the image above it has the last word."""
    with opened as disk:
        found = disk.backing_format
        if found not in (None, image_format):
            raise UnsupportedFeature(f"Could not open backing file: the image says that its format is {found!r}")
        yield disk


def snapshot_key(words: str | None) -> str | SnapshotKey | None:
    """Return the internal snapshot that -l names: an ID or a name, or either by its option. Raises UsageError."""
    if words is None or not words.startswith(_SNAPSHOT_PREFIX):
        return words
    from qcow2c.disk.disk import SnapshotKey

    try:
        found = option_list.parse([words], _SNAPSHOT_OPTIONS)
    except UsageError as exc:
        raise UsageError(f"{exc}\nFailed in parsing snapshot param {words!r}") from exc
    return SnapshotKey(found.get("snapshot.id"), found.get("snapshot.name"))
