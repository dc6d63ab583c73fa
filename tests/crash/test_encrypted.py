"""Whenever a crash comes while an encrypted image is written, it opens, leaks at most, and holds what was flushed."""

from __future__ import annotations

import random
from typing import Any

import pytest

import qcow2c
from qcow2c.storage.store import Store
from qcow2c.writer import cow

from .judge import CLEAN_OR_LEAKS
from .recording import Recorder, crash_states

SIZE, SECTOR = 64 << 10, 512
KINDS: dict[str, dict[str, Any]] = {
    "luks": {"encryption": "luks", "cipher": "aes-128", "iter_time_ms": 1},
    "aes": {"encryption": "aes"},
}


def made(kind: str) -> bytes:
    data = bytearray()
    qcow2c.create(data, SIZE, cluster_size=4096, key="key", **KINDS[kind])
    with qcow2c.open(data, "r+", key="key") as image:
        image.pwrite(b"before" * 4000, 100)
    return bytes(data)


def write(store: Store, seed: int, recorder: Recorder) -> list[tuple[int, bytes]]:
    """Write to an image; return the times of its flushes, and the disk at each, before which there is another one."""
    drawn = random.Random(seed)
    with qcow2c.open(store, "r+", key="key") as image:
        model = bytearray(image.pread(SIZE, 0))
        flushed = [(0, bytes(model))]
        for step in range(10):
            length = drawn.choice((5, 512, 700, 4096, 9000))
            offset = drawn.randrange(SIZE - length)
            if step % 3 == 2:
                image.write_zeroes(offset, length)
                model[offset : offset + length] = bytes(length)
            else:
                data = drawn.randbytes(length)
                image.pwrite(data, offset)
                model[offset : offset + length] = data
            image.flush()
            flushed.append((len(recorder.log), bytes(model)))
    return flushed


def lost(kind: str, seed: int) -> list[str]:
    """Return the stories of crashes that left anything but old or new sectors."""
    recorder = Recorder()
    store = recorder.store(made(kind))
    flushed = write(store, seed, recorder)
    found = []
    for state in crash_states(recorder, seed):
        data = bytes(state.files[0])
        assert qcow2c.check(data).exit_code in CLEAN_OR_LEAKS, state.story
        last = max(number for number, (time, _) in enumerate(flushed) if time <= state.time)
        possible = [disk for _, disk in flushed[last : last + 2]]
        with qcow2c.open(data, key="key") as image:
            disk = image.pread(SIZE, 0)
        for start in range(0, SIZE, SECTOR):
            if disk[start : start + SECTOR] not in [one[start : start + SECTOR] for one in possible]:
                found.append(state.story)
                break
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_sector_is_an_old_or_a_new_one(kind: str) -> None:
    assert lost(kind, 1) == []


def test_plain_text_for_cipher_text_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cow, "stored", lambda _cipher, run, _offset: [piece.data for piece in run])
    assert lost("aes", 1)
