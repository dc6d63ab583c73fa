"""The undo file: it takes back what was done, whole or in part, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcow2c.errors import LimitExceeded, UsageError
from qcow2c.recovery import journal as undo
from qcow2c.recovery.journal import Journal, Patched, journal_for, load
from qcow2c.storage.sources import LocalFile, Memory, Store, WritableMemory

OLD = bytes(range(1, 251)) * 10
"""An image of 2500 bytes: its last sector is cut short."""


def journal_of(file: bytearray, image: Store) -> Journal:
    """Return a journal of two stages, of which the second changes a sector again and lets the image grow."""
    journal = Journal(WritableMemory(file), image.size())
    journal.add(1, 512, OLD[512:1024], b"a" * 512)
    journal.add(1, 2048, OLD[2048:], b"b" * 1024)
    journal.add(2, 512, b"a" * 512, b"c" * 512)
    journal.complete(image)
    return journal


def changed() -> tuple[bytearray, bytearray]:
    """Return an image after the changes, and the undo file."""
    image, file = bytearray(OLD), bytearray()
    store = WritableMemory(image)
    journal_of(file, store).apply(store)
    return image, file


def test_what_was_done_is_taken_back_bit_for_bit() -> None:
    image, file = changed()
    assert bytes(image) == OLD[:512] + b"c" * 512 + OLD[1024:2048] + b"b" * 1024
    assert load(Memory(file)).take_back(WritableMemory(image))
    assert image == OLD
    assert not load(Memory(file)).take_back(WritableMemory(image))


def test_what_was_done_in_part_is_taken_back() -> None:
    whole, file = changed()
    for image in (
        bytearray(OLD[:512] + b"a" * 512 + OLD[1024:]),
        bytearray(OLD[:512] + b"c" * 512 + OLD[1024:]),
        bytearray(OLD + bytes(3072 - len(OLD))),
        bytearray(OLD[:2048] + whole[2048:2560]),
    ):
        load(Memory(file)).take_back(WritableMemory(image))
        assert image == OLD


def test_an_image_that_was_changed_since_is_left_alone() -> None:
    for at in (600, 2600):
        image, file = changed()
        image[at] ^= 1
        before = bytes(image)
        with pytest.raises(UsageError, match="does not hold what the repair wrote"):
            load(Memory(file)).take_back(WritableMemory(image))
        assert image == before
    image, file = changed()
    for size in (len(image) + 1, len(OLD) - 1):
        with pytest.raises(UsageError, match="it was changed after the repair"):
            load(Memory(file)).take_back(WritableMemory(bytearray(size)))


def test_bytes_that_the_repair_did_not_touch_may_have_changed() -> None:
    image, file = changed()
    image[100] ^= 255
    load(Memory(file)).take_back(WritableMemory(image))
    assert image == OLD[:100] + bytes([OLD[100] ^ 255]) + OLD[101:]


def test_an_undo_file_that_was_not_completed_is_refused() -> None:
    _, file = changed()
    for length in range(0, len(file), 41):
        with pytest.raises(UsageError, match=r"is no undo file|was never completed"):
            load(Memory(file[:length]))


def lines_with(**changes: object) -> bytes:
    first = {"stage": 1, "offset": 512, "old": 512, "new": 512} | changes
    return b"qcow2c undo 1\n" + json.dumps(first).encode() + b"\n" + bytes(1024)


@pytest.mark.parametrize(
    "damage",
    [
        b"qcow2c undo 1\n",
        b"qcow2c undo 1\nno json\n",
        b"qcow2c undo 1\n[1]\n",
        b"qcow2c undo 1\n{}\n",
        b"qcow2c undo 1\n" + b"[" * 8000 + b"\n",
        lines_with(offset=-1),
        lines_with(offset=1 << 64),
        lines_with(old="512"),
        lines_with(new=1 << 40),
        lines_with(stage=True),
        b'qcow2c undo 1\n{"sha256": "", "size": 0, "repaired_size": 0, "changes": 0}\n',
    ],
)
def test_a_damaged_undo_file_is_refused(damage: bytes) -> None:
    with pytest.raises(UsageError, match="damaged, or was never completed"):
        load(Memory(damage))


def test_any_changed_byte_of_an_undo_file_is_noticed() -> None:
    _, file = changed()
    for at in range(0, len(file), 331):
        other = bytearray(file)
        other[at] ^= 1
        with pytest.raises(UsageError):
            load(Memory(other))


def test_the_image_as_it_will_be_reads_like_the_image_as_it_is_then(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20) + OLD)
    base = LocalFile(path, writable=True)
    journal = Journal(WritableMemory(bytearray()), base.size())
    journal.add(2, 4096, bytes(512), b"2" * 512)
    journal.add(1, 4096, bytes(1024), b"1" * 1024)
    journal.add(1, base.size(), b"", b"3" * 700)
    journal.add(1, 3 << 20, b"", b"4" * 512)
    patched = Patched(base, journal)
    expected = bytearray(path.read_bytes())
    expected[4096:5120] = b"2" * 512 + b"1" * 512
    expected += b"3" * 700
    expected += bytes((3 << 20) - len(expected)) + b"4" * 512
    assert patched.size() == len(expected)
    assert patched.pread(len(expected) + 99, 0) == expected
    for start in range(4000, 5300, 100):
        assert patched.pread(333, start) == expected[start : start + 333]
    assert patched.pread(10, 4 << 20) == b""
    spans = list(patched.extents(100, len(expected)))
    assert [span.offset for span, _ in spans[1:]] == [span.end for span, _ in spans[:-1]]
    assert (spans[0][0].offset, spans[-1][0].end) == (100, len(expected))
    for span, is_data in spans:
        assert is_data or not any(expected[span.offset : span.end])
    assert [span.length for span, is_data in patched.extents(2 << 20, (2 << 20) + 10) if not is_data] == [10]
    assert patched.allocated_size() == (base.allocated_size() or 0) + 512 + 1024 + 700 + 512
    assert Patched(Memory(b""), journal).allocated_size() is None
    base.close()


def test_a_long_change_is_many() -> None:
    file = bytearray()
    image = WritableMemory(bytearray())
    journal = Journal(WritableMemory(file), 0)
    journal.add(1, 512, b"", bytes(9 << 20))
    assert [change.new for change in journal.changes] == [4 << 20, 4 << 20, 1 << 20]
    journal.apply(image)
    assert image.size() == (9 << 20) + 512


def test_changes_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo, "MAX_CHANGES", 1)
    journal = Journal(WritableMemory(bytearray()), 0)
    journal.add(1, 0, b"", b"1")
    with pytest.raises(LimitExceeded, match="more than 1 changes"):
        journal.add(1, 0, b"", b"1")


def test_an_undo_file_goes_where_nothing_was_changed(tmp_path: Path) -> None:
    path, image = tmp_path / "undo", WritableMemory(bytearray(OLD))
    with journal_for(image, path) as journal:
        assert path.exists()
    assert not path.exists()
    with journal_for(image, path) as journal:
        journal.add(1, 0, OLD[:512], bytes(512))
        journal.drop()
    assert not path.exists()
    with pytest.raises(KeyError), journal_for(image, path) as journal:
        journal.add(1, 0, OLD[:512], bytes(512))
        raise KeyError
    assert not path.exists()
    with pytest.raises(KeyError), journal_for(image, path) as journal:
        journal.add(1, 0, OLD[:512], bytes(512))
        journal.complete(image)
        raise KeyError
    assert path.exists()
    with pytest.raises(UsageError, match="never overwritten"), journal_for(image, path):
        pass
