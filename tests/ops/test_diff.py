"""diff: ranges against bytes, the stream that its description says, overlays that show the later state."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.copy.diff_stream import DiffReader
from qcow2c.disk.differences import Difference, differences
from qcow2c.errors import MissingKey, UsageError
from qcow2c.ops.diff import diff, open_states, write_overlay
from tests.building import Builder
from tests.two_states import CHANGED, SIZE, Counting, noise, stream_of, two_states

# --- ranges ---


def test_a_snapshot_and_the_active_state() -> None:
    image = two_states()
    assert list(diff(image, from_snapshot="one", exact=True)) != []
    store = Counting(image)
    told: list[tuple[int, int]] = []
    found = diff(store, from_snapshot="7", progress=lambda done, total: told.append((done, total)))
    assert list(found) == CHANGED
    assert told[0] == (0, 64 * SIZE) and told[-1] == (64 * SIZE, 64 * SIZE)
    back = diff(store, store, to_snapshot="one")
    assert list(back) == [Difference(2 * SIZE + 512, 2 * SIZE - 512, zero=False)]


@pytest.mark.parametrize(("one", "other"), [(1000, 1000), (1000, 3000), (3000, 1000), (700, 5120), (0, 100), (100, 0)])
def test_raw_files_may_end_within_a_sector(one: int, other: int) -> None:
    before, after = noise(1, one), bytearray(noise(1, other))
    if other > 600:
        after[600] ^= 1
    found = list(diff(before, bytes(after), from_format="raw", to_format="raw"))
    whole = -(-other // 512) * 512
    result = bytearray(before.ljust(whole, b"\0")[:whole])
    for part in found:
        data = bytes(after).ljust(whole, b"\0")[part.start : part.end]
        assert part.zero == (not any(data)) and not part.start % 512 and not part.length % 512
        result[part.start : part.end] = data
    assert bytes(result) == bytes(after).ljust(whole, b"\0")
    fast = list(diff(before, bytes(after), from_format="raw", to_format="raw", exact=False))
    assert sum(part.length for part in fast) >= sum(part.length for part in found)


def test_states_that_are_encrypted_or_the_same_are_refused() -> None:
    builder = Builder(SIZE, crypt_method=1)
    builder.snapshot(b"one")
    with open_states(builder.build(), from_snapshot="one") as disks, pytest.raises(MissingKey, match="no key"):
        differences(*disks)
    for snapshot in (None, "one"):
        with pytest.raises(UsageError, match="does not differ from itself"):
            list(diff(two_states(), from_snapshot=snapshot, to_snapshot=snapshot))


# --- the stream ---


def test_the_stream_is_what_its_description_says() -> None:
    stream = stream_of(two_states(), from_snapshot="one")
    data = noise(22, SIZE - 512)
    head = b"qcow2c-diff 1 from 262144 to 262144\ndata 8704 3584\n" + data + b"zero 12288 4096\n"
    assert stream.startswith(head + b"end 2 ") and len(stream) == len(head) + 7 - 1 + 64 + 1
    reader = DiffReader(BytesIO(stream))
    assert (reader.before_size, reader.after_size) == (64 * SIZE, 64 * SIZE)
    assert list(reader.records()) == [(8704, 3584, data), (12288, 4096, None)]


# --- overlays ---

OVERLAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "512": {"cluster_size": 512},
    "2M": {"cluster_size": 2 << 20},
    "old": {"compat": "0.10", "cluster_size": 4096},
    "old 64k": {"compat": "0.10"},
    "extended": {"extended_l2": True},
    "packed": {"cluster_size": 4096, "compress": True, "compression_type": "zstd", "compression_level": 1},
    "fast": {"exact": False, "cluster_size": 1024},
}


def pair(seed: int) -> tuple[bytes, bytes]:
    """Return two disks that differ here and there, at all borders, in sizes, and in zeros."""
    chooser = random.Random(seed)
    before = bytearray(noise(seed, 512 * chooser.randrange(1, 2000)))
    before[chooser.randrange(len(before)) :: 7] = b""
    before = bytearray(bytes(before).ljust(-(-len(before) // 512) * 512, b"\0"))
    after = bytearray(bytes(before).ljust(512 * chooser.randrange(1, 2000), b"\0"))
    if chooser.random() < 0.5:
        del after[512 * chooser.randrange(1, len(after) // 512 + 1) :]
    for _ in range(chooser.randrange(8)):
        start = chooser.randrange(len(after))
        length = min(len(after) - start, chooser.choice((1, 512, 4096, 70_000, 300_000)))
        after[start : start + length] = bytes(length) if chooser.random() < 0.5 else chooser.randbytes(length)
    return bytes(before), bytes(after)


@pytest.mark.parametrize("options", OVERLAYS.values(), ids=OVERLAYS)
def test_an_overlay_shows_the_later_state(options: dict[str, Any]) -> None:
    for seed in range(6):
        before, after = pair(seed)
        target = bytearray()
        with open_states(before, after, from_format="raw", to_format="raw") as disks:
            write_overlay(*disks, target, backing_file="base", backing_fmt="raw", **options)
        with qcow2c.open(bytes(target), backing=BytesIO(before)) as image:
            assert image.readall() == after
        checked = qcow2c.check(bytes(target))
        assert checked.exit_code == 0, list(checked.messages)


def test_an_overlay_holds_no_more_than_differs() -> None:
    before = noise(1, 1 << 20)
    after = bytearray(before)
    after[70_000] ^= 1
    after[500_000:600_000] = bytes(100_000)
    target = bytearray()
    with open_states(before, bytes(after), from_format="raw", to_format="raw") as disks:
        write_overlay(*disks, target, backing_file="base", backing_fmt="raw", cluster_size=4096)
    with qcow2c.open(bytes(target), backing=False) as image:
        held = [run for run in image.layer.runs(0, image.size()) if run.kind.name != "UNALLOCATED"]
    assert [(run.kind.name, run.guest_offset, run.length) for run in held] == [
        ("DATA", 69632, 4096), ("DATA", 499712, 4096), ("ZERO", 503808, 94208), ("DATA", 598016, 4096)
    ]  # fmt: skip


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"colour": "red"}, "Invalid parameter 'colour'"),
    ({"preallocation": "full"}, "Invalid parameter 'preallocation'"),
    ({"backing_file": None}, "an overlay has a backing file"),
    ({"data_file": "data"}, "no data file"),
    ({"backing_fmt": None}, "without backing format"),
    ({"compression_level": 3}, "without compression"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_overlays_that_make_no_sense_are_refused(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    options = {"backing_file": "base", "backing_fmt": "raw"} | wrong
    with open_states(b"a" * 512, b"b" * 512) as disks, pytest.raises(UsageError, match=words):
        write_overlay(*disks, tmp_path / "over", **options)
    assert list(tmp_path.iterdir()) == []


# --- export ---
