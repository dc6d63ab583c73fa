"""Salvage: what is lost reads as zeros and is listed; nothing else is."""

from __future__ import annotations

import random

import pytest

import qcow2c
from qcow2c.errors import CorruptMetadata, Span
from qcow2c.format.header import Header
from qcow2c.layers.reader import Reader
from qcow2c.layers.salvage import Salvage
from qcow2c.layers.state import load_state
from qcow2c.storage.sources import Memory
from tests.building import Builder


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_salvage_zeroes_only_what_is_lost_and_lists_it() -> None:
    builder = Builder(cluster_bits=12)
    good = pattern(1, 4096)
    builder.data(0, good)
    builder.entry(1, 1 << 57 | 4096)
    builder.compressed(2, b"\xff" * 100)
    builder.entry(3, 4096 * 1000)
    builder.entry(4, 4096 * 1001)
    builder.data(5, good)
    with qcow2c.open(builder.build(), on_error="zero") as image:
        assert image.pread(6 * 4096, 0) == good + bytes(4 * 4096) + good
        assert [salvaged.guest for salvaged in image.salvaged] == [
            Span(4096, 4096),
            Span(2 * 4096, 4096),
            Span(3 * 4096, 2 * 4096),
        ]
        again = image.salvaged
        assert image.pread(4096, 2 * 4096) == bytes(4096)
        assert image.salvaged[: len(again)] == again


def test_an_error_without_a_guest_range_is_never_salvaged() -> None:
    builder = Builder(cluster_bits=12)
    header = Header.load(Memory(builder.build()))
    store = Memory(builder.build())
    reader = Reader(store, load_state(store, header, 4096, 1, 1 << 20), salvage=Salvage())
    error = CorruptMetadata("nowhere")
    with pytest.raises(CorruptMetadata, match="nowhere"):
        reader._salvaged_run(error, 0, 10)
