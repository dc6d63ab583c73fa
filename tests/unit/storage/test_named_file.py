"""A name of the caller's means a regular file or a block device, and nothing else."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from qcow2c.errors import StoreError
from qcow2c.storage.block_device import BlockDevice
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.named_file import file_at
from tests.loop_device import loop_device, requires_loop


def test_file_is_opened_or_made(tmp_path: Path) -> None:
    with closing(file_at(tmp_path / "new", writable=True, create=True)) as file:
        assert type(file) is LocalFile and file.created and file.capacity() is None
        file.require_capacity(1 << 62)


@requires_loop
def test_device_is_a_device_whatever_links_lead_there(tmp_path: Path) -> None:
    with loop_device(tmp_path / "content", 1 << 20) as device:
        (tmp_path / "link").symlink_to(device)
        with closing(file_at(tmp_path / "link", create=True, name="shown")) as file:
            assert type(file) is BlockDevice and not file.created and file.name == "shown"
            assert file.size() == file.capacity() == 1 << 20


def test_anything_else_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path, "a directory"), (tmp_path / "fifo", "a FIFO"), ("/dev/null", "a character device")):
        with pytest.raises(StoreError, match=f"it is {kind}"):
            file_at(path)
    with pytest.raises(StoreError, match="No such file"):
        file_at(tmp_path / "missing")
