"""A loaded image: its header and its snapshot table, read and believed. Work on a sound image begins here.

What looks at damage, too (check, repair, dump) reads the parts one by one. Reads only, and follows no other reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qcow2c.errors import CorruptMetadata
from qcow2c.format import rules
from qcow2c.format.findings import Finding, Severity, raise_first
from qcow2c.format.header import Header, field_span
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from qcow2c.format.records import SnapshotTable


class LoadedImage(NamedTuple):
    """What an image says of itself. The snapshot table is whole; each of its records is yet to be judged."""

    header: Header
    snapshots: SnapshotTable
    notices: tuple[Finding, ...]
    """What the rules have to say of the header, and was tolerated."""


def load_image(store: Store, refused_from: Severity = Severity.ERROR) -> LoadedImage:
    """Return an image whose header breaks no rule that is so severe, and whose snapshot table can be read.

    Raises as `load_header`, and CorruptMetadata, LimitExceeded for the snapshot table.
    Spec: "Header", "Snapshots".
    """
    from qcow2c.format.records import read_snapshots  # Late: a header is judged without it.

    header, notices = load_header(store, refused_from)
    snapshots = read_snapshots(store, header)
    if snapshots.broken is not None:
        raise snapshots.broken.exception()
    return LoadedImage(header, snapshots, notices)


def load_header(
    store: Store, refused_from: Severity = Severity.ERROR, also: tuple[str, ...] = ()
) -> tuple[Header, tuple[Finding, ...]]:
    """Return a header that breaks no rule that is so severe, and what the rules have to say of it all the same.

    `also` names rules, by the start of their names, of which a warning is an error too. Raises NotQcow2,
    UnsupportedFeature, CorruptMetadata, LimitExceeded, StoreError. Spec: "Header".
    """
    header = Header.load(store)
    return header, tuple(raise_first(rules.header_findings(header), refused_from, also))


def require_not_corrupt(header: Header) -> None:
    """Raise CorruptMetadata for an image that must not be written, as QEMU, even where it is only read."""
    if header.corrupt:
        message = "the image is marked corrupt, so that it must not be written: run check -r first"
        raise CorruptMetadata(message, where=field_span("incompatible_features"), spec="Header")
