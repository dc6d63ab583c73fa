"""Buffers: used again, and nobody waits for one that does not come."""

from __future__ import annotations

import threading

from qcow2c.copy.buffers import SLAB_BYTES, Buffers, Closed


def test_buffers_are_used_again_and_nobody_waits_for_one_for_ever() -> None:
    buffers = Buffers(2)
    first, second = buffers.take(), buffers.take()
    assert first is not second and len(first) == len(second) == SLAB_BYTES
    got: list[memoryview] = []
    waiting = threading.Thread(target=lambda: got.append(buffers.take()))
    waiting.start()
    buffers.give(first)
    waiting.join(20)
    assert got[0] is first
    outcome: list[bool] = []

    def wait() -> None:
        try:
            buffers.take()
        except Closed:
            outcome.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    buffers.close()
    waiting.join(20)
    assert outcome == [True]
