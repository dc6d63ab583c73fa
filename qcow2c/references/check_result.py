"""What a check of an image found. It is told here, and found out in `full_check.py` and `ops/check.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from qcow2c.references.overlaps import Overlap


class Mismatch(NamedTuple):
    """A host cluster whose refcount is not the number of references to it."""

    cluster: int
    refcount: int
    references: int

    def __str__(self) -> str:
        word = "ERROR" if self.refcount < self.references else "Leaked"
        return f"{word} cluster {self.cluster} refcount={self.refcount} reference={self.references}"


@dataclass
class CheckResult:
    """What qemu-img check reports, under its names; `failed` says why the check could not be finished, if so."""

    filename: str
    format: str = "qcow2"
    check_errors: int = 0
    image_end_offset: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    leaks: int = 0
    corruptions: int = 0
    failed: str | None = None
    mismatches: list[Mismatch] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    """Every other kind of corruption, by rule, with how often it was found."""

    @property
    def exit_code(self) -> int:
        """0 clean, 1 not checked, 2 corrupt, 3 leaks only."""
        if self.failed is not None or self.check_errors:
            return 1
        return 2 if self.corruptions else 3 if self.leaks else 0

    @property
    def messages(self) -> Iterator[str]:
        """What was found, a line each: kinds of corruption first, then clusters."""
        for rule, count in self.broken.items():
            yield f"ERROR {rule}: {count}"
        yield from map(str, self.overlaps)
        yield from map(str, self.mismatches)
