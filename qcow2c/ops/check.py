"""`check`: compare references with refcounts and judge every entry, with the same counts as `qemu-img check`.

The image is opened read-only and nothing is repaired. A small image that is clean needs no arrays; any other is
counted by `references/full_check.py`.
"""

from __future__ import annotations

from qcow2c.errors import LimitExceeded
from qcow2c.format.findings import Severity
from qcow2c.format.loaded_image import load_header
from qcow2c.format.records import read_bitmaps, read_snapshots
from qcow2c.references.check_result import CheckResult
from qcow2c.references.small_check import proved_clean
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.structs import SECTOR_SIZE, Limit

_REFUSED = ("header.crypt_method", "extension.bitmaps")
"""Rules, by the start of their names, that leave part of the image uncounted where they are broken."""


def check(source: Source | Store, *, share: bool = False) -> CheckResult:
    """Check an image. Spec: "Host cluster management".

    `share=True` checks although another process may be writing to the image, of which it then sees no single state.
    Raises NotQcow2, UnsupportedFeature, CorruptMetadata, LimitExceeded where the header cannot be believed, StoreError,
    ImageLocked.
    """
    with opened(source, Use.of_reader(share=share)) as store:
        return _check(store)


def _check(store: Store) -> CheckResult:
    header, _notices = load_header(store, Severity.FATAL, _REFUSED)
    result = CheckResult(filename=store.name)
    snapshots, bitmaps = read_snapshots(store, header), read_bitmaps(store, header)
    if snapshots.broken is not None:
        result.check_errors += 1
        result.failed = snapshots.broken.message
        return result
    if header.geometry.clusters(store.size()) > Limit.CHECKED_CLUSTERS:
        result.check_errors += 1
        result.failed = "File too large"
        return result
    result.total_clusters = header.geometry.clusters(header.size // SECTOR_SIZE * SECTOR_SIZE)
    clean = proved_clean(store, header, snapshots, bitmaps)
    if clean is not None:
        for name, value in clean._asdict().items():
            setattr(result, name, value)
        return result
    from qcow2c.references.full_check import Failed, FullCheck  # Late: it imports numpy.

    try:
        FullCheck(store, header, result).run(snapshots, bitmaps)
    except Failed as stop:
        result.failed = str(stop)
    except LimitExceeded as stop:
        result.check_errors += 1
        result.failed = stop.message
    return result
