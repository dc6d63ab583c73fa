"""The error tree, where in a file an error lies, and what was being done. Owns no rule and prints nothing.

Qcow2Error                      everything this package raises on purpose
├── NotQcow2                    the bytes are no qcow2 image (magic, version, too short)
├── UnsupportedFeature          valid, but of a kind that cannot be read (unknown incompatible feature, ...)
├── CorruptMetadata             a structure breaks the specification or a limit
│   └── LimitExceeded           ... by being larger than anything that is believed
├── CorruptData                 a guest cluster that cannot be read (past the end of the file, bad compressed data)
├── MissingKey                  guest data is encrypted and no key was given
├── WrongKey                    the key that was given opens no key slot
├── GateRefused                 an image names a file that the gate does not allow to be opened
├── ChainError                  a loop in the backing chain, or too many layers
├── StoreError                  the file itself: not found, not a regular file, I/O error (also an OSError)
│   └── ImageLocked             ... in use by another program in a way that excludes this one
└── UsageError                  an argument of the caller that cannot be honoured (also a ValueError)
    └── NoSuchSnapshot          ... for the image has no internal snapshot of that name or ID
"""

from __future__ import annotations

import os

from qcow2c.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


class Span(NamedTuple):
    """A byte range of a file: `offset` up to, not including, `offset + length`."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def __str__(self) -> str:
        return f"bytes {self.offset:#x}..{max(self.offset, self.end - 1):#x}"


def readable(message: str) -> str:
    r"""Return a message in which bytes of names that are no UTF-8 stand as \xff, as they do outside of quotes.

    In quotes, which `repr` has made, they stand for what Python has for such a byte, "\udcff".
    """
    if "\\udc" not in message:
        return message
    import re  # Late: few names need it.

    return re.sub(r"(?<!\\)((?:\\\\)*)\\udc([89a-f][0-9a-f])", r"\1\\x\2", message)


class Qcow2Error(Exception):
    """Root of the tree. `where`: byte range in the file; `guest`: on the virtual disk; `spec`: section."""

    exit_code = 1

    def __init__(self, message: str, *, where: Span | None = None, guest: Span | None = None, spec: str = "") -> None:
        message = readable(message)
        super().__init__(message)
        self.message = message
        self.where = where
        self.guest = guest
        self.spec = spec

    def __str__(self) -> str:
        places = []
        if self.where is not None:
            places.append(f"file {self.where}")
        if self.guest is not None:
            places.append(f"guest {self.guest}")
        return f"{self.message} ({', '.join(places)})" if places else self.message


class NotQcow2(Qcow2Error):
    """The bytes are no qcow2 image."""


class UnsupportedFeature(Qcow2Error):
    """The image is of a kind that this package, like QEMU, does not read."""


class CorruptMetadata(Qcow2Error):
    """A structure breaks the specification."""


class LimitExceeded(CorruptMetadata):
    """A count or length is above the bound up to which it is believed."""


class CorruptData(Qcow2Error):
    """A guest cluster cannot be read; `guest` and `where` say which and where it should be."""


class MissingKey(Qcow2Error):
    """Guest data is encrypted and no key was given."""


class WrongKey(Qcow2Error):
    """The key that was given does not open the image."""


class GateRefused(Qcow2Error):
    """An image names a file that the gate does not allow to be opened."""


class ChainError(Qcow2Error):
    """The backing chain loops, or is deeper than the limit."""


class StoreError(Qcow2Error, OSError):
    """The file under the image cannot be used: missing, no regular file, or an I/O error.

    `errno` is the number of the system's error, None where there was none; `strerror` says it in the system's words, or
    is the message. `filename` is the name by which the file was opened, None where it has none.
    """

    def __init__(
        self,
        message: str,
        *,
        where: Span | None = None,
        guest: Span | None = None,
        spec: str = "",
        errno: int | None = None,
        filename: str | None = None,
    ) -> None:
        super().__init__(message, where=where, guest=guest, spec=spec)
        self.errno = errno
        self.strerror = self.message if errno is None else os.strerror(errno)
        self.filename = filename

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what OSError keeps outside the instance's dictionary, too."""
        kept = {"errno": self.errno, "strerror": self.strerror, "filename": self.filename}
        return type(self), self.args, vars(self) | kept


class ImageLocked(StoreError):
    """Another program, or another part of this one, uses the file in a way that excludes this use."""


class UsageError(Qcow2Error, ValueError):
    """An argument of the caller cannot be honoured."""


class NoSuchSnapshot(UsageError):
    """The image has no internal snapshot of a name or an ID."""


class doing:
    """Say what is being done: an error of this package that ends the block says so first.

        with doing("error while reading from old backing file"):
            disk.read_into(buffer, offset)

    With `exit_code` the error has that one, too.
    """

    def __init__(self, what: str, *, exit_code: int | None = None) -> None:
        self._what = what
        self._exit_code = exit_code

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Qcow2Error):
            error.message = f"{self._what}: {error.message}"
            if self._exit_code is not None:
                error.exit_code = self._exit_code


class SpaceKept(RuntimeWarning):
    """A change was made, and durable; only the space that it frees could not be given back to the system."""


def warn_of_space(cause: StoreError) -> None:
    """Warn that only space was not given back. Raises StoreError for somebody who wants warnings to be errors."""
    import warnings  # Late: few need it.

    message = f"{cause}; the change was made, and the file keeps the space"
    try:
        warnings.warn(message, SpaceKept, stacklevel=4)
    except SpaceKept:
        raise StoreError(message, errno=cause.errno, filename=cause.filename) from cause
