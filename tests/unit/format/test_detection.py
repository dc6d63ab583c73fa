"""Formats are told by their first bytes."""

from __future__ import annotations

import pytest

from qcow2c.errors import UnsupportedFeature
from qcow2c.format.detection import Format, detect_format, known_format
from qcow2c.storage.sources import Memory
from tests.building import Builder


def test_formats_are_detected_by_their_first_bytes() -> None:
    assert detect_format(Memory(Builder().build())) == "qcow2"
    assert detect_format(Memory(b"")) == "raw"


def test_a_stated_format_counts_and_only_qcow2_and_raw_are_known() -> None:
    assert known_format(Memory(Builder().build()), None) is Format.QCOW2
    assert known_format(Memory(Builder().build()), "raw") is Format.RAW
    assert known_format(Memory(b""), "qcow2") is Format.QCOW2
    with pytest.raises(UnsupportedFeature, match="image '<bytes>' has format 'qed', not qcow2 or raw"):
        known_format(Memory(b"QED\0"), None)
    for stated in ("vmdk", ""):  # The image is not to blame.
        with pytest.raises(UnsupportedFeature, match=f"Unknown driver '{stated}': it can be qcow2 or raw"):
            known_format(Memory(Builder().build()), stated)
    with pytest.raises(UnsupportedFeature, match=r"'a\{b' is 'vpc'"):
        known_format(Memory(b"", "a{b"), "vpc", "{name!r} is {found!r}")
