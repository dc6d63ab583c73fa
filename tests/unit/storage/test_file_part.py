"""A part of a file: its bytes and no others, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.errors import StoreError, UsageError
from qcow2c.storage.file_part import FilePart
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Memory, open_store, opened

DATA = bytes(range(256)) * 8


@given(st.integers(0, 1024), st.sampled_from([None, 0, 512, 1024]), st.integers(0, 1500), st.integers(0, 1500))
def test_it_reads_as_the_bytes_that_it_is(offset: int, size: int | None, at: int, length: int) -> None:
    part = FilePart(Memory(DATA), offset, size)
    expected = DATA[offset:] if size is None else DATA[offset : offset + size]
    assert part.size() == len(expected)
    assert part.pread(length, at) == expected[at : at + length]
    buffer = bytearray(length)
    count = part.readinto_at(memoryview(buffer), at)
    assert buffer[:count] == expected[at : at + length]


def test_holes_are_where_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"x" * 65536)
        file.truncate(1 << 20)
    with opened(path) as whole:
        part = FilePart(whole, 4096, 512 << 10)
        found = list(part.extents(0, part.size()))
        assert sum(span.length for span, _ in found) == part.size()
        assert found[0][0].offset == 0 and found[0][1]
        assert part.allocated_size() == whole.allocated_size()


@pytest.mark.parametrize(
    ("offset", "size", "complaint"),
    [
        (0, 1000, "Specified size is not multiple of 512"),
        (2049, None, "Offset \\(2049\\) cannot be greater than size of the containing file \\(2048\\)"),
        (512, 2048, "The sum of offset \\(512\\) and size \\(2048\\) has to be smaller or equal"),
    ],
)
def test_what_does_not_lie_in_the_file_is_refused(offset: int, size: int | None, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        FilePart(Memory(DATA), offset, size)


def test_it_is_never_written() -> None:
    part = FilePart(open_store(bytearray(DATA), writable=True), 512, name="part")
    for write in (lambda: part.pwrite(b"x", 0), part.flush, lambda: part.truncate(0), lambda: part.punch(0, 1)):
        with pytest.raises(StoreError, match="'part' is open for reading only"):
            write()
    part.lock(Use.IMAGE)
    assert part.identity() != FilePart(Memory(DATA), 512).identity()
