"""`check`: compare references with refcounts and judge every entry, with the same counts as `qemu-img check`.

The image is opened read-only and nothing is repaired. What is counted is in `references/image_check.py`.
"""

from __future__ import annotations

from qcow2c.errors import LimitExceeded
from qcow2c.format.header import Header
from qcow2c.references.check_result import CheckResult
from qcow2c.references.image_check import check_image
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.storage.store import Progress, stage

_DOUBTED_BYTES = 64 << 30
"""A larger file is not looked through for lost tables: a repair does that."""

_DOUBTED_L1_ENTRIES = 1 << 20
"""The tables of more are not looked through, either: it would take more memory than the check."""


def check(source: Source | Store, *, share: bool = False, progress: Progress | None = None) -> CheckResult:
    """Check an image. Spec: "Host cluster management".

    `share=True` checks although another process may be writing to the image, of which it then sees no single state.
    `progress` is told the bytes of the file that are counted, and all.
    Raises NotQcow2, UnsupportedFeature, CorruptMetadata, LimitExceeded where the header cannot be believed, StoreError,
    ImageLocked.
    """
    with opened(source, Use.of_reader(share=share)) as store:
        result = check_image(store, stage(progress, 0, 2))
        if result.leaks and result.failed is None and not result.check_errors:
            result.doubts = _doubts(store, stage(progress, 1, 2))
        if progress is not None:
            progress(1, 1)
        return result


def _doubts(store: Store, progress: Progress | None) -> tuple[str, ...]:
    """Return why what looks leaked may be data of tables that are lost; nothing where that takes too much."""
    from qcow2c.recovery.doubt import Doubt  # Late: it imports numpy.
    from qcow2c.recovery.survey import Survey

    header = Header.load(store)
    if store.size() > _DOUBTED_BYTES or header.l1_size > _DOUBTED_L1_ENTRIES:
        return ()
    try:
        survey = Survey(store, header, progress)
        return tuple(Doubt(survey, rebuild=False, damaged=[], lost=[]).reasons)
    except LimitExceeded:
        return ()
