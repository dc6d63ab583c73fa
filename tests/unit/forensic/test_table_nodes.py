"""Nodes of tables: runs cover all entries, in their order."""

from __future__ import annotations

from qcow2c.forensic.table_nodes import runs
from qcow2c.format.tables import native


def test_runs_cover_all_entries_in_order() -> None:
    words = native(b"".join(word.to_bytes(8, "big") for word in (0, 0, 4096, 8192, 12288, 12288, 7, 7, 7, 1)))
    assert list(runs(words, None, 4096)) == [(0, 2, 0), (2, 3, 4096), (5, 1, 0), (6, 3, 0), (9, 1, 0)]
    assert list(runs(words[:1], None, 4096)) == [(0, 1, 0)]
    assert list(runs(words[:0], None, 4096)) == []
