"""The census: what of an image goes into its compact copy, and what no copy is made of."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qcow2c.builder import census
from qcow2c.builder.census import Census
from qcow2c.errors import (
    CorruptMetadata,
    LimitExceeded,
)
from qcow2c.format.header import Header
from qcow2c.references.walk import Walk
from qcow2c.storage.sources import LocalFile, Memory
from tests.building import L2_COMPRESSED, Builder, packed_words

SIZE = 4096


def broken(change: Any, **options: Any) -> bytes:
    builder = Builder(64 * SIZE, **options)
    builder.data(0, b"x" * SIZE)
    change(builder)
    return builder.build()


def walk(image: Any) -> Walk:
    return Walk(image, Header.load(image))


def test_a_file_of_too_many_clusters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.write_bytes(Builder(SIZE, cluster_bits=9).build())
    os.truncate(path, (census.MAX_CLUSTERS + 1) * 512)
    with closing(LocalFile(path)) as store, pytest.raises(LimitExceeded, match="beyond the limit"):
        Census(walk(store))


def test_the_census_itself_knows_where_the_file_ends() -> None:
    with pytest.raises(CorruptMetadata, match="past the end of the file"):
        Census(walk(Memory(broken(lambda made: made.entry(1, 1 << 30)))))


def test_references_may_be_more_than_32_bits_can_count() -> None:
    builder = Builder(1 << 41, cluster_bits=21, refcount_order=6)
    builder.l1 = [builder.allocate(1 << 21)] * 4
    builder.parts[builder.l1[0]] = packed_words([builder.put(b"x")] * (1 << 18))
    image = Memory(builder.build())
    found = Census(walk(image))
    assert int(found.counts.max()) == 4 << 18
    assert L2_COMPRESSED not in found.packed
