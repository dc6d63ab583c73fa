"""Integers of other types, which wrap around where Python's do not: every offset and size may be one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcow2c
from qcow2c.builder.options import CreateOptions
from qcow2c.copy.options import How
from qcow2c.ops.dd import part_of

SIZE = 6 << 30
HIGH = np.uint32((1 << 32) - 4096)
"""Not far from where its type wraps around."""

CALLS: dict[str, Callable[[qcow2c.Image, Any], object]] = {
    "pread": lambda image, number: image.pread(type(number)(100), number),
    "readinto_at": lambda image, number: image.readinto_at(bytearray(8192), number),
    "pwrite": lambda image, number: image.pwrite(b"x" * 8192, number),
    "write_zeroes": lambda image, number: image.write_zeroes(number, number),
    "discard": lambda image, number: image.discard(number, number),
    "write_compressed": lambda image, number: image.write_compressed(b"x" * 65536, number),
    "seek": lambda image, number: image.seek(number),
    "read": lambda image, number: image.read(type(number)(100)),
    "map": lambda image, number: list(qcow2c.map(image, start=number, max_length=number)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("number", [HIGH, np.int64(4096), np.uint8(200), np.uint16(65535), np.int32(0)], ids=repr)
def test_a_number_of_numpy_does_what_pythons_does(tmp_path: Path, name: str, number: Any) -> None:
    outcomes = []
    for index, value in enumerate((int(number), number)):
        path = tmp_path / str(index)
        qcow2c.create(path, SIZE)
        with qcow2c.open(path, "r+") as image:
            image.pwrite(b"before", (1 << 32) - 4096)
            try:
                outcome = CALLS[name](image, value)
            except qcow2c.UsageError as exc:
                outcome = str(exc)
            outcomes.append((str(outcome), image.pread(8192, (1 << 32) - 4096)))
        outcomes[-1] = (*outcomes[-1], path.read_bytes())
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("number", [1.0, "1", None])
@pytest.mark.parametrize("name", ["pread", "readinto_at", "pwrite", "write_zeroes", "discard", "seek"])
def test_what_is_no_integer_is_a_type_error(tmp_path: Path, name: str, number: Any) -> None:
    qcow2c.create(tmp_path / "a", SIZE)
    with qcow2c.open(tmp_path / "a", "r+") as image, pytest.raises(TypeError):
        CALLS[name](image, number)


def test_sizes_of_new_images_and_files_are_pythons(tmp_path: Path) -> None:
    path = tmp_path / "a"
    qcow2c.create(path, np.uint32(1 << 31), cluster_size=np.uint16(4096), refcount_bits=np.uint8(16))
    qcow2c.resize(path, np.uint32((1 << 32) - 512))
    with qcow2c.open(path, "r+") as image:
        assert image.size() == (1 << 32) - 512 and type(image.size()) is int
    qcow2c.amend(path, refcount_bits=np.uint8(32), size=np.int64(SIZE))
    qcow2c.bitmap.add(path, "b", granularity=np.uint16(4096))
    assert qcow2c.check(path).exit_code == 0
    assert qcow2c.measure(size=np.uint32((1 << 32) - 1)) == qcow2c.measure(size=(1 << 32) - 1)
    blocks = {"block_size": np.uint16(512), "count": np.uint16(65535), "skip": np.uint16(65535)}
    assert part_of(SIZE, **blocks).first == 65535 * 512  # type: ignore[arg-type]


def test_options_hold_pythons_integers() -> None:
    options = CreateOptions(np.uint32(5))  # type: ignore[arg-type]
    assert type(options.size) is int
    assert type(How(sparse_size=np.uint16(4096)).sparse_size) is int  # type: ignore[arg-type]
