"""patch: a stream makes the later state of the earlier one, or nothing of it is written."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest

import qcow2c
from qcow2c.copy.diff_stream import DiffReader
from qcow2c.errors import CorruptData, StoreError, UnsupportedFeature, UsageError
from qcow2c.ops.patch import patch
from tests.two_states import SIZE, noise, stream_of, two_states


class Pipe:
    """A file that can be read but once."""

    def __init__(self, data: bytes) -> None:
        self._file = BytesIO(data)

    def seekable(self) -> bool:
        return False

    def read(self, length: int = -1) -> bytes:
        return self._file.read(min(length, 100) if length > 0 else length)


@pytest.mark.parametrize("kind", [BytesIO, Pipe])
def test_a_stream_makes_the_later_state_of_the_earlier_one(kind: Any) -> None:
    image = two_states()
    stream = stream_of(image, from_snapshot="one")
    with qcow2c.open(image) as active, active.snapshots["one"].open() as snapshot:
        later, earlier = active.readall(), snapshot.readall()
    raw = bytearray(earlier)
    told: list[tuple[int, int]] = []
    count = patch(raw, kind(stream), progress=lambda done, total: told.append((done, total)))
    assert (count, bytes(raw), told[-1]) == (2, later, (4 * SIZE, 64 * SIZE))
    target = bytearray()
    qcow2c.create(target, 64 * SIZE, cluster_size=512)
    with qcow2c.open(target, "r+") as file:
        file.write(earlier)
    for _ in range(2):  # Again, as after a crash.
        patch(target, kind(stream))
        with qcow2c.open(bytes(target)) as file:
            assert file.readall() == later
    assert qcow2c.check(bytes(target)).exit_code == 0


@pytest.mark.parametrize(("one", "other"), [(SIZE, 3 * SIZE), (3 * SIZE, SIZE)])
def test_raw_files_take_the_size_of_the_later_state(one: int, other: int) -> None:
    before, after = noise(1, one), noise(2, other)
    raw = bytearray(before)
    patch(raw, BytesIO(stream_of(before, after, from_format="raw", to_format="raw")), image_format="raw")
    assert bytes(raw) == after


def test_images_of_the_wrong_kind_are_refused_unchanged() -> None:
    stream = stream_of(two_states(), from_snapshot="one")
    small, strange = bytearray(512), bytearray(b"KDMV" + bytes(508))
    image = bytearray()
    qcow2c.create(image, SIZE)
    for target, error, words in (
        (small, UsageError, "512 bytes, the states 262144 or 262144"),
        (image, UsageError, "4096 bytes, the later state 262144: resize it first"),
        (strange, UnsupportedFeature, "vmdk"),
    ):
        before = bytes(target)
        with pytest.raises(error, match=words):
            patch(target, BytesIO(stream))
        assert bytes(target) == before


def test_a_stream_cut_off_anywhere_writes_nothing() -> None:
    before, after = bytes(2048), bytes(512) + noise(1, 512) + bytes(1024)
    stream = stream_of(before, after, from_format="raw", to_format="raw")
    for length in range(len(stream)):
        raw = bytearray(before)
        with pytest.raises(CorruptData):
            patch(raw, BytesIO(stream[:length]), image_format="raw")
        assert bytes(raw) == before
    for place in range(0, len(stream), 7):
        broken = bytearray(stream)
        broken[place] ^= 1
        with pytest.raises(CorruptData):
            patch(bytearray(before), BytesIO(bytes(broken)), image_format="raw")


class Broken(Pipe):
    """A file that fails after a while."""

    def __init__(self, data: bytes, lines: int) -> None:
        super().__init__(data)
        self._lines = lines

    def readline(self, length: int) -> bytes:
        self._lines -= 1
        if self._lines < 0:
            raise OSError(5, "Input/output error")
        return self._file.readline(length)

    def read(self, _length: int = -1) -> bytes:
        raise OSError(5, "Input/output error")


def test_what_cannot_be_read_of_a_stream_is_told() -> None:
    stream = stream_of(two_states(), from_snapshot="one")
    with pytest.raises(StoreError, match="Could not read the stream: Input/output error"):
        DiffReader(Broken(stream, 0))
    with pytest.raises(StoreError, match="Could not read the stream"):
        list(DiffReader(Broken(stream, 9)).records())
    with pytest.raises(StoreError, match="Could not keep the stream"):
        patch(bytearray(512), Broken(stream, 9))
