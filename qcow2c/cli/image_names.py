"""Images as the user names them: a file name, `json:{...}`, or with --image-opts `driver=...,file.filename=...`.

Only what a user types is understood so, never what an image says. What only QEMU can do is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from qcow2c.cli import arguments, option_list, pipes, text
from qcow2c.cli.option_list import Option
from qcow2c.errors import UnsupportedFeature, UsageError, doing
from qcow2c.light import TYPE_CHECKING, NamedTuple
from qcow2c.storage import file_names

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any

    from qcow2c.cli.secrets import Secrets
    from qcow2c.disk.disk import Disk, SnapshotKey
    from qcow2c.storage.gate import Gate
    from qcow2c.storage.store import Store

_SNAPSHOT_PREFIX = "snapshot."
_SNAPSHOT_OPTIONS = (Option("snapshot.id", "str", ""), Option("snapshot.name", "str", ""))
_FORMATS = ("qcow2", "raw", "luks")
_PROTOCOLS = ("file", "host_device")
_ENCRYPT, _BACKING = "encrypt.", "backing."
_KEY_SECRET = f"{_ENCRYPT}key-secret"
_TRUE, _FALSE = (True, "on", "yes", "true", "y"), (False, "off", "no", "false", "n")


class PartOfFile(NamedTuple):
    """A part of a file: `size` is None for all from `offset` on."""

    offset: int
    size: int | None


class NamedImage(NamedTuple):
    """An image that a user has named. `format` is None where it is to be detected."""

    name: str
    place: str
    """The file."""
    format: str | None
    options: dict[str, Any]
    """Arguments of `open_disk`: `backing` and `data_file`, where they were given."""
    share: bool = False
    backing_format: str | None = None
    part: PartOfFile | None = None
    """The part of the file in which the image lies, None for all of it."""
    lower: NamedImage | None = None
    """The backing file, where it needs options of its own."""

    @property
    def filename(self) -> str:
        """The file, for those who change the image. Raises UnsupportedFeature where it is not as simple as that."""
        if self.part is not None:
            raise UnsupportedFeature("an image in a part of a file (offset=, size=) is read, and never changed")
        if self.lower is not None:
            raise UnsupportedFeature("a backing file with options of its own is read, and nothing above it changed")
        return self.place


def add_arguments(parser: ArgumentParser, what: str = "the image") -> None:
    """Add the choice to give images by options, and what may come with it."""
    parser.add_argument("--image-opts", action="store_true", help=f"{what} is given as driver=...,file.filename=...")
    arguments.add_object(parser)


def chosen_image(chosen: Namespace, word: str, image_format: str | None) -> NamedImage:
    """Return what a word of the command line names.

    All errors are about it from now on; those of this function name it themselves. Raises UsageError,
    UnsupportedFeature.
    """
    chosen.image = ""
    how = {"image_opts": chosen.image_opts, "image_format": image_format, "secrets": chosen.secrets}
    named = named_image(word, share=chosen.force_share, **how)
    chosen.image = word
    return named


def named_image(
    word: str,
    *,
    image_opts: bool = False,
    image_format: str | None = None,
    share: bool = False,
    secrets: Secrets | None = None,
) -> NamedImage:
    """Return what a word of the command line names; `secrets` open what is encrypted.

    Raises UsageError, UnsupportedFeature, in QEMU's words.
    """
    if image_opts and image_format is not None:
        raise UsageError("--image-opts and --format are mutually exclusive")
    if not image_opts and not word.startswith("json:"):
        return NamedImage(word, file_names.source_path(word), image_format, {}, share)
    with doing(f"Could not open {word!r}"):
        given = _assignments(word) if image_opts else file_names.flattened(file_names.parsed_json(word))
    if share and image_opts and given.get("force-share", True) not in _TRUE:
        raise UsageError("--force-share/-U conflicts with image options")
    with doing(f"Could not open {word!r}"):
        named = _from_options(word, given, image_format, secrets)
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


def _from_options(
    word: str, given: dict[str, Any], image_format: str | None, secrets: Secrets | None = None
) -> NamedImage:
    options: dict[str, Any] = {}
    driver = given.get("driver") if image_format is None else image_format
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
    if driver == "luks" and "key-secret" in given:
        given["encrypt.key-secret"] = given.pop("key-secret")
    part = _part(given) if driver == "raw" else None
    filename, inner = _file(given, "file")
    _require_encryption(given.pop(f"{_ENCRYPT}format", None), filename, inner)
    data_file = _data_file(given)
    with doing("Could not open backing file"):
        keys = _keys(given, secrets)
        below, backing_format = _below(given, "backing")
    lower = below if below is not None and (below.part or below.lower or below.options) else None
    if below is not None:
        options["backing"] = below.place
    if data_file is not None:
        options["data_file"] = data_file
    if keys:
        options["key"] = keys
    _require_no_more(given, f"format {driver or 'qcow2'!r} does not")
    return NamedImage(
        word, filename, driver, options, share in _TRUE, backing_format, _inside(filename, inner, part), lower
    )


def _require_encryption(stated: object, filename: str, part: PartOfFile | None) -> None:
    """Raise UsageError where an image is not encrypted as an option says; what is no image is told by others."""
    if stated is None or pipes.is_pipe(filename):
        return
    from qcow2c.constants import CryptMethod
    from qcow2c.format.detection import detect_format
    from qcow2c.format.header import Header
    from qcow2c.storage.sources import opened

    with source_of(NamedImage("", filename, None, {}, part=part)) as source, opened(source) as store:
        if detect_format(store) != "qcow2":
            return
        method = Header.load(store).crypt_method
    if not method:
        raise UsageError(f"No encryption in image header, but options specified format '{stated}'")
    found = {known.value: known.name.lower() for known in CryptMethod}.get(method, stated)
    if found != stated:
        message = f"Header reported '{found}' encryption format but options specify"
        raise UsageError(f"{message} '{stated}'")


def _keys(given: dict[str, Any], secrets: Secrets | None) -> dict[int, Callable[[str], bytes]]:
    """Take the secrets of an image and of those below it out of what is given: what asks for each, by depth."""
    found: dict[int, Callable[[str], bytes]] = {}
    for name in list(given):
        if name.endswith(_KEY_SECRET) and not name.removesuffix(_KEY_SECRET).replace(_BACKING, ""):
            from qcow2c.cli.secrets import Secrets

            found[name.count(_BACKING)] = (secrets or Secrets()).asked(str(given.pop(name)))
    return found


def _part(given: dict[str, Any]) -> PartOfFile | None:
    """Take the part of a file that is raw out of what is given."""
    found = {name: _size(name, given.pop(name)) for name in ("offset", "size") if name in given}
    return PartOfFile(found.get("offset", 0), found.get("size")) if found else None


def _size(name: str, value: object) -> int:
    words = str(value).replace(",", ",,")
    found: int = option_list.parse([f"{name}={words}"], (Option(name, "size", ""),))[name]
    return found


def _inside(filename: str, outer: PartOfFile | None, inner: PartOfFile | None) -> PartOfFile | None:
    """Return the part of a file that a part of a part is. Raises UsageError, StoreError where it does not lie in it."""
    if outer is None and inner is None:
        return None
    from qcow2c.storage.file_part import FilePart
    from qcow2c.storage.sources import opened

    with opened(filename) as whole:
        part, store = PartOfFile(0, None), whole
        for found in (outer, inner):
            if found is not None:
                store = FilePart(store, *found)
                rest = None if part.size is None else part.size - found.offset
                part = PartOfFile(part.offset + found.offset, rest if found.size is None else found.size)
    return part


def _below(given: dict[str, Any], role: str) -> tuple[NamedImage | None, str | None]:
    """Take file and format of a layer below out of what is given; None where the image above says them."""
    names = [name for name in given if name.startswith(f"{role}.")]
    part = {name.removeprefix(f"{role}."): given.pop(name) for name in names}
    driver = part.get("driver")
    if driver in _PROTOCOLS or any(name in ("file", "backing") or name.startswith("file.") for name in part):
        found = _from_options("", part, None)
        return found, found.format
    _require_known(driver)
    part.pop("driver", None)
    _require_no_more(part, f"format {driver or 'qcow2'!r} does not")
    return None, driver


def _data_file(given: dict[str, Any]) -> str | None:
    """Take the external data file, which is a raw one, out of what is given."""
    driver = given.get("data-file.driver")
    if driver == "raw":
        found, _ = _below(given, "data-file")
        return None if found is None else found.filename
    if driver in _FORMATS:
        raise UnsupportedFeature("An external data file is always raw")
    named = any(name == "data-file" or name.startswith("data-file.") for name in given)
    return _file(given, "data-file")[0] if named else None


def _file(given: dict[str, Any], prefix: str) -> tuple[str, PartOfFile | None]:
    """Take a file, and all else that begins with a prefix, out of what is given: its name, and what is meant of it."""
    names = [name for name in given if name.startswith(f"{prefix}.")]
    part = {name.removeprefix(f"{prefix}."): given.pop(name) for name in names}
    protocol = part.pop("driver", "file")
    if protocol == "raw":
        own = _part(part)
        filename, inner = _file(part, "file")
        _require_no_more(part, "format 'raw' does not")
        return filename, _inside(filename, inner, own)
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
    return filename, None


def _require_known(driver: object) -> None:
    if driver is not None and driver not in _FORMATS:
        raise UnsupportedFeature(f"Unknown driver {driver!r}")


def _require_no_more(given: dict[str, Any], driver: str) -> None:
    """Raise UnsupportedFeature for an option that cannot be honoured here."""
    for name in given:
        if name not in file_names.IGNORED_OPTIONS:
            raise UnsupportedFeature(f"Block {driver} support the option {name!r}")


@contextmanager
def source_of(named: NamedImage) -> Iterator[str | Store]:
    """Give out what an image is read from: its file, a part of it, or what came out of a pipe.

    Raises UsageError, StoreError.
    """
    from qcow2c.storage.file_part import FilePart
    from qcow2c.storage.sources import opened

    with ExitStack() as stack:
        if named.part is not None:
            whole = stack.enter_context(opened(named.place))
            yield FilePart(whole, *named.part, name=named.name or None)
        elif pipes.is_pipe(named.place):
            yield stack.enter_context(pipes.kept(named.place))
        else:
            yield named.place


@contextmanager
def open_named(named: NamedImage, *, gate: str | Gate, store: Store | None = None, **how: Any) -> Iterator[Disk]:
    """Open an image as its options say; `how` are arguments of `open_disk`. Raises as it, and UnsupportedFeature.

    `store` is what `source_of` gave out, where that is open already.
    """
    from qcow2c.disk.disk import open_disk

    with ExitStack() as stack:
        source = stack.enter_context(source_of(named)) if store is None else store
        how = {"image_format": named.format, "share": named.share, **named.options, **how}
        if named.lower is not None:
            how["backing"] = stack.enter_context(_opened_below(named.lower, gate, share=named.share))
        yield stack.enter_context(open_disk(source, gate=gate, backing_format=named.backing_format, **how))


@contextmanager
def _opened_below(named: NamedImage, gate: str | Gate, *, share: bool) -> Iterator[Any]:
    """Open a backing file that has options of its own: an image, or a part of a raw file."""
    from qcow2c.disk.opening import open_image

    with ExitStack() as stack:
        source = stack.enter_context(source_of(named))
        if named.format == "raw":
            yield source
            return
        options = {"backing_format": named.backing_format, **named.options}
        if named.lower is not None:
            options["backing"] = stack.enter_context(_opened_below(named.lower, gate, share=share))
        yield stack.enter_context(open_image(source, gate=gate, share=share or named.share, **options))


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
