"""The files that 9P shows of an image."""

from __future__ import annotations

from pathlib import Path

import qcow2c
from qcow2c.serve.folder import open_folder
from qcow2c.serve.ninep_files import files_below, tree_of


def test_disk_and_snapshots_are_files(tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "disk", 1 << 20)
    with qcow2c.open(tmp_path / "disk", "r+") as image:
        image.snapshots.create("..")
    with open_folder(tmp_path / "disk") as folder:
        root = tree_of(folder)
        assert [path for path, _ in files_below(root)] == [b"data", b"snapshots/%2E%2E"]
        data = root.step(b"data")
        assert data is not None and data.step(b"..") is root and data.step(b"x") is None and data.step(b".") is None
        assert root.step(b"..") is root.step(b".") is root and root.step(b"data/") is None
        numbers = {root.number, *(node.number for node in root.inside.values())}
        assert len(numbers) == 3
        before = data.qid
        data.changed()
        assert data.qid != before and data.qid.path == before.path


def test_raw_file_has_no_snapshots(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"raw!" * 1024)
    with open_folder(tmp_path / "raw", image_format="raw", writable=True) as folder:
        root = tree_of(folder)
        assert [(path, entry.size, entry.writable) for path, entry in files_below(root)] == [(b"data", 4096, True)]
