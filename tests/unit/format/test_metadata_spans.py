"""The structures that a header names, and which of them share bytes."""

from __future__ import annotations

from qcow2c.errors import Span
from qcow2c.format.header import Header
from qcow2c.format.metadata_spans import metadata_spans, overlap
from qcow2c.storage.sources import Memory
from tests.building import Builder


def test_neighbours_that_share_bytes_overlap() -> None:
    spans = [("a", Span(0, 10)), ("b", Span(9, 1)), ("c", Span(10, 5))]
    assert list(overlap(spans)) == [("a", "b", Span(9, 1))]


def test_a_plain_image_has_three_structures_that_do_not_overlap() -> None:
    spans = list(metadata_spans(Header.load(Memory(Builder().build()))))
    assert [name for name, _ in spans] == ["header", "active L1 table", "refcount table"]
    assert not list(overlap(spans))
