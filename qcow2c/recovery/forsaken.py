"""Bitmaps that are broken, and given up as by any program that knows none: one bit of the header says so.

Nothing that they have is freed, for it is unknown what that is. Decides, and reads; writes nothing.
Spec: "autoclear_features", "Bitmaps extension".
"""

from __future__ import annotations

from dataclasses import replace

from qcow2c.constants import SECTOR_SIZE
from qcow2c.format.derived import AUTOCLEAR_FEATURES
from qcow2c.format.header import Header
from qcow2c.format.header_writer import with_fields
from qcow2c.format.loaded_image import readable_bitmap_records
from qcow2c.recovery.journal import Patched, journal_for
from qcow2c.references.check_result import CheckResult, Fault
from qcow2c.references.image_check import check_image
from qcow2c.storage.store import Store

_BITMAPS = AUTOCLEAR_FEATURES["bitmaps"].mask
_RULES = ("bitmap", "extension.bitmaps.")
"""Of a check, by the start of their names; an extension of a wrong length stays one, whatever the header says."""


def broken_bitmaps(found: CheckResult) -> Fault | None:
    """Return what is wrong with the bitmaps of an image whose check failed for that; None for any other result."""
    if found.failed is None:
        return None
    return next((fault for fault in found.faults if fault.rule.startswith(_RULES)), None)


def without_bitmaps(header: Header) -> Header:
    """Return a header that says that its bitmaps are stale."""
    return replace(header, autoclear_features=header.autoclear_features & ~_BITMAPS)


def check_without_bitmaps(store: Store, header: Header, fault: Fault) -> CheckResult:
    """Return what a check finds when the bitmaps are given up, and what is wrong with them. Raises as `check_image`."""
    sector = store.pread(SECTOR_SIZE, 0)
    with journal_for(store, None) as journal:
        journal.add(0, 0, sector, with_fields(sector, {"autoclear_features": header.autoclear_features & ~_BITMAPS}))
        result = check_image(Patched(store, journal))
    result.corruptions += fault.times
    result.broken[fault.rule] = result.broken.get(fault.rule, 0) + fault.times
    result.faults.insert(0, fault)
    return result


def lost_bitmaps(store: Store, header: Header) -> str | None:
    """Return what is wrong with stale bitmaps of which it is then unknown what they have; None where it is known."""
    if header.bitmaps is None or header.bitmaps_consistent:
        return None
    as_if = replace(header, autoclear_features=header.autoclear_features | _BITMAPS)
    broken = readable_bitmap_records(store, as_if).broken
    return None if broken is None else f"stale bitmaps: {broken.message}"
