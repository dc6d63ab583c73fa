"""File names as QEMU writes them: plain ones, `file:NAME`, `json:{...}`; and the protocols that only QEMU speaks.

It parses text; it opens nothing, and does not decide whether a name may be opened.
"""

from __future__ import annotations

import re

from qcow2c.errors import UnsupportedFeature, UsageError
from qcow2c.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


FILE_PREFIX, JSON_PREFIX = "file:", "json:"

PROTOCOLS = frozenset(
    {
        "blkdebug", "blklogwrites", "blkreplay", "blkverify", "dmg", "fat", "fd", "ftp", "ftps", "gluster",
        "gluster+rdma", "gluster+tcp", "gluster+unix", "host_cdrom", "http", "https", "io_uring", "iscsi", "iser",
        "nbd", "nbd+tcp", "nbd+unix", "nfs", "null-aio", "null-co", "nvme", "nvme-io_uring", "quorum", "rbd",
        "sheepdog", "sheepdog+tcp", "sheepdog+unix", "ssh", "tftp", "virtio-blk-vfio-pci", "virtio-blk-vhost-user",
        "virtio-blk-vhost-vdpa", "vvfat", "vxhs",
    }
)  # fmt: skip
"""What QEMU takes for no local file in front of a colon."""

_URL_PROTOCOLS = frozenset({"ftp", "ftps", "http", "https"})
"""Those of them that others speak, too."""

IGNORED_OPTIONS = frozenset(
    {
        "aio", "auto-read-only", "cache-clean-interval", "cache-size", "cache.direct", "cache.no-flush",
        "detect-zeroes", "discard", "drop-cache", "encrypt.format", "encrypt.key-secret", "l2-cache-entry-size",
        "l2-cache-size", "lazy-refcounts", "locking", "node-name", "overlap-check", "pass-discard-other",
        "pass-discard-request", "pass-discard-snapshot", "read-only", "refcount-cache-size", "x-check-cache-dropped",
    }
)  # fmt: skip
"""Options that change how QEMU works, and not what is in a disk; keys, which only guest data needs."""

_FORMATS = ("qcow2", "raw")

_STRING = r"""(?xs) "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' """
_QUOTE = r'(?s)(\\.)|"'
"""A quote, or a character with its backslash."""


class LocalName(NamedTuple):
    """A local file, as a name in QEMU's form says it. `format` is None where the name says none."""

    path: str
    format: str | None = None


def local_name(name: str) -> LocalName:
    """Return the local file that a name means. Raises UnsupportedFeature for a protocol, UsageError for bad JSON."""
    if name.startswith(JSON_PREFIX):
        return _of_options(flattened(parsed_json(name)))
    protocol = protocol_of(name)
    if is_url(name):
        raise UnsupportedFeature(f"{name!r} is a URL, and no local file: what is at a URL is only read")
    if protocol is not None:
        raise UnsupportedFeature(
            f"{name!r} is no local file: only QEMU speaks the protocol {protocol!r} (a file of that name is './{name}')"
        )
    return LocalName(name.removeprefix(FILE_PREFIX))


def plain_path(path: Any) -> Any:
    """Return a path without its `file:`; only text is understood so, a Path or anything else comes back as it is.

    Raises UnsupportedFeature for a protocol that only QEMU speaks, and for `json:`.
    """
    if not isinstance(path, str) or ":" not in path:
        return path
    if path.startswith(JSON_PREFIX):
        raise UnsupportedFeature(f"{path!r} is no file name: only the command line takes options in its place")
    return local_name(path).path


def is_url(name: object) -> bool:
    """Return whether a name is a URL that fsspec may know: `SCHEME://`, and none of those that only QEMU speaks."""
    if not isinstance(name, str) or "://" not in name:
        return False
    protocol = protocol_of(name)
    return protocol is not None and (protocol.lower() not in PROTOCOLS or protocol.lower() in _URL_PROTOCOLS)


def source_path(path: Any) -> Any:
    """Return what a source is read from: as `plain_path`, or a URL as it is."""
    return path if is_url(path) else plain_path(path)


def protocol_of(name: str) -> str | None:
    """Return the protocol that a name begins with, None where it means a local file."""
    head, colon, rest = name.partition(":")
    if not colon or "/" in head or head == "file":
        return None
    return head if head.lower() in PROTOCOLS or (rest.startswith("//") and re.fullmatch(r"[\w+.-]+", head)) else None


def parsed_json(name: str) -> dict[str, Any]:
    """Return the object in a `json:` name; as for QEMU, strings may be in single quotes. Raises UsageError."""
    import json  # Late: few names need it.

    try:
        value = json.loads(re.sub(_STRING, _in_double_quotes, name.removeprefix(JSON_PREFIX)))
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"Could not parse the JSON options: JSON parse error, {exc}") from None
    if not isinstance(value, dict):
        raise UsageError("Invalid JSON object given")
    return value


def _in_double_quotes(string: re.Match[str]) -> str:
    inner = string[0][1:-1].replace("\\'", "'")
    return '"' + re.sub(_QUOTE, lambda found: found[1] or '\\"', inner) + '"'


def flattened(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested objects as dotted names and their values."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            found |= flattened(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = inner
    return found


def _of_options(given: dict[str, Any]) -> LocalName:
    """Return the file of flattened options. Raises UsageError, UnsupportedFeature."""
    driver = given.pop("driver", None)
    if driver == "file":
        given, driver = {f"file.{name}": value for name, value in given.items()}, None
    if driver is not None and driver not in _FORMATS:
        raise UnsupportedFeature(f"Unknown driver {driver!r}")
    protocol = given.pop("file.driver", "file")
    if protocol != "file":
        raise UnsupportedFeature(f"Unknown driver {protocol!r}")
    path = given.pop("file.filename", None)
    if not isinstance(path, str) or not path:
        raise UsageError("The 'file' block driver requires a file name")
    for name in given:
        if name.removeprefix("file.") not in IGNORED_OPTIONS:
            raise UnsupportedFeature(f"option {name!r}")
    return LocalName(path, driver)
