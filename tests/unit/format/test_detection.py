"""Formats are told by their first bytes."""

from __future__ import annotations

from qcow2c.disk.opening import detect_format
from qcow2c.storage.sources import Memory
from tests.building import Builder


def test_formats_are_detected_by_their_first_bytes() -> None:
    assert detect_format(Memory(Builder().build())) == "qcow2"
    assert detect_format(Memory(b"")) == "raw"
