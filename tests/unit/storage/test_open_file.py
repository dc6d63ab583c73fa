"""Files that the caller has open: the same bytes, whatever is in a buffer; and what cannot be used is refused."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import StoreError
from qcow2c.storage.descriptors import DescriptorFile
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.sources import FileObject, Memory, opened


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "content").write_bytes(b"0123456789")
    with (tmp_path / "content").open("r+b") as opened_file:
        yield opened_file


def test_a_buffer_neither_hides_what_is_written_nor_is_hidden(file: Any) -> None:
    file.write(b"ab")
    assert file.peek(1)
    with opened(file, writable=True) as store:
        assert store.pread(4, 0) == b"ab23"
        store.pwrite(b"XY", 2)
        store.flush()
    file.seek(0)
    assert file.read() == b"abXY456789"


def test_the_position_of_a_descriptor_is_not_moved(file: Any) -> None:
    os.lseek(file.fileno(), 3, os.SEEK_SET)
    with opened(file.fileno()) as store:
        assert store.pread(2, 8) == b"89"
        assert [kind for _, kind in store.extents(0, 10)] == [True]
    assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 3


@pytest.mark.parametrize("reopened", [True, False])
def test_it_works_where_the_file_cannot_be_opened_again(
    file: Any, monkeypatch: pytest.MonkeyPatch, *, reopened: bool
) -> None:
    def refused(*_arguments: Any) -> int:
        raise PermissionError(13, "no /proc")

    if not reopened:
        monkeypatch.setattr(os, "open", refused)
    store = DescriptorFile(file.fileno(), writable=True)
    monkeypatch.undo()
    store.pwrite(b"!", 0)
    store.close()
    assert os.pread(file.fileno(), 2, 0) == b"!1"


def test_a_hint_of_extents_is_kept_where_the_file_system_has_such_a_thing(tmp_path: Path) -> None:
    store = LocalFile(tmp_path / "new", writable=True, create=True)
    assert store.extent_size_hint() is None
    store.set_extent_size_hint(1 << 20)
    assert store.extent_size_hint() in (None, 1 << 20)
    store.close()
    assert Memory(b"").extent_size_hint() is None


def test_what_is_no_file_to_write_to_or_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with (tmp_path / "x").open("rb") as reading, pytest.raises(StoreError, match="reading only"):
        DescriptorFile(reading.fileno(), writable=True)
    with (tmp_path / "x").open("ab") as appending, pytest.raises(StoreError, match="writing only"):
        DescriptorFile(appending.fileno())
    reader, writer = os.pipe()
    for fd in (reader, writer, 1 << 20, 1 << 70, -1):
        with pytest.raises(StoreError, match=f"descriptor {fd}"):
            DescriptorFile(fd)
    os.close(reader)
    os.close(writer)


def test_a_temporary_file_is_a_file_and_an_object_that_only_has_a_descriptor_is_not(file: Any) -> None:
    class Other(io.BufferedRandom):
        """May read anything."""

    with tempfile.TemporaryFile() as temporary, opened(temporary, writable=True) as store:
        assert isinstance(store, DescriptorFile)
        qcow2c.create(temporary, 1 << 20)
    with Other(io.FileIO(file.name, "r+")) as other, opened(other) as store:
        assert isinstance(store, FileObject)
