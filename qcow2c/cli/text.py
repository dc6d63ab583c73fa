"""Text as it leaves the program: escaped for a terminal, or as JSON in QEMU's form. Knows no command."""

from __future__ import annotations

import sys
from contextlib import suppress

from qcow2c.cli import output
from qcow2c.errors import readable
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


_INDENT = "    "
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def write(words: str) -> None:
    """Write a result to standard output; text that is not ASCII goes out as UTF-8, whatever the terminal's locale.

    Raises OutputLost.
    """
    output.put(words.encode("utf-8", "surrogateescape"))


def report(words: str) -> None:
    """Write about work, which counts whether or not this can be written: see `output.lost`."""
    with suppress(output.OutputLost):
        output.put(words.encode("utf-8", "surrogateescape"), now=True)


def complain(message: str, *, hint: str = "") -> None:
    """Write one line about what went wrong to standard error, and one with the command that helps."""
    note(f"qcow2c: {message}")
    if hint:
        note(f"Try '{hint}' for more information")


def note(line: str) -> None:
    """Write one line to standard error, after all that was written to standard output; it may be closed or full."""
    with suppress(output.OutputLost):
        output.flush()
    if sys.stderr is None:
        return
    with suppress(OSError):
        sys.stderr.flush()
        sys.stderr.buffer.write((printable(readable(line)) + "\n").encode("utf-8", "surrogateescape"))
        sys.stderr.buffer.flush()


def printable(words: str) -> str:
    """Return a text with control and format characters, line ends, and bytes that are no UTF-8 as escapes."""
    if words.isprintable():
        return words
    from unicodedata import category

    return "".join(_escaped(char) if category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char for char in words)


def _escaped(char: str) -> str:
    code = ord(char)
    if "\udc80" <= char <= "\udcff":  # A byte that os.fsdecode could not decode.
        code &= 0xFF
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def pretty_json(value: Any, depth: int = 0) -> str:
    """Return a value in QEMU's pretty form of JSON: four spaces, ASCII, upper-case escapes."""
    inner, outer = "\n" + _INDENT * (depth + 1), "\n" + _INDENT * depth
    if isinstance(value, dict):
        pieces = [f"{inner}{_quoted(key)}: {pretty_json(found, depth + 1)}" for key, found in value.items()]
        return "{" + ",".join(pieces) + outer + "}"
    if isinstance(value, list):
        return "[" + ",".join(inner + pretty_json(found, depth + 1) for found in value) + outer + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(words: str) -> str:
    if words.isascii() and words.isprintable() and '"' not in words and "\\" not in words:
        return f'"{words}"'
    return '"' + "".join(map(_json_char, words)) + '"'


def _json_char(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    code = ord(_REPLACEMENT if "\ud800" <= char <= "\udfff" else char)
    if " " <= char < "\x7f":
        return char
    if code > 0xFFFF:
        pair = char.encode("utf-16-be").hex().upper()
        return f"\\u{pair[:4]}\\u{pair[4:]}"
    return f"\\u{code:04X}"
