"""The content hash: by its definition, the same however zeros are said, of any length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.disk.content import LEAST_RANGE, Content, RangeRun
from qcow2c.errors import UsageError


def defined(data: bytes, range_bytes: int, *, blake: bool = False) -> bytes:
    """The definition of docs/hashing.md, word by word."""

    def digest(part: bytes) -> bytes:
        return (hashlib.blake2b(part, digest_size=32) if blake else hashlib.sha256(part)).digest()

    whole = b"qcow2c-content/1\n" + len(data).to_bytes(8, "big") + range_bytes.to_bytes(8, "big")
    zeros = 0
    for at in range(0, len(data), range_bytes):
        part = data[at : at + range_bytes]
        if any(part):
            if zeros:
                whole += b"Z" + zeros.to_bytes(8, "big")
            whole += b"D" + digest(part)
            zeros = 0
        else:
            zeros += 1
    if zeros:
        whole += b"Z" + zeros.to_bytes(8, "big")
    return digest(whole)


def content_of(data: bytes, spans: list[tuple[int, int]], **options: int | str) -> Content:
    def read_into(buffer: memoryview, offset: int) -> None:
        buffer[:] = data[offset : offset + len(buffer)]

    def walk() -> Iterator[tuple[int, int]]:
        return iter(spans)

    return Content(len(data), walk, read_into, range_bytes=LEAST_RANGE, **options)  # type: ignore[arg-type]


@given(
    st.lists(st.sampled_from([bytes(1000), b"x" * 1000, bytes(4096), b"y", bytes(9000)]), max_size=12),
    st.booleans(),
)
def test_the_hash_is_the_defined_one_whatever_is_said_of_zeros(pieces: list[bytes], merge: bool) -> None:  # noqa: FBT001
    data = b"".join(pieces)
    spans, at = [], 0
    for piece in pieces:
        if any(piece) or merge:
            spans.append((at, at + len(piece)))
        at += len(piece)
    kept: list[RangeRun] = []
    found = content_of(data, spans).hash(note=kept.append)
    assert found.digest == defined(data, LEAST_RANGE)
    assert sum(run.length for run in kept) == len(data)
    assert found.data_bytes == sum(run.length for run in kept if run.digest is not None)


def test_blake_is_another_hash() -> None:
    data = b"data" * 4000
    found = content_of(data, [(0, len(data))], algorithm="blake2b-256").hash()
    assert found.digest == defined(data, LEAST_RANGE, blake=True)


def test_what_reading_raises_comes_out() -> None:
    def fail(_buffer: memoryview, offset: int) -> None:
        if offset >= 40 * LEAST_RANGE:
            raise KeyError(offset)

    size = 100 * LEAST_RANGE
    with pytest.raises(KeyError):
        Content(size, lambda: iter([(0, size)]), fail, range_bytes=LEAST_RANGE).hash()


def test_progress_ends_with_all() -> None:
    told: list[tuple[int, int]] = []
    content_of(bytes(10_000), []).hash(lambda done, size: told.append((done, size)))
    assert told[-1] == (10_000, 10_000)


@pytest.mark.parametrize("options", [{"algorithm": "md5"}, {"range_bytes": 1 << 11}, {"range_bytes": 3 << 20}])
def test_a_wrong_choice_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Content(0, lambda: iter(()), lambda _buffer, _at: None, **options)  # type: ignore[arg-type]
