"""Secrets on the command line: `--object secret,id=...,file=...`, and the encryption of new images that they open.

A passphrase is in a file, or, for what is no secret at all, in `data=`; it is read when the command begins, as in QEMU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qcow2c.cli import option_list
from qcow2c.cli.option_list import Option
from qcow2c.errors import UnsupportedFeature, UsageError
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.crypto.new_encryption import Encryption

_KNOWN = ("id", "data", "file", "format")
_FOR_QEMU = ("keyid", "iv", "loaded")
PREFIX = "encrypt."
_PARTS = ("cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg", "iter-time")
_CIPHER, _MODE, _GENERATOR = "aes-256", "xts", "plain64"

OPTIONS = (
    Option("encrypt.cipher-alg", "str", "Name of encryption cipher algorithm"),
    Option("encrypt.cipher-mode", "str", "Name of encryption cipher mode"),
    Option("encrypt.format", "str", "Encrypt the image, format choices: 'aes', 'luks'"),
    Option("encrypt.hash-alg", "str", "Name of encryption hash algorithm"),
    Option("encrypt.iter-time", "num", "Time to spend in PBKDF in milliseconds"),
    Option("encrypt.ivgen-alg", "str", "Name of IV generator algorithm"),
    Option("encrypt.ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
    Option("encrypt.key-secret", "str", "ID of secret providing qcow AES key or LUKS passphrase"),
    Option(
        "encryption",
        "bool (on/off)",
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
)
"""What create and convert take for encryption."""


VOLUME_OPTIONS = (
    *(
        option._replace(name=option.name.removeprefix(PREFIX))
        for option in OPTIONS
        if option.name.startswith(PREFIX) and option.name != f"{PREFIX}format"
    ),
    Option("size", "size", "Virtual disk size"),
)
"""What a raw LUKS volume is made with."""


class Secrets:
    """The secrets that a command was given, by their IDs."""

    def __init__(self, objects: Sequence[str] = ()) -> None:
        """Take the words of each --object. Raises UsageError, UnsupportedFeature, none of which shows a secret."""
        self._found: dict[str, bytes] = {}
        for words in objects:
            name, secret = _secret(words)
            if name in self._found:
                raise UsageError(f"attempt to add duplicate property '{name}' to object (type 'container')")
            self._found[name] = secret

    def __repr__(self) -> str:
        return f"<Secrets: {', '.join(self._found)}>"

    def get(self, name: str) -> bytes:
        """Return a secret. Raises UsageError where there is none."""
        if name not in self._found:
            raise UsageError(f"No secret with id '{name}'")
        return self._found[name]

    def asked(self, name: str) -> Callable[[str], bytes]:
        """Return what gives a secret when it is needed; `get` raises then."""
        return lambda _image: self.get(name)

    def encryption(self, options: dict[str, Any]) -> Encryption | None:
        """Take the options of encryption out of those of a new image. Raises UsageError, UnsupportedFeature."""
        given = {name.removeprefix(PREFIX): options.pop(name) for name in list(options) if name.startswith(PREFIX)}
        if options.pop("encryption", False):
            if "format" in given:
                raise UsageError("Options encryption and encrypt.format are mutually exclusive")
            given["format"] = "aes"
        if not given:
            return None
        if "format" not in given:
            raise UsageError("Parameter 'encrypt.format' is missing")
        for name in _PARTS if given["format"] == "aes" else ():
            if name in given:
                raise UsageError(f"Parameter 'encrypt.{name}' is unexpected")
        if "key-secret" not in given:
            raise UsageError("Parameter 'encrypt.key-secret' is required for cipher")
        return self._made(given)

    def _made(self, given: dict[str, Any]) -> Encryption:
        from qcow2c.crypto.new_encryption import ITER_TIME_MS, Encryption
        from qcow2c.format.luks import CIPHER_KEY_BYTES, CIPHER_MODES, HASHES, IV_GENERATORS

        ciphers = [f"{name}-{length * 8}" for name, lengths in CIPHER_KEY_BYTES.items() for length in lengths]
        for name, known in (
            ("cipher-alg", ciphers),
            ("cipher-mode", CIPHER_MODES),
            ("ivgen-alg", IV_GENERATORS),
            ("ivgen-hash-alg", HASHES),
            ("hash-alg", HASHES),
        ):
            if name in given and given[name] not in known:
                raise UsageError(f"Parameter '{name}' does not accept value '{given[name]}'")
        words = [given.get("cipher-alg", _CIPHER), given.get("cipher-mode", _MODE), given.get("ivgen-alg", _GENERATOR)]
        if words[2] == "essiv":
            words[2] += f":{given.get('ivgen-hash-alg', 'sha256')}"
        return Encryption(
            given["format"],
            self.get(given["key-secret"]),
            "-".join(words),
            given.get("hash-alg", "sha256"),
            given.get("iter-time", ITER_TIME_MS),
        )


def settle(options: dict[str, Any], secrets: Secrets | None, image_format: str = "qcow2") -> None:
    """Let options of a new image have its encryption as a whole. Raises UsageError, UnsupportedFeature."""
    if image_format == "luks":
        if "key-secret" not in options:
            raise UsageError("Parameter 'key-secret' is required for cipher")
        for name in [name for name in options if name != "size"]:
            options[PREFIX + name] = options.pop(name)
        options[f"{PREFIX}format"] = "luks"
    encryption = (secrets or Secrets()).encryption(options)
    if encryption is not None:
        options["encryption"] = encryption


def _secret(words: str) -> tuple[str, bytes]:
    """Return the ID of a secret, and what it is. Raises UsageError, UnsupportedFeature."""
    kind, *parts = option_list.split(words) or [""]
    given: dict[str, str] = {}
    for part in [kind, *parts] if "=" in kind else parts:
        name, _, value = part.partition("=")
        given[name] = value
    kind = given.pop("qom-type", kind)
    if kind != "secret":
        raise UnsupportedFeature(f"--object {kind}: only secrets are known here, other objects only to QEMU")
    for name in given:
        if name in _FOR_QEMU:
            raise UnsupportedFeature(f"--object secret: the option {name!r} can only be honoured by QEMU")
        if name not in _KNOWN:
            raise UsageError(f"Parameter '{name}' is unexpected")
    if not given.get("id"):
        raise UsageError("Parameter 'id' is missing")
    return given["id"], _data(given)


def _data(given: dict[str, str]) -> bytes:
    if "file" in given and "data" in given:
        raise UsageError("'file' and 'data' are mutually exclusive")
    if "file" not in given and "data" not in given:
        raise UsageError("Either 'file' or 'data' must be provided")
    from qcow2c.crypto.secrets import decoded, read_secret_file

    data = read_secret_file(given["file"]) if "file" in given else given["data"].encode("utf-8", "surrogateescape")
    return decoded(data, given.get("format", "raw"), given["id"])
