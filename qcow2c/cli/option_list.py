"""Options in QEMU's form, `-o key=value,key=value`: their values, and the list that `-o help` prints."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence

from qcow2c.cli import sizes
from qcow2c.errors import UsageError
from qcow2c.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


_SIZE_HELP = (
    "expects a non-negative number below 2^64 (optional suffix k, M, G, T, P or E means "
    "kilo-, mega-, giga-, tera-, peta- and exabytes, respectively)"
)


class Option(NamedTuple):
    """One option: `kind` is "str", "size", "num" or "bool (on/off)", as the list shows it."""

    name: str
    kind: str
    meaning: str


def asks_for_help(lists: Sequence[str]) -> bool:
    """Return whether one of the words is `help` or `?`."""
    return any(word in ("help", "?") for words in lists for word in split(words))


def listing(image_format: str, options: Sequence[Option]) -> str:
    """Return the list of options, as qemu-img prints it."""
    lines = [f"Supported {image_format} options:"]
    lines += [f"  {f'{option.name}=<{option.kind}>':22} - {option.meaning}" for option in options]
    return "\n".join(lines) + "\n"


def split(words: str) -> list[str]:
    """Return the parts between commas; two commas stand for one in a value."""
    parts = re.findall(r"(?:[^,]|,,)+", words)
    return [part.replace(",,", ",") for part in parts]


def parse(lists: Sequence[str], options: Sequence[Option]) -> dict[str, Any]:
    """Return the values by name; a later one replaces an earlier one. Raises UsageError."""
    known = {option.name: option for option in options}
    found: dict[str, Any] = {}
    for words in lists:
        for part in split(words):
            name, equals, value = part.partition("=")
            if name not in known:
                raise UsageError(f"Invalid parameter {name!r}")
            found[name] = _value(known[name], value if equals else "on")
    return found


def _value(option: Option, word: str) -> Any:
    if option.kind == "size":
        try:
            return sizes.parse_size(word)
        except ArgumentTypeError as exc:
            raise UsageError(f"Parameter {option.name!r} {_SIZE_HELP}") from exc
    if option.kind == "num":
        if not re.fullmatch(r"\d+|0[xX][0-9a-fA-F]+", word):
            raise UsageError(f"Parameter {option.name!r} expects a number")
        return int(word, 0) if word[:2].lower() == "0x" else int(word)
    if option.kind.startswith("bool"):
        if word not in ("on", "off", "yes", "no", "true", "false", "y", "n"):
            raise UsageError(f"Parameter {option.name!r} expects 'on' or 'off'")
        return word in ("on", "yes", "true", "y")
    return word
