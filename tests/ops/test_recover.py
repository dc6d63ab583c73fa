"""Recovery: of many kinds of disks after many kinds of damage, sector by sector; and what it refuses and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import NotQcow2, UsageError
from tests.damaged_disks import DAMAGES, FIXED, SHAPES, cell, sample
from tests.profile import DEEP

SMALL = ("4k", "512", "64k v2", "extended", "compressed 4k", "zstd", "64k snapshots", "chain", "data file", "1 bit")
FEW = (
    "none", "header zeroed", "magic flipped", "cluster_bits flipped", "size grown", "l1_table_offset flipped",
    "L1 lost", "half of L2 lost", "L2 sector zeroed", "refcounts lost", "snapshot table lost", "cut at 50",
    "bytes in front", "behind another",
)  # fmt: skip
UNSEEN = ("holes",)
"""Damage of data alone, which nothing shows: those bytes are what the file has."""


@pytest.mark.parametrize("name", SHAPES if DEEP else SMALL)
def test_nothing_wrong_is_called_named_and_what_tables_fix_is_there_in_full(name: str, tmp_path: Path) -> None:
    made = sample(name, tmp_path)
    for number, damage in enumerate(DAMAGES if DEEP else FEW):
        directory = tmp_path / str(number)
        directory.mkdir()
        try:
            result, scores = cell(made, damage, directory)
        except NotQcow2:
            assert damage == "all metadata"
            continue
        assert result.hash_before == result.hash_after
        for state, score in scores.items():
            assert score.wrong == 0 or damage in UNSEEN, (damage, state, score)
            if damage in FIXED and damage != "header and refcounts":
                assert score.right == len(made.truth[state]), (damage, state, score, result.images)


def _damaged(tmp_path: Path) -> Path:
    made = sample("4k snapshots", tmp_path)
    path = tmp_path / "damaged.qcow2"
    path.write_bytes(bytes(512) + made.image[512:])
    return path


def test_what_is_recovered_is_a_sound_image_with_each_snapshot_beside_it(tmp_path: Path) -> None:
    made = sample("4k snapshots", tmp_path)
    path = tmp_path / "damaged.qcow2"
    path.write_bytes(bytes(512) + made.image[512:])
    result = qcow2c.recover(path, tmp_path / "new.qcow2")
    names = {disk.name: disk.output for disk in result.disks}
    assert names == {
        "": str(tmp_path / "new.qcow2"),
        "state 0": str(tmp_path / "new.snapshot-1-state_0.qcow2"),
        "state 1": str(tmp_path / "new.snapshot-2-state_1.qcow2"),
    }
    for name, output in names.items():
        assert output is not None
        assert qcow2c.check(output).exit_code == 0
        with qcow2c.open(output) as image:
            assert image.pread(len(made.truth[name]), 0) == made.truth[name][: image.size()]
    assert result.exit_status == 0


def test_without_an_output_nothing_is_written_and_all_is_told(tmp_path: Path) -> None:
    path = _damaged(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = qcow2c.recover(path)
    assert sorted(tmp_path.iterdir()) == before
    assert [disk.output for disk in result.disks] == [None] * 3
    assert result.images[0].cluster_size == 4096
    assert not result.images[0].has_header


def test_the_report_covers_each_disk_without_gaps_and_is_the_same_each_time(tmp_path: Path) -> None:
    path = _damaged(tmp_path)
    report = qcow2c.recover(path).as_dict()
    assert json.loads(json.dumps(report)) == qcow2c.recover(path).as_dict()
    for disk in report["disks"]:
        at = 0
        for found in disk["ranges"]:
            assert found["start"] == at
            at += found["length"]
        assert at == disk["virtual-size"] == sum(disk["bytes"].values())


def test_what_has_no_place_is_exported_with_an_index(tmp_path: Path) -> None:
    made = sample("4k", tmp_path)
    image = bytearray(made.image)
    DAMAGES["all L2 lost"](image, __import__("random").Random(1))
    path = tmp_path / "damaged.qcow2"
    path.write_bytes(image)
    result = qcow2c.recover(path, tmp_path / "new.qcow2", fragments=tmp_path / "pieces")
    index = json.loads((tmp_path / "pieces" / "index.json").read_text())["fragments"]
    assert result.exit_status == 2
    assert sum(line["length"] for line in index) == result.images[0].unplaced > 0
    for line in index:
        content = (tmp_path / "pieces" / line["file"]).read_bytes()
        assert content == bytes(image[line["host"] : line["host"] + line["length"]])


def test_files_that_exist_and_unknown_words_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = _damaged(tmp_path)
    (tmp_path / "new.qcow2").write_bytes(b"")
    with pytest.raises(UsageError, match="exists already"):
        qcow2c.recover(path, tmp_path / "new.qcow2")
    with pytest.raises(UsageError, match="only inferred can be accepted, not 'all'"):
        qcow2c.recover(path, accept=["all"])
    with pytest.raises(UsageError, match="Unknown file format 'vmdk'"):
        qcow2c.recover(path, output_format="vmdk")


def test_a_file_without_any_table_is_refused() -> None:
    with pytest.raises(NotQcow2, match="no header and no tables"):
        qcow2c.recover(b"no image at all" * 1000)


def test_a_sparse_disk_of_a_tebibyte_is_looked_at_quickly(tmp_path: Path) -> None:
    path = tmp_path / "large.qcow2"
    qcow2c.create(path, 1 << 40)
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"far away" * 512, 1 << 39)
    result = qcow2c.recover(path, tmp_path / "new.qcow2")
    assert result.exit_status == 0
    with qcow2c.open(tmp_path / "new.qcow2") as image:
        assert image.pread(4096, 1 << 39) == b"far away" * 512


def test_bitmaps_whose_header_is_lost_are_not_taken_for_lost_data(tmp_path: Path) -> None:
    path = tmp_path / "damaged.qcow2"
    qcow2c.create(path, 1 << 20, cluster_size=4096)
    qcow2c.bitmap.add(path, "changes")
    with qcow2c.open(path, "r+") as image:
        image.pwrite(b"content!" * 4096, 8192)
    path.write_bytes(bytes(512) + path.read_bytes()[512:])
    result = qcow2c.recover(path)
    assert result.images[0].unplaced == 0
    assert result.exit_status == 0


def test_the_only_table_has_the_only_index_where_the_l1_table_is_lost(tmp_path: Path) -> None:
    made = sample("64k v2", tmp_path)
    _result, scores = cell(made, "L1 lost", tmp_path)
    assert scores[""].right == len(made.truth[""])
    assert scores[""].wrong == scores[""].inferred_wrong == scores[""].lost == 0
