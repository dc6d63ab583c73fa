"""Partial files: what they take on, when there can be none, and which leftovers are removed."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.locks import Use
from qcow2c.storage.partial_file import partial_file, partial_name, remove_leftovers

USE = Use.WRITABLE_DATA_FILE
GONE = 1 << 30
"""No process has such a number."""


def made_beside(target: Path) -> bool:
    """Return whether there is a partial file for a target; it is removed again."""
    old = LocalFile(target, writable=True)
    partial = partial_file(str(target), "target", USE, old)
    old.close()
    if partial is None:
        return False
    assert partial.size() == 0
    partial.remove()
    partial.close()
    return True


def test_a_file_with_one_name_can_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    assert made_beside(target)
    os.link(target, tmp_path / "other")
    assert not made_beside(target)
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["other", "target"]


def test_a_partial_file_is_as_private_as_the_old_one_from_the_start(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"secret")
    target.chmod(0o600)
    old = LocalFile(target, writable=True)
    partial = partial_file(str(target), "target", USE, old)
    assert partial is not None
    assert os.stat(partial.path).st_mode & 0o777 == 0o600
    partial.close()
    old.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_the_owner_is_taken_on(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    os.chown(target, 1234, 2345)
    with closing(LocalFile(target, writable=True)) as old:
        partial = partial_file(str(target), "target", USE, old)
    assert partial is not None
    status = os.stat(partial.path)
    partial.close()
    assert (status.st_uid, status.st_gid) == (1234, 2345)


def test_leftovers_of_living_processes_locked_ones_and_links_stay(tmp_path: Path) -> None:
    final = str(tmp_path / "target")
    left, alive, locked, link = (partial_name(final, number) for number in (GONE, os.getppid(), GONE + 1, GONE + 2))
    for place in (left, alive, locked):
        Path(place).write_bytes(b"half")
    (tmp_path / "precious").write_bytes(b"mine")
    Path(link).symlink_to("precious")
    holder = LocalFile(locked, writable=True)
    holder.lock(USE)
    remove_leftovers(final, USE)
    assert not os.path.exists(left)
    assert all(os.path.lexists(place) for place in (alive, locked, link))
    assert (tmp_path / "precious").read_bytes() == b"mine"
    holder.close()
    remove_leftovers(final, USE)
    assert not os.path.exists(locked)
