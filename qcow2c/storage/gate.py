"""The gate: decides which file a name inside an image may open. A name in an image is data from a stranger.

It resolves and refuses; it opens nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcow2c.errors import GateRefused, UsageError

if TYPE_CHECKING:
    from pathlib import Path

POLICIES = ("deny", "directory", "any")


@dataclass(frozen=True, slots=True)
class GateRequest:
    """An image asks for another file: `role` is "backing file" or "data file", `name` as the image has it.

    `image` is the path of the image that asks, None where it is no local file.
    """

    role: str
    name: str
    image: Path | None


Gate = Callable[[GateRequest], "str | os.PathLike[str]"]
"""Returns the path to open, or raises GateRefused."""


def gate_for(policy: str | Gate) -> Gate:
    """Return the gate of a policy name, or the callable itself. Raises UsageError."""
    if callable(policy):
        return policy
    try:
        return {"deny": deny, "directory": same_directory, "any": any_file}[policy]
    except KeyError:
        raise UsageError(f"unknown gate {policy!r}, not one of {', '.join(POLICIES)} or a callable") from None


def deny(request: GateRequest) -> str:
    """Refuse every file."""
    raise _refusal(request, "no other file may be opened", "directory")


def same_directory(request: GateRequest) -> str:
    """Allow a relative name that stays inside the directory of the image that has it, links resolved."""
    name = _local_name(request)
    if os.path.isabs(name):
        raise _refusal(request, "it is an absolute path")
    if os.pardir in name.split(os.sep):
        raise _refusal(request, "it leaves the image's directory")
    joined = join(request)
    directory = os.path.realpath(os.path.dirname(joined) if request.image is None else request.image.parent)
    real = os.path.realpath(joined)
    if os.path.commonpath([directory, real]) != directory:
        raise _refusal(request, f"it is a link out of the image's directory, to {real!r}")
    return joined


def any_file(request: GateRequest) -> str:
    """Allow any local file."""
    _local_name(request)
    return join(request)


def join(request: GateRequest) -> str:
    """Return the name as a path: relative to the directory of the image that has it, as QEMU does."""
    name = _without_scheme(request.name)
    # Path says "." where there is no directory: the name then stays as it is, as QEMU shows it.
    directory = "" if request.image is None else str(request.image.parent)
    return name if directory in ("", ".") else os.path.join(directory, name)


def full_name(image: str, name: str) -> str:
    """Return the name of another file as seen from where the image's own name is: both stay text, as QEMU has it."""
    head, colon, _ = name.partition(":")
    if name.startswith("/") or (colon and "/" not in head):
        return name
    return image[: image.rfind("/") + 1] + name


def _without_scheme(name: str) -> str:
    return name.removeprefix("file:")


def _local_name(request: GateRequest) -> str:
    name = _without_scheme(request.name)
    if not name or "\0" in name:
        raise _refusal(request, "it is no file name", "")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
        raise _refusal(request, "it is no local file", "")
    if request.image is None:
        raise _refusal(request, "the image is no local file, so that its name says nothing", "")
    return name


def _refusal(request: GateRequest, reason: str, allow: str = "any") -> GateRefused:
    argument = request.role.replace(" ", "_").removesuffix("_file") if "backing" in request.role else "data_file"
    hint = f"allow it with --gate {allow} (gate={allow!r}), or give" if allow else "give"
    return GateRefused(f"{request.role} {request.name!r} is not opened: {reason}; {hint} the file itself ({argument}=)")
