"""The fids of a 9P client."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import StoreError
from qcow2c.serve.folder import OpenDisk, open_folder
from qcow2c.serve.ninep_fids import MAX_FIDS, Fids, RequestFailed, passed_by
from qcow2c.serve.ninep_files import ServedNode, tree_of


class Failing(OpenDisk):
    def flush(self, *, always: bool = True) -> None:
        raise StoreError(f"no flush ({always})")


def test_fids_are_bounded_and_stand_for_one_file_each() -> None:
    fids, root = Fids(), ServedNode(b"/", 0, None)
    for number in range(MAX_FIDS):
        fids.add(number, root)
    for number, code in ((0, errno.EINVAL), (0xFFFFFFFF, errno.EINVAL), (MAX_FIDS, errno.EMFILE)):
        with pytest.raises(RequestFailed) as caught:
            fids.add(number, root)
        assert caught.value.code == code
    fids.close(3)
    with pytest.raises(RequestFailed, match="there is no fid 3"):
        fids.known(3)
    fids.close_all()
    fids.add(3, root)


def test_all_are_closed_whatever_fails(tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "disk", 1 << 20)
    with open_folder(tmp_path / "disk", writable=True) as folder:
        data = tree_of(folder).inside[b"data"]
        assert data.entry is not None
        opened = data.entry.open()
        assert isinstance(opened, OpenDisk)
        fids = Fids()
        for number in range(3):
            fids.add(number, data)
            fids.known(number).file = Failing(opened.export, lambda: None)
        with pytest.raises(StoreError, match="no flush"):
            fids.close(0)
        with pytest.raises(StoreError, match="no flush"):
            fids.close_all()
        for number in range(3):
            with pytest.raises(RequestFailed):
                fids.known(number)


def test_walk_ends_where_a_name_leads_nowhere(tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "disk", 1 << 20)
    with open_folder(tmp_path / "disk") as folder:
        root = tree_of(folder)
        node, qids = passed_by(root, [b"data", b"..", b"missing", b"data"])
        assert node is root and len(qids) == 2
        for start, name, code in ((root, b"x", errno.ENOENT), (root.inside[b"data"], b"x", errno.ENOTDIR)):
            with pytest.raises(RequestFailed) as caught:
                passed_by(start, [name])
            assert caught.value.code == code
