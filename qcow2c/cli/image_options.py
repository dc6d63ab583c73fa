"""Images as the user names them: a file name, `json:{...}`, or with --image-opts `driver=...,file.filename=...`.

Only what a user types is understood so, never what an image says. What only QEMU can do is refused by name.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from qcow2c.cli import option_list
from qcow2c.cli.option_list import Option
from qcow2c.errors import UnsupportedFeature, UsageError

if TYPE_CHECKING:
    from qcow2c.disk import SnapshotKey

_SNAPSHOT_PREFIX = "snapshot."
_SNAPSHOT_OPTIONS = (Option("snapshot.id", "str", ""), Option("snapshot.name", "str", ""))
_FORMATS = ("qcow2", "raw")
_PROTOCOLS = ("file", "host_device")
_IGNORED = {
    "aio", "auto-read-only", "cache-clean-interval", "cache-size", "cache.direct", "cache.no-flush", "detect-zeroes",
    "discard", "drop-cache", "force-share", "l2-cache-entry-size", "l2-cache-size", "lazy-refcounts", "locking",
    "node-name", "overlap-check", "pass-discard-other", "pass-discard-request", "pass-discard-snapshot", "read-only",
    "refcount-cache-size", "x-check-cache-dropped",
}  # fmt: skip
"""Options that change how QEMU works, and not what is in a disk."""


class NamedImage(NamedTuple):
    """An image that a user has named. `format` is None where it is to be detected."""

    name: str
    filename: str
    format: str | None
    options: dict[str, Any]
    """Arguments of `open_disk`: `backing` and `data_file`, where they were given."""


def named_image(word: str, *, image_opts: bool = False, image_format: str | None = None) -> NamedImage:
    """Return what a word of the command line names. Raises UsageError, UnsupportedFeature."""
    if image_opts:
        if image_format is not None:
            raise UsageError("--image-opts and --format are mutually exclusive")
        return _from_options(word, dict(_assignments(word)), None)
    if word.startswith("json:"):
        try:
            value = json.loads(word.removeprefix("json:"))
        except ValueError as exc:
            raise UsageError(f"Could not open {word!r}: no valid JSON: {exc}") from None
        if not isinstance(value, dict):
            raise UsageError(f"Could not open {word!r}: JSON value must be an object")
        return _from_options(word, dict(_flattened(value)), image_format)
    return NamedImage(word, word.removeprefix("file:"), image_format, {})


def _assignments(words: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for part in option_list.split(words):
        name, equals, value = part.partition("=")
        found.append((name, value) if equals else ("file.filename", name) if not found else (name, "on"))
    return found


def _flattened(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested objects as pairs of dotted names and values."""
    found: list[tuple[str, Any]] = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            found += _flattened(inner, f"{prefix}{name}.")
        else:
            found.append((prefix + name, inner))
    return found


def _from_options(word: str, given: dict[str, Any], image_format: str | None) -> NamedImage:
    options: dict[str, Any] = {}
    driver = given.pop("driver", image_format)
    if driver in _PROTOCOLS:
        driver, given = "raw", {f"file.{name}": value for name, value in given.items()}
    if driver is not None and driver not in _FORMATS:
        raise UnsupportedFeature(f"Unknown driver {driver!r}: an image can be qcow2 or raw")
    if given.pop("backing", "") is None:
        options["backing"] = False
    filename = _file(given, "file", required=True)
    for role, argument in (("backing", "backing"), ("data-file", "data_file")):
        below = {name.removeprefix(f"{role}."): given.pop(name) for name in list(given) if name.startswith(f"{role}.")}
        if below:
            options[argument] = _below(role, below)
    for name in given:
        if name not in _IGNORED:
            raise UnsupportedFeature(f"Parameter {name!r} of {word!r} is not supported: only QEMU can honour it")
    return NamedImage(word, str(filename), driver, options)


def _below(role: str, given: dict[str, Any]) -> str:
    """Return the file of a layer below, whose format the image above says."""
    driver = given.pop("driver", None)
    if driver in _PROTOCOLS:
        given = {f"file.{name}": value for name, value in given.items()}
    elif driver is not None and driver not in _FORMATS:
        raise UnsupportedFeature(f"Unknown driver {driver!r} of {role}: an image can be qcow2 or raw")
    filename = _file(given, "file", required=True)
    for name in given:
        if name not in _IGNORED:
            raise UnsupportedFeature(f"Parameter '{role}.{name}' is not supported: only QEMU can honour it")
    return str(filename)


def _file(given: dict[str, Any], prefix: str, *, required: bool) -> Any:
    """Take the file name, and all else that begins with a prefix, out of what is given."""
    names = [name for name in given if name.startswith(f"{prefix}.")]
    part = {name.removeprefix(f"{prefix}."): given.pop(name) for name in names}
    protocol = part.pop("driver", "file")
    if protocol not in _PROTOCOLS:
        raise UnsupportedFeature(f"Unknown driver {protocol!r} of {prefix}: only local files can be opened")
    filename = part.pop("filename", given.pop("filename", None))
    for name in part:
        if name not in _IGNORED:
            raise UnsupportedFeature(f"Parameter '{prefix}.{name}' is not supported: only QEMU can honour it")
    if filename is None and required:
        raise UsageError(f"A block device must be specified for {prefix!r}: file.filename is missing")
    return filename


def snapshot_key(words: str | None) -> str | SnapshotKey | None:
    """Return the internal snapshot that -l names: an ID or a name, or either by its option. Raises UsageError."""
    if words is None or not words.startswith(_SNAPSHOT_PREFIX):
        return words
    from qcow2c.disk import SnapshotKey

    try:
        found = option_list.parse([words], _SNAPSHOT_OPTIONS)
    except UsageError as exc:
        raise UsageError(f"{exc}\nFailed in parsing snapshot param {words!r}") from exc
    return SnapshotKey(found.get("snapshot.id"), found.get("snapshot.name"))
