"""The repairing half of `check`: options, what is said of the plan, and what was done. Knows nothing of the format."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from qcow2c.cli import progress, text
from qcow2c.errors import UsageError
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.cli.image_names import NamedImage
    from qcow2c.ops.repair import RepairResult

MESSAGES = 20
"""How many actions, and how many doubts, are named on standard error."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of a repair."""
    parser.add_argument("-r", "--repair", choices=("leaks", "all"), help="repair leaks only, or all that can be")
    parser.add_argument("--dry-run", action="store_true", help="with -r: change nothing, show what would be done")
    parser.add_argument("--undo", metavar="FILE", help="with -r: write a new file from which qcow2c undo takes it back")
    parser.add_argument(
        "--allow-data-loss", action="store_true", help="with -r: free what may be data of lost tables, as qemu-img does"
    )


def is_wanted(chosen: Namespace) -> bool:
    """Return whether the image is to be repaired. Raises UsageError for options that make no sense without."""
    if chosen.repair is not None:
        if chosen.force_share:
            raise UsageError("force-share=on can only be used with read-only images")
        return True
    for option in ("dry_run", "undo", "allow_data_loss"):
        if getattr(chosen, option):
            raise UsageError(f"--{option.replace('_', '-')} is about a repair: give -r leaks or -r all")
    return False


def repaired(named: NamedImage, chosen: Namespace, *, shows_progress: bool = False) -> RepairResult:
    """Repair an image, or find out what that would change, and tell what was done; not what is wrong afterwards."""
    from qcow2c.ops.repair import repair

    with progress.shown(wanted=shows_progress) as report:
        result = repair(
            named.filename,
            chosen.repair,
            dry_run=chosen.dry_run,
            undo=chosen.undo,
            allow_data_loss=chosen.allow_data_loss,
            progress=report,
        )
    is_human = chosen.output == "human" and not chosen.quiet
    if result.is_dry_run and is_human:
        text.write("".join(f"{line}\n" for line in _plan(result)))
    if not result.is_dry_run:
        for action in result.actions[:MESSAGES]:
            text.note(f"{'Left' if action.kind.value == 'keep' else 'Repairing'}: {action}")
        if result.action_count > MESSAGES:
            text.note(f"... and {result.action_count - MESSAGES} more")
    if (result.leaks_fixed or result.corruptions_fixed) and is_human:
        were = "would be" if result.is_dry_run else "were found and"
        text.report(
            f"The following inconsistencies {were} repaired:\n\n"
            f"    {result.leaks_fixed} leaked clusters\n"
            f"    {result.corruptions_fixed} corruptions\n\n"
        )
        text.report("After that:\n" if result.is_dry_run else "Double checking the fixed image now...\n")
    for line in _left(result):
        text.note(line)
    return result


def facts(result: RepairResult) -> dict[str, Any]:
    """Return what a repair adds to the JSON output of a check; the plan only where nothing was changed."""
    found: dict[str, Any] = {"corruptions-fixed": result.corruptions_fixed, "leaks-fixed": result.leaks_fixed}
    if result.is_dry_run:
        found["plan"] = {
            "actions": [action.facts() for action in result.actions],
            "action-count": result.action_count,
            "clusters-kept": result.clusters_kept,
            "doubts": list(result.doubts),
            "refused": list(result.refused),
        }
    return found


def _plan(result: RepairResult) -> Iterator[str]:
    yield "Nothing is changed. A repair would do this:" if result.actions else "There is nothing to repair."
    for action in result.actions:
        yield f"  {action}"
    if result.action_count > len(result.actions):
        yield f"  ... and {result.action_count - len(result.actions)} more"
    yield ""


def _left(result: RepairResult) -> Iterator[str]:
    """Say what was left as it is, and why."""
    if result.clusters_kept:
        yield f"{result.clusters_kept} clusters are left as they are, although too little refers to them:"
        for doubt in result.doubts[:MESSAGES]:
            yield f"  {doubt}"
        if len(result.doubts) > MESSAGES:
            yield f"  ... and {len(result.doubts) - MESSAGES} more"
        if result.doubts:
            yield "They may be data of tables that are lost, or of writes that were cut off."
            yield "With --allow-data-loss they are freed all the same."
        else:
            yield "  they hold bitmaps that are no longer in use; with --allow-data-loss they are freed"
    for refusal in result.refused:
        yield f"Not repaired: {refusal}"
