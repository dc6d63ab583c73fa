"""A loaded image: its header, its snapshot table and its bitmaps' records, read and believed, or refused.

What looks at damage, too (check, repair, dump), reads them unjudged: see `records.py`. Writes nothing.
"""

from __future__ import annotations

from qcow2c.constants import ExtensionType
from qcow2c.errors import CorruptMetadata
from qcow2c.format import rules
from qcow2c.format.findings import Finding, Severity, raise_first
from qcow2c.format.header import Header, field_span
from qcow2c.light import TYPE_CHECKING, NamedTuple
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from qcow2c.format.records import BitmapRecord, SnapshotTable


class LoadedImage(NamedTuple):
    """What an image says of itself. The snapshot table is whole; each of its records is yet to be judged."""

    header: Header
    snapshots: SnapshotTable
    notices: tuple[Finding, ...]
    """What the rules have to say of the header, and was tolerated."""


class ReadableBitmaps(NamedTuple):
    """The records of bitmaps, as far as they can be read."""

    records: tuple[BitmapRecord, ...]
    broken: Finding | None
    """What is wrong with the extension, the directory, or a record: the first of it."""
    is_whole: bool
    """Whether these are all of the directory."""


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
    readable = readable_bitmap_records(store, header)
    if readable.broken is not None:
        raise readable.broken.exception()
    return readable.records


def readable_bitmap_records(store: Store, header: Header) -> ReadableBitmaps:
    """Return the records of bitmaps that can be read, and which rule is broken first. Raises StoreError."""
    if header.extension(ExtensionType.BITMAPS) is None:
        return ReadableBitmaps((), None, is_whole=True)
    from qcow2c.format.records import read_bitmaps  # Late: most images have none.

    first = None
    for finding in rules.header_findings(header):
        if finding.rule.startswith("extension.bitmaps") and finding.severity >= Severity.WARNING:
            first = first or finding
    if first is not None and first.rule != "extension.bitmaps.reserved":  # It is unknown where the directory is.
        return ReadableBitmaps((), first, is_whole=False)
    directory = read_bitmaps(store, header)
    broken = (finding for record in directory.records for finding in rules.bitmap_findings(header, record))
    first = first or directory.broken or next(broken, None)
    length = header.bitmaps.bitmap_directory_size if header.bitmaps is not None and header.bitmaps_consistent else 0
    is_whole = sum(record.span.length for record in directory.records) == length
    return ReadableBitmaps(directory.records, first, is_whole)


def require_not_corrupt(header: Header) -> None:
    """Raise CorruptMetadata for an image that must not be written, as QEMU, even where it is only read."""
    if header.corrupt:
        message = "the image is marked corrupt, so that it must not be written: run check -r first"
        raise CorruptMetadata(message, where=field_span("incompatible_features"), spec="Header")
