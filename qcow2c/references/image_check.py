"""The check of one image that is open, small or large. What is done where it is opened is in `ops/check.py`.

A small image that is clean needs no arrays; any other is counted by `full_check.py`. It reads only.
"""

from __future__ import annotations

from qcow2c.constants import SECTOR_SIZE, Limit
from qcow2c.errors import LimitExceeded
from qcow2c.format.findings import Severity
from qcow2c.format.loaded_image import load_header
from qcow2c.format.records import read_bitmaps, read_snapshots
from qcow2c.format.rules import LOST_OWNERS
from qcow2c.references.check_result import CheckResult
from qcow2c.references.small_check import proved_clean
from qcow2c.storage.store import Progress, Store

_REFUSED = ("header.crypt_method",)
"""Rules, by the start of their names, that leave part of the image uncounted where they are broken."""

_UNUSUAL = "extension.bitmaps"
"""Rules, by the start of their names, that a look at numbers alone does not judge."""


def check_image(store: Store, progress: Progress | None = None) -> CheckResult:
    """Return what a check of an image finds; `progress` is told bytes of the file. Raises as `ops.check.check` does."""
    header, notices = load_header(store, Severity.FATAL, _REFUSED)
    result = CheckResult(filename=store.name)
    snapshots, bitmaps = read_snapshots(store, header), read_bitmaps(store, header)
    if snapshots.broken is not None:
        result.check_errors += 1
        result.failed = f"{snapshots.broken.message} ({snapshots.broken.where})"
        return result
    if header.geometry.clusters(store.size()) > Limit.CHECKED_CLUSTERS:
        result.check_errors += 1
        result.failed = "File too large"
        return result
    result.total_clusters = header.geometry.clusters(header.size // SECTOR_SIZE * SECTOR_SIZE)
    is_usual = not header.encrypted and not any(
        notice.rule in LOST_OWNERS or (notice.rule.startswith(_UNUSUAL) and notice.severity >= Severity.WARNING)
        for notice in notices
    )
    clean = proved_clean(store, header, snapshots, bitmaps) if is_usual else None
    if clean is not None:
        for name, value in clean._asdict().items():
            setattr(result, name, value)
        return result
    from qcow2c.references.full_check import Failed, FullCheck  # Late: it imports numpy.

    try:
        FullCheck(store, header, result, progress).run(snapshots, bitmaps)
    except Failed as stop:
        result.failed = str(stop)
    except LimitExceeded as stop:
        result.check_errors += 1
        result.failed = stop.message
    return result
