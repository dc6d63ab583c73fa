"""The stream of a difference: what it holds, and what is refused of a broken one."""

from __future__ import annotations

from io import BytesIO

import pytest

from qcow2c.copy.diff_stream import DiffReader, DiffWriter
from qcow2c.errors import CorruptData

HEAD = b"qcow2c-diff 1 from 1024 to 1024\n"


BROKEN = {
    "no stream": (b"QFI\xfb" * 100, "no qcow2c-diff stream"),
    "odd size": (b"qcow2c-diff 1 from 1000 to 1024\n", "a disk of 1000 bytes"),
    "huge size": (b"qcow2c-diff 1 from 0 to 9999999999999999744\n", "a disk of"),
    "past the end": (HEAD + b"zero 512 1024\n", "out of place"),
    "nothing": (HEAD + b"zero 0 0\n", "out of place"),
    "backwards": (HEAD + b"zero 512 512\nzero 0 512\n", "out of place"),
    "unaligned": (HEAD + b"zero 1 512\n", "a range of 512 bytes at 1"),
    "too much": (
        b"qcow2c-diff 1 from 0 to 9223372036854775296\ndata 0 9223372036854774784\n", "a range of 9223372036854774784"
    ),
    "no record": (HEAD + b"none 0 512\n", "neither a record nor the end: b'none 0 512"),
    "count": (HEAD + b"end 1 " + b"0" * 64 + b"\n", "hash is wrong"),
}  # fmt: skip


@pytest.mark.parametrize(("stream", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_streams_are_refused_with_their_place(stream: bytes, words: str) -> None:
    with pytest.raises(CorruptData, match=words) as caught:
        for _ in DiffReader(BytesIO(stream)).records():
            pass
    assert caught.value.where is not None


def test_nothing_may_follow_the_end() -> None:
    parts: list[bytes] = []
    writer = DiffWriter(lambda data: parts.append(bytes(data)), 512, 512)
    writer.finish()
    assert list(DiffReader(BytesIO(b"".join(parts))).records()) == []
    with pytest.raises(CorruptData, match="something follows"):
        list(DiffReader(BytesIO(b"".join(parts) + b"x")).records())
