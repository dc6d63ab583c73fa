"""Integers of callers, of any type that counts as one: those of numpy wrap around, so that inside only Python's are."""

from __future__ import annotations

from dataclasses import fields
from operator import index
from typing import Any, SupportsIndex


def index_or_none(value: SupportsIndex | None) -> int | None:
    """Return an integer as Python's, or None. Raises TypeError for what is neither."""
    return None if value is None else index(value)


def settle_integers(options: Any) -> None:
    """Make the integers of a new dataclass, which may be frozen, Python's; all other values are left as they are."""
    for field in fields(options):
        value = getattr(options, field.name)
        if not isinstance(value, int | str | bytes) and hasattr(value, "__index__"):
            object.__setattr__(options, field.name, index(value))
