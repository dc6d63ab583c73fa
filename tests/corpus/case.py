"""What a hostile image is: a name, a maker, and what is done with it where the rule is clear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .patch import Edit, Make, patched

Opens = Literal["error", "opens", "any"]
Verdict = Literal["error", "clean", "corrupt", "leaks", "any"]


@dataclass(frozen=True)
class HostileCase:
    """One malformed or hostile image.

    `expect` is what `info` does: exit status 1, exit status 0, or not ruled. `check` is the verdict of `check`
    (exit status 1, 0, 2, 3), or not ruled. `heavy` cases need a process of their own with the memory and time
    measured. `allowed` names the neighbours that the gate lets a reader of guest data open; dump, check and a
    plain info may open none. `askable` is false where the real qemu-img waits for ever.
    """

    name: str
    make: Make
    expect: Opens = "any"
    check: Verdict = "any"
    heavy: bool = False
    allowed: frozenset[str] = frozenset()
    askable: bool = True


def error(name: str, seed: str, *edits: Edit) -> HostileCase:
    """An image that no command accepts."""
    return HostileCase(name, patched(seed, *edits), expect="error", check="error")


def opens(name: str, seed: str, *edits: Edit, check: Verdict = "any") -> HostileCase:
    return HostileCase(name, patched(seed, *edits), expect="opens", check=check)


def either(name: str, seed: str, *edits: Edit) -> HostileCase:
    return HostileCase(name, patched(seed, *edits))
