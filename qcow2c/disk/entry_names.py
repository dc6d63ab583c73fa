"""Names of snapshots and bitmaps as names of files: each name in one form, each form of one name.

A byte that a file name cannot have, or should not, is `%XX` in upper case: `/`, `%`, control and format characters,
bytes that are no UTF-8, and both dots of `.` and `..`. A name that is empty, is there already, or is longer than
file names may be (then it is cut) has `%@N` at its end: it is the N-th of its table, from 1 on.
"""

from __future__ import annotations

from collections.abc import Iterable
from unicodedata import category

MAX_NAME_BYTES = 255
"""What the file systems of Linux take."""

_DOTS = {".": "%2E", "..": "%2E%2E"}
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")


def entry_names(names: Iterable[str]) -> list[str]:
    """Return a file name for each of the names of a table, in which bytes that are no UTF-8 are surrogates."""
    found: dict[str, None] = {}
    for number, name in enumerate(names, 1):
        entry = _DOTS.get(name) or "".join(map(_escaped, name))
        if not entry or entry in found or len(entry.encode()) > MAX_NAME_BYTES:
            mark = f"%@{number}"
            entry = _cut(entry, MAX_NAME_BYTES - len(mark)) + mark
        found[entry] = None
    return list(found)


def _escaped(char: str) -> str:
    if char not in "/%" and category(char) not in _ESCAPED:
        return char
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))


def _cut(entry: str, size: int) -> str:
    """Return the beginning of a name, of so many bytes at most, without half a character or half an escape."""
    kept = entry.encode()[:size].decode("utf-8", "ignore")
    return kept[: kept.rindex("%")] if "%" in kept[-2:] else kept
