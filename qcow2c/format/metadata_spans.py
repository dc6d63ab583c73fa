"""The places of structures that the header itself names, and which of them share bytes. Judges nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from qcow2c.constants import ENTRY_BYTES
from qcow2c.errors import Span
from qcow2c.format.derived import SNAPSHOT_HEADER
from qcow2c.format.header import Header


def metadata_spans(header: Header) -> Iterator[tuple[str, Span]]:
    """Yield the places that the header itself names: what no other structure may overlap."""
    yield "header", Span(0, header.cluster_size)
    sized = [
        ("active L1 table", header.l1_table_offset, header.l1_size * ENTRY_BYTES),
        ("refcount table", header.refcount_table_offset, header.refcount_table_clusters * header.cluster_size),
        ("snapshot table", header.snapshots_offset, header.nb_snapshots * SNAPSHOT_HEADER.size),
    ]
    if header.bitmaps is not None and header.bitmaps_consistent:
        directory = header.bitmaps
        sized.append(("bitmap directory", directory.bitmap_directory_offset, directory.bitmap_directory_size))
    if header.encryption_header is not None:
        sized.append(("encryption header", header.encryption_header.offset, header.encryption_header.length))
    for name, offset, length in sized:
        if length:
            yield name, Span(offset, length)


def overlap(spans: Sequence[tuple[str, Span]]) -> Iterator[tuple[str, str, Span]]:
    """Yield each two neighbours, in order of offset, that share bytes, with the bytes that they share."""
    ordered = sorted(spans, key=lambda named: (named[1].offset, named[1].end))
    for (name, span), (other, later) in pairwise(ordered):
        if later.offset < span.end:
            yield name, other, Span(later.offset, min(span.end, later.end) - later.offset)
