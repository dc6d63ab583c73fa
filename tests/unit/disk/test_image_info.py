"""What info says, as attributes with types and as a mapping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qcow2c
from qcow2c.disk.image_info import BitmapInfo, ImageInfo
from tests.building import Builder


def test_attributes_say_what_the_keys_say(examples: Path) -> None:
    found = qcow2c.info(examples / "demo.qcow2")
    assert (found.format, found.virtual_size, found.cluster_size) == ("qcow2", found["virtual-size"], 8192)
    assert (found.backing_filename, found.full_backing_filename) == ("base.qcow2", str(examples / "base.qcow2"))
    assert (found.compat, found.compression_type, found.refcount_bits) == ("1.1", "zlib", 16)
    assert (found.lazy_refcounts, found.corrupt, found.extended_l2, found.dirty_flag) == (False, False, False, False)
    assert (found.data_file, found.data_file_raw, found.encrypted, found.encrypt) == (None, None, False, None)
    assert found.bitmaps == (BitmapInfo("since-monday", 65536, ("auto",)),)
    assert (found.snapshots[0].id, found.snapshots[0].name) == ("1", "before-update")
    assert found.backing_filename_format == found["backing-filename-format"]
    assert found.actual_size == found["actual-size"]


def test_a_dict_of_the_facts_is_the_json_of_qemu_img(examples: Path) -> None:
    found = qcow2c.info(examples / "demo.qcow2")
    facts = found.as_dict()
    assert facts == dict(found)
    assert json.loads(json.dumps(facts)) == facts
    facts["format-specific"]["data"]["compat"] = "changed"
    facts["snapshots"].clear()
    assert found.compat == "1.1"
    assert len(found.snapshots) == 1


def test_the_file_below_an_image_is_its_child(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(1000))
    (child,) = qcow2c.info(path).children
    assert (child.name, child.info.format, child.info.virtual_size) == ("file", "file", 1024)
    assert (child.info.filename, child.info.children) == (str(path), ())
    assert child.info.as_dict()["format-specific"] == {"type": "file", "data": {}}
    assert qcow2c.info(b"no file").children == ()


def test_what_is_not_there_is_none() -> None:
    found = qcow2c.info(b"raw")
    assert (found.cluster_size, found.actual_size, found.compat, found.backing_filename) == (None, None, None, None)
    assert (found.snapshots, found.bitmaps) == ((), ())
    with pytest.raises(KeyError):
        found["cluster-size"]


def test_it_says_in_short_what_it_is_of() -> None:
    found = qcow2c.info(Builder(size=4096).build())
    assert repr(found) == "<ImageInfo of '<bytes>': qcow2, 4096 bytes>"
    assert isinstance(found, ImageInfo)
    assert len(found) == len(list(found))
