"""Sizes as words: what a user types (`1.5G`), and what qemu-img prints (`1.5 GiB`). Powers of 1024 throughout."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError

SUFFIXES_HELP = (
    "You may use k, M, G, T, P or E suffixes for\nkilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
)
"""What qemu-img says, in two lines, of a size that is none."""

_MULTIPLES = {"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
"""log2 of what a suffix stands for."""

_LARGEST = (1 << 63) - 1
_PREFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_SIZE = r"\s*\+?(?:(?P<hex>0[xX][0-9a-fA-F]+)|(?P<whole>\d+)(?:\.(?P<fraction>\d*))?)(?P<suffix>[a-zA-Z]?)"


def parse_size(words: str) -> int:
    """Return the bytes that a size stands for: decimal, with a fraction where a suffix scales it, or hexadecimal.

    Raises ArgumentTypeError, for argparse to report.
    """
    match = re.fullmatch(_SIZE, words)
    bits = _MULTIPLES.get(match["suffix"].upper()) if match else None
    if match is None or bits is None:
        raise ArgumentTypeError(f"{words!r} is no size: give a number, with k, M, G, T, P or E for powers of 1024")
    size = int(match["hex"], 16) << bits if match["hex"] else int(match["whole"]) << bits
    fraction = match["fraction"]
    if fraction and int(fraction):
        if not bits:
            raise ArgumentTypeError(f"{words!r} is no size: a byte has no fraction")
        # Rounded to the nearest byte, half a byte up.
        size += ((int(fraction) << bits + 1) // 10 ** len(fraction) + 1) >> 1
    if size > _LARGEST:
        raise ArgumentTypeError(f"{words!r} is no size: it must be between 0 and {_LARGEST}")
    return size


def rounded(size: int) -> str:
    """Return a size with three digits and a binary prefix, as qemu-img does."""
    power = 0
    while size / (1 << 10 * power) >= 1000 and power < len(_PREFIXES) - 1:
        power += 1
    return f"{size / (1 << 10 * power):.3g} {_PREFIXES[power]}B"
