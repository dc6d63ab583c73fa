"""Modules that Construct imports and no command uses: loaded at the first use, a fifth of a short command's time.

This is for a process that lives for one command, never for a program that uses the library.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

NAMES = frozenset({"hashlib", "pdb", "pickle", "traceback"})


class _Finder:
    """Finds these modules where they are, to be loaded at the first look into them."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in NAMES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def put_off() -> None:
    """Put off loading the modules that are not loaded yet."""
    sys.meta_path.insert(0, _Finder)
