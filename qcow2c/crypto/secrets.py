"""Secrets of the caller: a passphrase that shows itself nowhere, and the forms in which it is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NoReturn, SupportsIndex

from qcow2c.errors import UsageError

OneKey = bytes | bytearray | str | Callable[[str], bytes | bytearray | str]
"""A passphrase, or what is asked for it, with the name of the image, only where one is encrypted."""

Key = OneKey | Mapping[str | os.PathLike[str] | int, OneKey] | None
"""The same for all encrypted layers of a chain, or one for each: by its file, or by its depth, 0 the top layer."""

_MOST_BYTES = 1 << 20
"""Of a secret's file: longer than any passphrase, shorter than a disk that was named by mistake."""


class Secret:
    """A passphrase as bytes. It is in no repr, and cannot be pickled."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        return "<Secret>"

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a secret cannot be copied or pickled")


def secret_of(key: OneKey, name: str) -> Secret:
    """Return one key as a secret, asking for it where it is a function. Raises UsageError."""
    found: object = key(name) if callable(key) else key
    if isinstance(found, str):
        return Secret(found.encode("utf-8", "surrogateescape"))
    if isinstance(found, bytes | bytearray | memoryview):
        return Secret(bytes(found))
    raise UsageError(f"a key is bytes, str, a function, or a mapping of these, not {type(found).__name__}")


def decoded(data: bytes, form: str, name: str) -> bytes:
    """Return a secret that is given as "raw" or "base64". Raises UsageError, which does not show it."""
    if form == "raw":
        return data
    if form != "base64":
        raise UsageError(f"Parameter 'format' does not accept value {form!r}")
    import base64  # Late: a secret is hardly ever given so.
    import binascii

    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        raise UsageError(f"Base64 data of secret {name!r} is not valid") from None


def read_secret_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a secret's file. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as exc:
        raise UsageError(f"Unable to read {os.fspath(path)}: {exc.strerror}") from exc
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{os.fspath(path)!r} is longer than a secret can be, {_MOST_BYTES} bytes")
    return data
