"""New files are none of those that a new image is to lie on: by what they are, links included. Writes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from qcow2c.disk.opening import open_image
from qcow2c.errors import Qcow2Error, UsageError
from qcow2c.format.detection import detect_format
from qcow2c.layers.chain import files_of, layers_of
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.gate import Gate, GateRequest, any_file
from qcow2c.storage.open_file import identity_of
from qcow2c.storage.sources import opened

if TYPE_CHECKING:
    from typing import Any


_SAME = "Error: Trying to create an image with the same filename as the backing file"
"""In QEMU's words."""


def require_apart(
    target: Any,
    *,
    backing_file: str | None,
    backing_format: str | None = None,
    data_file: str | os.PathLike[str] | None = None,
    gate: str | Gate = "any",
    with_chain: bool = True,
) -> None:
    """Raise UsageError where a new image, or its data file, is its backing file, part of its chain, or the other.

    `backing_file` is as the image will name it. `with_chain` opens it to see on what it lies, for reading, where a file
    of the new ones is there already; what cannot be opened is left to who needs it. What is no path is not looked at.
    """
    names = [os.fsdecode(plain_path(name)) for name in (target, data_file) if isinstance(name, str | os.PathLike)]
    if len(names) == 2 and _is_same(*names):
        raise UsageError(f"{names[0]!r} cannot be an image and its external data file")
    if not backing_file or not names:
        return
    from pathlib import Path

    image = Path(names[0]) if isinstance(target, str | os.PathLike) else None
    with suppress(Qcow2Error):  # A protocol or the like: nothing that could be replaced.
        backing_file = str(any_file(GateRequest("backing file", backing_file, image)))
    for number, name in enumerate(names):
        if _is_same(name, backing_file):
            raise UsageError(_SAME if number == 0 else f"{name!r} cannot be a data file and the backing file")
    there = {identity: name for name in names for identity in _identity(name)}
    if with_chain and there:
        for found in _chain(backing_file, backing_format, gate):
            if found in there:
                raise UsageError(f"{there[found]!r} is part of the chain of the backing file {backing_file!r}")


def _is_same(one: str, other: str) -> bool:
    with suppress(OSError, ValueError):
        return identity_of(os.stat(one)) == identity_of(os.stat(other))
    return os.path.realpath(one) == os.path.realpath(other)


def _identity(name: str) -> Iterator[object]:
    with suppress(OSError, ValueError):
        yield identity_of(os.stat(name))


def _chain(backing_file: str, backing_format: str | None, gate: str | Gate) -> list[object]:
    """Return the identities of all files of a chain, as far as it can be opened."""
    with suppress(Qcow2Error), opened(backing_file) as store:
        if (backing_format or detect_format(store)) == "qcow2":
            with open_image(store, gate=gate, share=True) as image:
                return [identity for layer in layers_of(image.layer) for identity in files_of(layer)]
    return []
