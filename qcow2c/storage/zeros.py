"""Zero bytes, shared by all readers, without making them anew."""

from __future__ import annotations

_ZEROS = bytes(1 << 20)


def zeros(length: int) -> memoryview:
    """Return `length` zero bytes; short lengths share one buffer."""
    return memoryview(_ZEROS)[:length] if length <= len(_ZEROS) else memoryview(bytes(length))


def fill_zeros(buffer: memoryview) -> None:
    """Zero a buffer of any length without making another of that length."""
    for start in range(0, len(buffer), len(_ZEROS)):
        part = buffer[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
