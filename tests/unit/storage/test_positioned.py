"""A file with a position over bytes at offsets: what `io` users expect of one."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest

from qcow2c.errors import UsageError
from qcow2c.storage.positioned import PositionedFile

CONTENT = bytes(range(200))


class Bytes(PositionedFile):
    def size(self) -> int:
        return len(CONTENT)

    def readinto_at(self, buffer: Any, offset: int) -> int:
        part = CONTENT[offset : offset + len(buffer)]
        memoryview(buffer)[: len(part)] = part
        return len(part)


def test_reads_move_the_position() -> None:
    file = Bytes()
    assert file.read(3) == CONTENT[:3] and file.tell() == 3
    buffer = bytearray(5)
    assert file.readinto(buffer) == 5 and buffer == CONTENT[3:8]
    assert file.read() == CONTENT[8:] and file.read(1) == b"" and file.tell() == 200


@pytest.mark.parametrize(
    ("offset", "whence", "position"),
    [(10, os.SEEK_SET, 10), (5, os.SEEK_CUR, 25), (-20, os.SEEK_CUR, 0), (-1, os.SEEK_END, 199), (7, os.SEEK_END, 207)],
)
def test_a_position_is_meant_from_the_start_from_here_or_from_the_end(offset: int, whence: int, position: int) -> None:
    file = Bytes()
    file.seek(20)
    assert file.seek(offset, whence) == file.tell() == position
    assert file.read(1) == CONTENT[position : position + 1]


@pytest.mark.parametrize(("offset", "whence", "words"), [(-1, os.SEEK_SET, "negative"), (0, 9, "none of SEEK_SET")])
def test_a_position_that_cannot_be_is_refused_and_the_old_one_stays(offset: int, whence: int, words: str) -> None:
    file = Bytes()
    file.seek(20)
    with pytest.raises(UsageError, match=words):
        file.seek(offset, whence)
    assert file.tell() == 20


def test_it_is_a_raw_file_that_can_be_buffered() -> None:
    with io.BufferedReader(Bytes(), 16) as reader:
        reader.seek(190)
        assert reader.read(100) == CONTENT[190:]


def test_a_closed_one_has_no_position() -> None:
    file = Bytes()
    file.close()
    for use in (file.tell, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
