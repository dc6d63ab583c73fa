"""A loaded image: its header, its snapshot table and its bitmaps' records, read and believed, or refused.

What looks at damage, too (check, repair, dump), reads them unjudged: see `records.py`. Writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qcow2c.errors import CorruptMetadata
from qcow2c.format import rules
from qcow2c.format.findings import Finding, Severity, raise_first
from qcow2c.format.header import Header, field_span
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from qcow2c.format.records import BitmapRecord, SnapshotTable


class LoadedImage(NamedTuple):
    """What an image says of itself. The snapshot table is whole; each of its records is yet to be judged."""

    header: Header
    snapshots: SnapshotTable
    notices: tuple[Finding, ...]
    """What the rules have to say of the header, and was tolerated."""


def load_image(store: Store, refused_from: Severity = Severity.ERROR) -> LoadedImage:
    """Return an image whose header breaks no rule that is so severe, and whose snapshot table can be read.

    Raises as `load_header` and `load_snapshots`.
    """
    header, notices = load_header(store, refused_from)
    return LoadedImage(header, load_snapshots(store, header), notices)


def load_header(
    store: Store, refused_from: Severity = Severity.ERROR, also: tuple[str, ...] = ()
) -> tuple[Header, tuple[Finding, ...]]:
    """Return a header that breaks no rule that is so severe, and what the rules have to say of it all the same.

    `also` names rules, by the start of their names, of which a warning is an error too. Raises NotQcow2,
    UnsupportedFeature, CorruptMetadata, LimitExceeded, StoreError. Spec: "Header".
    """
    header = Header.load(store)
    return header, tuple(raise_first(rules.header_findings(header), refused_from, also))


def load_snapshots(store: Store, header: Header) -> SnapshotTable:
    """Return a snapshot table that is whole. Raises CorruptMetadata, LimitExceeded, StoreError. Spec: "Snapshots"."""
    from qcow2c.format.records import read_snapshots  # Late: a header is judged without it.

    table = read_snapshots(store, header)
    if table.broken is not None:
        raise table.broken.exception()
    return table


def load_bitmap_records(store: Store, header: Header) -> tuple[BitmapRecord, ...]:
    """Return the records of all bitmaps: as for QEMU, none can be used where one breaks a rule.

    Raises CorruptMetadata, StoreError. Spec: "Bitmap directory".
    """
    from qcow2c.format.records import read_bitmaps

    directory = read_bitmaps(store, header)
    if directory.broken is not None:
        raise directory.broken.exception()
    for record in directory.records:
        raise_first(rules.bitmap_findings(header, record), Severity.WARNING)
    return directory.records


def require_not_corrupt(header: Header) -> None:
    """Raise CorruptMetadata for an image that must not be written, as QEMU, even where it is only read."""
    if header.corrupt:
        message = "the image is marked corrupt, so that it must not be written: run check -r first"
        raise CorruptMetadata(message, where=field_span("incompatible_features"), spec="Header")
