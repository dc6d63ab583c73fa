"""A larger disk by nothing but the header: where nothing needs to be placed, counted or hidden.

Most disks can grow so: the clusters of their L1 table have room for the entries that are new, and are zeros there.
Everything else is `size.py`'s business. Spec: "Header", "Cluster mapping".
"""

from __future__ import annotations

from qcow2c.constants import ENTRY_BYTES, Limit, Version
from qcow2c.format import layout, rules
from qcow2c.format.derived import AUTOCLEAR_FEATURES
from qcow2c.format.findings import Severity
from qcow2c.format.header import Header
from qcow2c.format.tables import L1_OFFSET
from qcow2c.light import replace
from qcow2c.storage.medium import Medium
from qcow2c.writer.header_update import HeaderUpdate

_UNKNOWN_AUTOCLEAR = AUTOCLEAR_FEATURES.reserved


def grow_by_header(medium: Medium, header: Header, size: int) -> bool:
    """Let the disk of an image in no other use have `size` bytes, if the header can say so alone; return whether.

    `header` has passed the rules. No refcount is looked at, because none changes and nothing is placed.
    Durable order: the file, which ends with the last cluster of the L1 table at least; the header's first sector.
    A crash leaves the old size or the new one. Raises StoreError.
    """
    if size < header.size or not _is_plain(header) or not _has_room(medium, header, size):
        return False
    entries = max(header.l1_size, header.geometry.l1_entries(size))
    # QEMU ends a new file within the L1 table: readers that are stricter than it miss the entries that are new.
    medium.end_with_whole_unit()
    fields = {"size": size, "l1_size": entries}
    if header.version >= Version.V3:
        fields["autoclear_features"] = header.autoclear_features & ~_UNKNOWN_AUTOCLEAR
    HeaderUpdate(medium).write(**fields)
    return True


def _is_plain(header: Header) -> bool:
    """Return whether there is nothing but tables that a larger disk concerns, and no old end within a cluster."""
    others = header.backing_file, header.bitmaps, header.nb_snapshots and header.version < Version.V3
    special = header.external_data or header.encrypted or header.dirty or header.corrupt
    return not (special or any(others) or header.size % header.cluster_size)


def _has_room(medium: Medium, header: Header, size: int) -> bool:
    """Return whether the L1 table has entries for the new part, and neither they nor L2 entries lead anywhere."""
    geometry, store = header.geometry, medium.store
    entries, kept = max(header.l1_size, geometry.l1_entries(size)), geometry.l1_entries(header.size)
    if not header.l1_size or entries > Limit.L1_ENTRIES:
        return False
    if geometry.clusters(entries * ENTRY_BYTES) > geometry.clusters(header.l1_size * ENTRY_BYTES):
        return False
    larger = replace(header, l1_size=entries, size=size)
    if any(finding.severity >= Severity.ERROR for finding in rules.header_findings(larger)):
        return False
    length = (entries - kept) * ENTRY_BYTES
    if any(store.pread(length, header.l1_table_offset + kept * ENTRY_BYTES)):
        return False
    inside = header.size & ((1 << geometry.l2_coverage_bits) - 1)
    if not inside:
        return True
    where = layout.word_span(header.l1_table_offset, kept - 1)
    last = layout.words(store.pread(where.length, where.offset).ljust(where.length, b"\0"))[0] & L1_OFFSET
    first = (inside >> geometry.cluster_bits) * geometry.l2_entry_bytes
    return not last or not any(store.pread(geometry.cluster_size - first, last + first))
