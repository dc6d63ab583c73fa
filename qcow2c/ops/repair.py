"""Repair an image without destroying what may be data; and take a repair back.

What is wrong is found by `check`, what is done is decided in `recovery/plan.py` (which has the table of it), and all of
it is in a journal and has been checked as if it were done before the first byte of the image changes. Durable order:
the undo file, then the stages of `recovery/changes.py`. A crash leaves an image that can be repaired again, and that
the undo file takes back to what it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from qcow2c.errors import UsageError
from qcow2c.format.derived import INCOMPATIBLE_FEATURES
from qcow2c.format.header import Header
from qcow2c.format.rules import LOST_OWNERS
from qcow2c.ops.check import check
from qcow2c.references.check_result import CheckResult, Fault
from qcow2c.references.image_check import check_image
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.storage.store import Progress, stage

if TYPE_CHECKING:
    from qcow2c.recovery.changes import Changes
    from qcow2c.recovery.journal import Journal
    from qcow2c.recovery.plan import Plan, RepairAction

__all__ = ["RepairResult", "repair", "undo_repair"]

What = Literal["leaks", "all"]

_STAGES = 5
"""Of a repair: a check that looks whether there is anything to do, one alone, a survey, one of the plan, a last one."""

_DIRTY = INCOMPATIBLE_FEATURES["dirty"].mask
_CORRUPT = INCOMPATIBLE_FEATURES["corrupt"].mask

_NO_DOUBT = ("refcount_", "overflow", "overlap", "copied", "header.", "snapshot.extra_data", "l1.", "l2.", "past_end")
"""Rules of a check, by the start of their names, that say nothing of lost tables, or that are looked for once more."""


@dataclass(frozen=True)
class RepairResult:
    """What was wrong, what was done (or would be: `is_dry_run`), and what is still wrong afterwards.

    `doubts` say why clusters are kept to which nothing refers; `refused` what could not be done, and why.
    """

    filename: str
    is_dry_run: bool
    before: CheckResult
    after: CheckResult
    actions: tuple[RepairAction, ...] = ()
    action_count: int = 0
    """All actions; `actions` lists the first of them."""
    doubts: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    leaks_fixed: int = 0
    corruptions_fixed: int = 0
    clusters_kept: int = 0

    @property
    def exit_code(self) -> int:
        """Of the state afterwards: 0 clean, 1 not checked, 2 corrupt, 3 leaks only."""
        return self.after.exit_code


def repair(
    source: Source | Store,
    what: What = "leaks",
    *,
    dry_run: bool = False,
    undo: str | os.PathLike[str] | None = None,
    allow_data_loss: bool = False,
    progress: Progress | None = None,
) -> RepairResult:
    """Repair what is "leaks" only, or "all" that can be without destroying what may be data.

    `dry_run` changes nothing, and tells what would be. `undo` is a file that is written before the first change, and
    from which `undo_repair` brings back the image as it was; where nothing is changed there is none. With
    `allow_data_loss` clusters are freed although they may be data of a table that is lost. The image is opened for
    writing, alone, only where something is wrong with it. `progress` is told how much is done, and all: each of the
    checks and counts of a repair is as much as the file is long.

    Raises UsageError, LimitExceeded where it would take too much, and as `check`.
    """
    if what not in get_args(What):
        raise UsageError(f'what={what!r} is neither "leaks" nor "all"')
    if undo is not None and os.path.lexists(undo):
        raise UsageError(f"{os.fsdecode(undo)!r} exists: an undo file is never overwritten")
    with opened(source, Use.IMAGE) as store:
        first = stage(progress, 0, _STAGES)
        before = check(store, progress=first) if dry_run else check_image(store, first)
        has_broken_bitmaps = what == "all" and _broken_bitmaps(before) is not None
        if (before.failed is not None and not has_broken_bitmaps) or _is_fine(store, before):
            _tell_all(progress)
            return RepairResult(store.name, dry_run, before, before)
        if dry_run:
            result = _Repair(store, what, None, before, progress, allow_data_loss=allow_data_loss).plan_only()
            _tell_all(progress)
            return result
    with opened(source, Use.WRITABLE_IMAGE) as store:
        before = check(store, progress=stage(progress, 1, _STAGES))
        result = _Repair(store, what, undo, before, progress, allow_data_loss=allow_data_loss).run()
        _tell_all(progress)
        return result


def _tell_all(progress: Progress | None) -> None:
    if progress is not None:
        progress(1, 1)


def undo_repair(source: Source | Store, undo: Source | Store) -> bool:
    """Let an image be what it was before a repair, bit for bit, from its undo file; False if it is that already.

    Raises UsageError for a file that is no undo file, or damaged, and for an image that does not hold what the repair,
    or a part of it, has written; StoreError, ImageLocked.
    """
    from qcow2c.recovery import journal as undoing

    with opened(source, Use.WRITABLE_IMAGE) as store, opened(undo) as file:
        return undoing.load(file).take_back(store)


def _is_fine(store: Store, found: CheckResult) -> bool:
    header = Header.load(store)
    return found.exit_code == 0 and not (found.overlaps or header.dirty or header.corrupt)


def _broken_bitmaps(found: CheckResult) -> Fault | None:
    if found.failed is None:
        return None
    from qcow2c.recovery.forsaken import broken_bitmaps  # Late: a check that succeeds does without.

    return broken_bitmaps(found)


class _Repair:
    """One repair of an image that is open, and, unless it is only to be planned, writable."""

    def __init__(
        self,
        store: Store,
        what: str,
        undo: str | os.PathLike[str] | None,
        before: CheckResult,
        progress: Progress | None,
        *,
        allow_data_loss: bool,
    ) -> None:
        self._store = store
        self._undo = undo
        self._is_all = what == "all"
        self._allow_data_loss = allow_data_loss
        self._header = Header.load(store)
        self._before = before
        self._progress = progress
        self._broken_bitmaps = _broken_bitmaps(before) if self._is_all else None
        if self._broken_bitmaps is not None:
            from qcow2c.recovery.forsaken import check_without_bitmaps, without_bitmaps

            self._before = check_without_bitmaps(store, self._header, self._broken_bitmaps)
            self._header = without_bitmaps(self._header)

    def plan_only(self) -> RepairResult:
        """Return what would be done, and what would be wrong after that."""
        from qcow2c.recovery.journal import journal_for

        with journal_for(self._store, None) as journal:
            plan, after = self._plan(journal)
        return self._result(plan, after, is_dry_run=True)

    def run(self) -> RepairResult:
        """Do it; return what is wrong after it, as the image then says."""
        from qcow2c.recovery.journal import journal_for

        with journal_for(self._store, self._undo) as journal:
            plan, after = self._plan(journal)
            if journal.changes:
                if self._undo is not None:
                    journal.complete(self._store)
                journal.apply(self._store)
                after = check(self._store, progress=stage(self._progress, 4, _STAGES))
        return self._result(plan, after, is_dry_run=False)

    def _plan(self, journal: Journal) -> tuple[Plan, CheckResult]:
        """Write the changes into a journal; return what they are, and what a check will say after them."""
        from qcow2c.recovery.changes import Changes, Stage, forget_empty_misaligned
        from qcow2c.recovery.doubt import Doubt
        from qcow2c.recovery.journal import Patched
        from qcow2c.recovery.plan import Plan, PlannedRefcounts
        from qcow2c.recovery.survey import TABLE_OVERLAP, Survey

        before = self._before
        if before.failed is not None:
            return Plan(), before
        survey = Survey(self._store, self._header, stage(self._progress, 2, _STAGES))
        damage = survey.damage() or survey.overlap()
        doubt = Doubt(survey, rebuild=bool(damage), damaged=[*self._damaged()], lost=[*self._lost_owners()])
        is_kept = bool(doubt.reasons) and not self._allow_data_loss
        if damage == TABLE_OVERLAP and (is_kept or not self._is_all):
            damage = ""  # Blocks can be written all the same; what overlaps stays, as a sign of what was lost.
        mends = self._is_all and not is_kept
        if mends:
            forget_empty_misaligned(survey)
        plan = Plan(doubts=doubt.reasons)
        refcounts = PlannedRefcounts(
            survey,
            doubt,
            rebuild=bool(damage),
            lower_only=not self._is_all,
            allow_data_loss=self._allow_data_loss,
        )
        changes = Changes(survey, refcounts, plan, journal)
        self._mark(changes)
        if damage:
            refusal = changes.rebuild_refcounts(damage) if self._is_all else "only what leaks is to be repaired"
            if refusal:
                plan.refused.append(f"{damage}; it stays so: {refusal}")
                changes.drop_lone_mark()
                return plan, before
        refcounts.add_to(plan)
        if not damage:
            changes.correct_refcounts()
        is_only_copied = before.corruptions == before.broken.get("copied", 0) and not before.check_errors
        if self._is_all or (is_only_copied and not is_kept):
            changes.correct_entries(rules=mends)
        changes.switch()
        after = check(Patched(self._store, journal), progress=stage(self._progress, 3, _STAGES))
        if after.failed is None and not after.corruptions and not after.check_errors:
            is_sound = not after.overlaps and not (is_kept and plan.kept)
            cleared = _DIRTY | _CORRUPT if is_sound else _DIRTY
            features = self._header.incompatible_features
            if features & cleared:  # Version 2 has none.
                changes.set_header(Stage.HEADER, "nothing is corrupt", incompatible_features=features & ~cleared)
        changes.drop_lone_mark()
        return plan, after

    def _mark(self, changes: Changes) -> None:
        changes.mark()
        if self._broken_bitmaps is not None:
            reason = self._broken_bitmaps.message.removeprefix("ERROR ")
            changes.give_up_bitmaps(f"{reason}; all bitmaps are given up")

    def _lost_owners(self) -> Iterator[str]:
        """Say which records that own clusters may not be read for what they are."""
        from qcow2c.recovery.forsaken import lost_bitmaps

        for fault in self._before.faults:
            if fault.rule in LOST_OWNERS:
                yield fault.message.removeprefix("ERROR ")
        stale = lost_bitmaps(self._store, self._header)
        if stale is not None:
            yield stale

    def _damaged(self) -> Iterator[str]:
        """Say what a check has found of lost tables."""
        for rule, count in self._before.broken.items():
            if not rule.startswith(_NO_DOUBT) and rule not in LOST_OWNERS:
                yield f"{count} times {rule}"
        if self._before.overlaps:
            yield f"{len(self._before.overlaps)} clusters of metadata are also something else"

    def _result(self, plan: Plan, after: CheckResult, *, is_dry_run: bool) -> RepairResult:
        before = self._before
        rules = sum(
            max(0, count - after.broken.get(rule, 0)) for rule, count in before.broken.items() if rule != "copied"
        )
        return RepairResult(
            filename=self._store.name,
            is_dry_run=is_dry_run,
            before=before,
            after=after,
            actions=tuple(plan.actions),
            action_count=plan.count,
            doubts=tuple(plan.doubts),
            refused=tuple(plan.refused),
            leaks_fixed=plan.lowered,
            corruptions_fixed=plan.raised + plan.copied + rules,
            clusters_kept=plan.kept,
        )
