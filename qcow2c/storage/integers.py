"""Integers of callers, of any type that counts as one: those of numpy wrap around, so that inside only Python's are."""

from __future__ import annotations

from operator import index

from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, SupportsIndex


def index_or_none(value: SupportsIndex | None) -> int | None:
    """Return an integer as Python's, or None. Raises TypeError for what is neither."""
    return None if value is None else index(value)


def settle_integers(options: Any) -> None:
    """Make the integers among the fields of a new object, which may be frozen, Python's; no other value changes."""
    for name in options.__match_args__:
        value = getattr(options, name)
        if not isinstance(value, int | str | bytes) and hasattr(value, "__index__"):
            object.__setattr__(options, name, index(value))
