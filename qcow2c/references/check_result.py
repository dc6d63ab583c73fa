"""What a check of an image found. It is told here, and found out in `full_check.py` and `ops/check.py`."""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.errors import Span
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.rules import LOST_OWNERS
from qcow2c.light import TYPE_CHECKING, NamedTuple, each, mutable

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.references.overlaps import Overlap


LEAK = "refcount.leak"
"""The rule that a refcount is no higher than the references."""


class Fault(NamedTuple):
    """One thing that is wrong, with its place: the bytes of an entry, of a table, or of a field.

    `times` is how often a check counts it: an entry of a table that several states have is one fault, counted for each.
    """

    rule: str
    message: str
    where: Span | None
    times: int = 1
    spec: str = ""

    def __str__(self) -> str:
        return self.message if self.times == 1 else f"{self.message}, counted {self.times} times"


class Mismatch(NamedTuple):
    """A host cluster whose refcount is not the number of references to it."""

    cluster: int
    refcount: int
    references: int

    def __str__(self) -> str:
        word = "Leaked" if self.is_leak else "ERROR"
        return f"{word} cluster {self.cluster} refcount={self.refcount} reference={self.references}"

    @property
    def is_leak(self) -> bool:
        """Whether the refcount is too high."""
        return self.refcount > self.references


@mutable
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
    mismatches: list[Mismatch] = each(factory=list)
    overlaps: list[Overlap] = each(factory=list)
    broken: dict[str, int] = each(factory=dict)
    """Every other kind of corruption, by rule, with how often it was found."""
    doubts: tuple[str, ...] = ()
    """Why clusters that look leaked may be data of tables that are lost; empty where they are leaks."""
    faults: list[Fault] = each(factory=list)
    """Where that is: the first of them; their `times` add up to `broken` where all are listed."""

    @property
    def exit_code(self) -> int:
        """0 clean, 1 not checked, 2 corrupt, 3 leaks only."""
        if self.failed is not None or self.check_errors:
            return 1
        return 2 if self.corruptions else 3 if self.leaks else 0

    @property
    def has_lost_owners(self) -> bool:
        """Whether a record that owns clusters cannot be read for what it is: what looks like leaks may be its own."""
        return not LOST_OWNERS.isdisjoint(self.broken)

    @property
    def messages(self) -> Iterator[str]:
        """What was found, a line for each place, in the order in which QEMU says it: copied bits come last."""
        yield from (str(fault) for fault in self.faults if fault.rule != "copied")
        yield from map(str, self.overlaps)
        for mismatch in self.mismatches:
            is_lost = mismatch.is_leak and self.has_lost_owners
            yield str(mismatch).replace("Leaked", "ERROR") if is_lost else str(mismatch)
        yield from (str(fault) for fault in self.faults if fault.rule == "copied")

    @property
    def message_count(self) -> int:
        """How many messages there would be, with what was found and is not listed."""
        listed = sum(fault.times for fault in self.faults) + self.broken.get("overlap", 0)
        unlisted = sum(self.broken.values()) - listed + self.wrong_refcounts - len(self.mismatches)
        return len(self.faults) + len(self.overlaps) + len(self.mismatches) + max(0, unlisted)

    @property
    def wrong_refcounts(self) -> int:
        """How many clusters have a wrong refcount; `mismatches` lists the first of them."""
        return self.leaks + self.corruptions - sum(self.broken.values())

    def findings(self, cluster_size: int) -> Iterator[Finding]:
        """Yield what is listed as findings of a dump: leaks are warnings, the rest are errors."""
        spec = "Host cluster management"
        for fault in self.faults:
            times = 1 if fault.where is None else fault.times
            yield Finding(fault.rule, Severity.ERROR, _bare(fault.message), fault.where, fault.spec, times=times)
        for overlap in self.overlaps:
            span = Span(overlap.cluster * cluster_size, cluster_size)
            yield Finding("overlap", Severity.ERROR, _bare(str(overlap)), span, spec)
        for mismatch in self.mismatches:
            rule, severity = (LEAK, Severity.WARNING) if mismatch.is_leak else ("refcount.low", Severity.ERROR)
            span = Span(mismatch.cluster * cluster_size, cluster_size)
            yield Finding(rule, severity, _bare(str(mismatch)), span, spec)

    def facts(self) -> list[dict[str, Any]]:
        """Return what was found as plain values under the names of the JSON output, as far as it is listed."""
        found: list[dict[str, Any]] = []
        for fault in self.faults:
            place = {} if fault.where is None else {"offset": fault.where.offset, "length": fault.where.length}
            found.append({"rule": fault.rule, "message": fault.message, "times": fault.times} | place)
        for overlap in self.overlaps:
            found.append({"rule": "overlap", "message": str(overlap), "cluster": overlap.cluster})
        for mismatch in self.mismatches:
            rule = LEAK if mismatch.is_leak else "refcount.low"
            found.append({"rule": rule, "message": str(mismatch)} | mismatch._asdict())
        return found


def _bare(message: str) -> str:
    """Return a message without the word for its severity, which a finding has by itself."""
    return message.removeprefix("ERROR").removeprefix(":").strip()
