"""The gate: decides which file a name inside an image may open. A name in an image is data from a stranger.

It resolves and refuses; it opens nothing.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Callable, Sequence

from qcow2c.errors import GateRefused, UnsupportedFeature, UsageError
from qcow2c.light import TYPE_CHECKING, frozen
from qcow2c.storage import file_names

if TYPE_CHECKING:
    from pathlib import Path

POLICIES = ("deny", "directory", "any")


@frozen
class GateRequest:
    """An image asks for another file: `role` is "backing file" or "data file", `name` as the image has it.

    `image` is the path of the image that asks, None where it is no local file; `url` is where it is then, if anywhere.
    """

    role: str
    name: str
    image: Path | None
    url: str | None = None


GateFunction = Callable[[GateRequest], "str | os.PathLike[str]"]
"""Returns the path to open, or raises GateRefused."""

Gate = GateFunction | Sequence[str | os.PathLike[str]]
"""What decides, beside the name of a policy: a function, or directories that are allowed beside the image's own."""


def gate_for(policy: str | Gate) -> GateFunction:
    """Return the gate of a policy name or of directories, or the callable itself. Raises UsageError."""
    if callable(policy):
        return policy
    if isinstance(policy, Sequence) and not isinstance(policy, str | bytes):
        return directories(policy)
    try:
        return {"deny": deny, "directory": same_directory, "any": any_file}[policy]
    except KeyError:
        known = ", ".join(POLICIES)
        raise UsageError(f"unknown gate {policy!r}, not one of {known}, a list of directories, or a callable") from None


def deny(request: GateRequest) -> str:
    """Refuse every file."""
    raise _refusal(request, "no other file may be opened", _directory_of(request))


def same_directory(request: GateRequest) -> str:
    """Allow a name that leads into the directory of the image that has it, links resolved; no device there."""
    return _inside(request, ())


def directories(allowed: Sequence[str | os.PathLike[str]]) -> GateFunction:
    """Return a gate that allows names that lead into the image's own directory, or into one of these, or below them.

    Relative directories are seen from the working directory of now. Raises UsageError for an empty name.
    """
    roots = tuple(os.path.realpath(_required(directory)) for directory in allowed)
    return lambda request: _inside(request, roots)


def any_file(request: GateRequest) -> str:
    """Allow any local file."""
    return _joined(request)


def join(request: GateRequest) -> str:
    """Return the name as a path: relative to the directory of the image that has it, as QEMU does.

    Raises UsageError, UnsupportedFeature for what is no name of a local file.
    """
    name = file_names.local_name(request.name).path
    # Path says "." where there is no directory: the name then stays as it is, as QEMU shows it.
    directory = "" if request.image is None else str(request.image.parent)
    return name if directory in ("", ".") else os.path.join(directory, name)


def format_in(name: str) -> str | None:
    """Return the format that a `json:` name states, None where it states none."""
    try:
        return file_names.local_name(name).format
    except (UsageError, UnsupportedFeature):
        return None


def full_name(image: str, name: str) -> str:
    """Return the name of another file as seen from where the image's own name is: both stay text, as QEMU has it."""
    head, colon, _ = name.partition(":")
    if name.startswith("/") or (colon and "/" not in head):
        return name
    return image[: image.rfind("/") + 1] + name


def _required(directory: str | os.PathLike[str]) -> str | os.PathLike[str]:
    if not os.fspath(directory):
        raise UsageError("a gate cannot allow a directory without a name")
    return directory


def _inside(request: GateRequest, roots: Sequence[str]) -> str:
    """Return the path of a name that leads into the image's directory or below one of the roots. Raises GateRefused."""
    if request.url is not None:
        return _beside_url(request, request.url)
    joined = _joined(request)
    real = os.path.realpath(joined)
    if any(_is_below(real, root) for root in roots):
        return joined
    if any(_is_below(real, root) for root in _own_directories(request)):
        if not _is_device(real):
            return joined
        raise _refusal(request, "it is a device", os.path.dirname(real))
    raise _refusal(request, _way_out(request, joined, real), os.path.dirname(real))


def _beside_url(request: GateRequest, url: str) -> str:
    """Return the URL of a name that leads into the directory of the image, on the same store. Raises GateRefused."""
    from urllib.parse import quote

    name = request.name.removeprefix(file_names.FILE_PREFIX)
    parts = name.split("/")
    if not name or "\0" in name or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
        raise _refusal(request, "it is no name of a file beside a URL", "")
    if name.startswith("/") or ".." in parts:
        raise _refusal(request, "it leads out of the directory of the image's URL", "")
    bare = re.split(r"[?#]", url, maxsplit=1)[0] if url.startswith(_QUOTED_URLS) else url
    return bare[: bare.rfind("/") + 1] + (quote(name) if url.startswith(_QUOTED_URLS) else name)


_QUOTED_URLS = ("http://", "https://")
"""Beginnings of URLs in which names are quoted."""


def _own_directories(request: GateRequest) -> tuple[str, ...]:
    """Return the directory in which the image is named, and the one in which it lies, links resolved."""
    if request.image is None:
        return ()
    return os.path.realpath(request.image.parent), os.path.dirname(os.path.realpath(request.image))


def _is_device(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)


def _is_below(path: str, directory: str) -> bool:
    return os.path.commonpath([directory, path]) == directory


def _way_out(request: GateRequest, joined: str, real: str) -> str:
    """Return how a name leads out of the image's directory, in words."""
    if real != os.path.abspath(joined):
        return f"it is a link out of the image's directory, to {real!r}"
    if os.path.isabs(file_names.local_name(request.name).path):
        return "it is an absolute path out of the image's directory"
    return "it leaves the image's directory"


def _directory_of(request: GateRequest) -> str:
    """Return what allows a request: the policy that does, or the directory of the file; "" where nothing does."""
    try:
        same_directory(request)
    except GateRefused:
        pass
    else:
        return "directory"
    try:
        return os.path.dirname(os.path.realpath(_joined(request)))
    except GateRefused:
        return ""


def _joined(request: GateRequest) -> str:
    """Return the path of a name of a local file. Raises GateRefused."""
    name = request.name
    if request.url is not None:
        return _beside_url(request, request.url)
    if not name or "\0" in name:
        raise _refusal(request, "it is no file name", "")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name) and not name.startswith(("file:", "json:")):
        raise _refusal(request, "it is no local file", "")
    try:
        path = file_names.local_name(name).path
        joined = join(request)
    except (UsageError, UnsupportedFeature) as exc:
        raise _refusal(request, f"it is no local file that can be understood ({exc})", "") from exc
    if not path or "\0" in path:
        raise _refusal(request, "it is no file name", "")
    if request.image is None and not os.path.isabs(path):
        raise _refusal(request, "the image is no local file, so that its name says nothing", "")
    return joined


def _refusal(request: GateRequest, reason: str, allow: str) -> GateRefused:
    """Return a refusal; `allow` is a policy or a directory with which the file is opened, "" where none does."""
    argument = "backing" if request.role == "backing file" else "data_file"
    if not allow:
        hint = "give"
    elif allow in POLICIES or os.pathsep in allow or not allow.isprintable():
        policy = allow if allow in POLICIES else "any"
        hint = f"allow it with --gate {policy} (gate={policy!r}), or give"
    else:
        hint = f"allow its directory with --gate {shlex.quote(allow)} (gate={[allow]!r}), or give"
    return GateRefused(f"{request.role} {request.name!r} is not opened: {reason}; {hint} the file itself ({argument}=)")
