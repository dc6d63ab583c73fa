"""What a repair will do to an image, and what it leaves alone: decided from what the image holds, before any change.

What breaks a rule is not made to read as zeros, and what nothing refers to is not freed where it may be data:

    what is wrong                        repair
    ------------------------------------ ---------------------------------------------------------------------------
    refcount too high, in use            lowered; not with doubt (see doubt.py), because of what shares it
    refcount, but no reference (leak)    freed (its bytes stay); not with doubt; not what holds stale bitmaps
    refcount too low                     raised: of two owners each copies before it writes; none is chosen
    more references than a refcount says left as it is, at the largest refcount
    refcount table or block damaged,     all refcounts written anew behind the end of everything, and named by one
      missing, or overlapped               write of the header; not where references lead there already
    copied bit wrong                     set where the refcount is 1, else cleared; in tables that nothing overlaps
    l1.reserved, l2.reserved             cleared, if what remains is a whole entry whose cluster has the refcount of
                                           its references; not with doubt
    l2.compressed_copied                 cleared: the bit means nothing there; not with doubt
    l2.misaligned, without data          a zero cluster without a place, or no cluster, as it reads; not with doubt
    any other rule of L1 and L2 entries, left as it is: it is unknown which bit is wrong, and to forget the place of
      entries past the end of the file     data would lose it
    overlaps of metadata                 refcounts raised, nothing else
    record that may own what is lost     left as it is, and with it every refcount that is too high (LOST_OWNERS)
    snapshot table                       left as it is, and with it, where it cannot be read, everything
    bitmaps that break a rule            left as they are; the header says that all bitmaps are stale (forsaken.py)
    dirty bit                            cleared, if no corruption remains
    corrupt bit                          cleared, if besides nothing overlaps and nothing is left because of doubt

With doubt, the entries stay that are its evidence, so that a second repair does not free what the first one kept.
`allow_data_loss` means that there is no doubt: what nothing refers to is freed, as QEMU does. `what` is "leaks" for
refcounts that are too high only, and copied bits where nothing else is wrong.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c.errors import Span
from qcow2c.recovery.doubt import Doubt
from qcow2c.recovery.survey import Survey
from qcow2c.references.batches import flat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcow2c.format.array_types import U64Array

MAX_ACTIONS = 10_000
"""Actions that a plan lists; `count` has all of them."""


class RepairKind(enum.Enum):
    """What is done to a place."""

    RAISE = "raise-refcount"
    LOWER = "lower-refcount"
    FREE = "free"
    KEEP = "keep"
    """Nothing: what may be data stays as it is, leaked."""
    REBUILD = "rebuild-refcounts"
    COPIED = "copied-bit"
    ENTRY = "entry"
    HEADER = "header"


@dataclass(frozen=True, slots=True)
class RepairAction:
    """One thing that a repair does. `host` is what it is about: clusters, or the bytes of an entry or a field.

    `old` and `new` are refcounts, or the word that is replaced.
    """

    kind: RepairKind
    host: Span
    old: int
    new: int
    reason: str
    guest: Span | None = None
    may_lose_data: bool = False

    def __str__(self) -> str:
        is_count = self.kind in (RepairKind.RAISE, RepairKind.LOWER, RepairKind.FREE, RepairKind.KEEP)
        change = f"{self.old} -> {self.new}" if is_count else f"{self.old:#x} -> {self.new:#x}"
        guest = "" if self.guest is None else f", guest {self.guest}"
        loss = "; DATA MAY BE LOST" if self.may_lose_data else ""
        return f"{self.kind.value} {self.host}{guest}: {change} ({self.reason}{loss})"

    def facts(self) -> dict[str, Any]:
        """Return the action as plain values under the names of the JSON output."""
        found: dict[str, Any] = {"kind": self.kind.value, "host-offset": self.host.offset}
        found["host-length"] = self.host.length
        if self.guest is not None:
            found |= {"guest-offset": self.guest.offset, "guest-length": self.guest.length}
        return found | {"old": self.old, "new": self.new, "reason": self.reason, "may-lose-data": self.may_lose_data}


@dataclass
class Plan:
    """What a repair will do, in order. `doubts` say why something is kept; `refused` why something cannot be done."""

    actions: list[RepairAction] = field(default_factory=list)
    count: int = 0
    doubts: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lowered: int = 0
    """Clusters whose refcount was too high, and will not be."""
    raised: int = 0
    copied: int = 0
    """Copied bits that are corrected."""
    kept: int = 0
    """Clusters with a refcount above their references that are left because of doubt."""

    def add(self, *actions: RepairAction) -> None:
        self.count += len(actions)
        self.actions += actions[: max(0, MAX_ACTIONS - len(self.actions))]

    def drop(self, kind: RepairKind) -> None:
        """Take back what was planned of a kind."""
        self.count -= sum(action.kind is kind for action in self.actions)
        self.actions = [action for action in self.actions if action.kind is not kind]


class PlannedRefcounts:
    """The refcounts that the clusters of an image are to have: see the module's docstring."""

    def __init__(self, survey: Survey, doubt: Doubt, *, rebuild: bool, lower_only: bool, allow_data_loss: bool) -> None:
        self.survey = survey
        self.rebuild = rebuild
        self.has_doubt = bool(doubt.reasons)
        self.keeps = self.has_doubt and not allow_data_loss
        self._held = doubt.held
        self._lower_only = lower_only
        self._allow_data_loss = allow_data_loss
        self._once: NDArray[np.bool_] | None = None

    def of(self, first: int, count: int) -> tuple[U64Array, U64Array]:
        """Return the present refcounts and those to be; shapes (count,). `first` begins a refcount block."""
        survey = self.survey
        old = survey.old(first, count)
        new = survey.references(first, count, structures=not self.rebuild)
        if self._lower_only:
            new = np.minimum(new, old)
        if self.keeps:
            new = np.maximum(new, old)
            if self.rebuild:
                unknown = self._held[first : first + count] & ~survey.is_believable(first, count)
                new[unknown & (new == 0)] = 1
        for start, end in () if self._allow_data_loss else survey.stale:
            rows = slice(max(start - first, 0), max(end - first, 0))
            new[rows] = np.maximum(new[rows], old[rows])
        return old, np.minimum(new, np.uint64(min(survey.geometry.refcount_max, (1 << 64) - 1)))

    def once(self) -> NDArray[np.bool_]:
        """Return for each cluster whether its refcount will be 1; shape (clusters,)."""
        if self._once is None:
            self._once = flat(self.survey.clusters, np.bool_)
            for first, count in self.survey.chunks():
                self._once[first : first + count] = self.of(first, count)[1] == 1
        return self._once

    def add_to(self, plan: Plan) -> None:
        """Add what becomes of the refcounts to a plan, adjacent clusters as one action."""
        for first, count in self.survey.chunks():
            old, new = self.of(first, count)
            references = self.survey.references(first, count)
            needed = self.survey.references(first, count, structures=not self.rebuild)
            kept = (new >= old) & (new > needed)
            rows = np.flatnonzero((old != new) | kept)
            if not len(rows):
                continue
            plan.lowered += int(np.count_nonzero((new < old) & (old > references)))
            plan.raised += int(np.count_nonzero((old < references) & (new >= needed)))
            plan.kept += int(np.count_nonzero(kept))
            values = np.stack((old[rows], new[rows], references[rows], needed[rows]))
            breaks = (np.diff(rows) != 1) | (np.diff(values.astype(np.int64)) != 0).any(axis=0)
            edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(rows)]
            bits = self.survey.bits
            for start, end in pairwise(edges):
                was, will, times, later = (int(number) for number in values[:, start])
                span = Span((first + int(rows[start])) << bits, (end - start) << bits)
                plan.add(self._action(span, was, will, times, is_kept=will >= was and will > later))

    def _action(self, span: Span, old: int, new: int, references: int, *, is_kept: bool) -> RepairAction:
        if is_kept:
            reason = f"{references} references; kept, because tables may be lost" if self.keeps else "stale bitmaps"
            return RepairAction(RepairKind.KEEP, span, old, new, reason)
        if new > old:
            return RepairAction(RepairKind.RAISE, span, old, new, f"{references} references")
        if new:
            return RepairAction(
                RepairKind.LOWER, span, old, new, f"{references} references", may_lose_data=self.has_doubt
            )
        reason = "nothing refers to it" if not references else "an old refcount structure"
        return RepairAction(RepairKind.FREE, span, old, new, reason, may_lose_data=self.has_doubt and not references)
