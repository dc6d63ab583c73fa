"""Admission: may this image be written? Looks at every reference and every refcount first, and changes nothing.

A writer believes refcounts: a cluster with refcount 0 is given out, one with refcount 1 is overwritten in place. So an
image is let in only if each refcount covers the references that there are, and no metadata is also something else.
Leaks are no obstacle, and neither are copied bits, which the engine does not believe.
"""

from __future__ import annotations

from qcow2c.errors import CorruptMetadata
from qcow2c.format import rules
from qcow2c.format.findings import Severity, raise_first
from qcow2c.format.header import Header, field_span
from qcow2c.format.records import SnapshotTable, read_bitmaps
from qcow2c.light import each, frozen
from qcow2c.references.cluster_set import ClusterSet
from qcow2c.references.small_check import proved_clean
from qcow2c.storage.store import Store


@frozen
class Admission:
    """What was found. `verified`: refcounts can be believed; else `metadata` are the clusters to keep away from.

    `undercounted`: clusters of a dirty image with how many references they have, more than their refcount says.
    """

    verified: bool
    metadata: ClusterSet
    undercounted: list[tuple[int, int]] = each(factory=list)


def admit(store: Store, header: Header, snapshots: SnapshotTable) -> Admission:
    """Return the admission of an image whose header and snapshot table were believed when it was opened.

    Raises CorruptMetadata, and LimitExceeded where it would take too much to look.
    """
    _require_state(header)
    for record in snapshots.records:
        raise_first(rules.snapshot_findings(header, record), Severity.ERROR)
    if proved_clean(store, header, snapshots, read_bitmaps(store, header)) is not None:
        return Admission(verified=True, metadata=ClusterSet(()))
    from qcow2c.references.admission_count import count  # Late: it imports numpy.

    return Admission(verified=True, metadata=ClusterSet(()), undercounted=count(store, header, snapshots))


def trusted(store: Store, header: Header, snapshots: SnapshotTable) -> Admission:
    """Return the admission of an image whose refcounts were not looked at.

    Raises as `admit`, but only for the state of the image, and for a refcount table that cannot be one.
    """
    _require_state(header)
    from qcow2c.references.admission_count import metadata_runs  # Late: it imports numpy.

    return Admission(verified=False, metadata=ClusterSet(metadata_runs(store, header, snapshots)))


def _require_state(header: Header) -> None:
    if header.corrupt:
        message = (
            "the image is marked corrupt, so that it must not be written: "
            "the image is not opened for writing: run check -r first"
        )
        raise CorruptMetadata(message, where=field_span("incompatible_features"), spec="Header")
