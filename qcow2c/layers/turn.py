"""Turns: what a reader holds while it reads guest data, where its image is written or its state can go away."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

AT_ONCE = nullcontext()
"""The turn of a reader whose image is not written."""


class While:
    """A turn that raises, before and after a read, once what is read is there no more."""

    def __init__(self, require: Callable[[], None]) -> None:
        """`require` raises then."""
        self._require = require

    def __enter__(self) -> None:
        self._require()

    def __exit__(self, *_raised: object) -> None:
        self._require()
