"""What is checked in of what follows from the schemas, against the schemas."""

from __future__ import annotations

import pytest

from formats import derive
from qcow2c import structs
from qcow2c.format import derived
from qcow2c.format.derivation import bits_of, layout_of
from qcow2c.format.layout import Bits, Layout, RecordLayout


def test_what_is_checked_in_follows_from_the_schemas() -> None:
    assert derive.TARGET.read_text(encoding="utf-8") == derive.Source().text(), "run make derived"


def test_another_schema_would_be_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert derive.main(["--check"]) == 0
    monkeypatch.setattr(structs, "SNAPSHOT_EXTRA_DATA", structs.BITMAPS_EXTENSION)
    assert derive.main(["--check"]) == 1
    assert capsys.readouterr().err == "qcow2c/format/derived.py does not follow from structs.py: make derived\n"


def test_each_schema_is_there_under_its_name() -> None:
    names = {name for name, value in vars(derived).items() if isinstance(value, Bits | Layout | RecordLayout)}
    assert names == {name for name, value in vars(structs).items() if name.isupper() and hasattr(value, "sizeof")}


def test_what_depends_on_the_image_is_there_for_each_image() -> None:
    assert derived.COMPRESSED_DESCRIPTOR.keys() == set(structs.Limit.CLUSTER_BITS)
    assert derived.REFCOUNT_GROUP.keys() == set(structs.Limit.REFCOUNT_ORDER)
    assert derived.REFCOUNT_GROUP[4].size == layout_of(structs.refcount_group(4)).size == 2
    assert derived.COMPRESSED_DESCRIPTOR[16].members == bits_of(structs.compressed_descriptor(16)).members
