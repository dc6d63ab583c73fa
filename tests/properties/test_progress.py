"""Progress of long work in the library: it never goes back, and ends with all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.storage.store import Progress
from tests.building import L2_COPIED, Builder


def leaking(path: Path) -> Path:
    """Write an image with a leak, and another error, large enough for the full check."""
    builder = Builder(1 << 22, cluster_bits=12)
    for cluster in range(0, 1000, 7):
        builder.data(cluster, b"x")
    builder.entry(3, builder.put(b"shared") | L2_COPIED)
    builder.entry(4, builder.put(b"leak"))
    builder.entry(4, 0)
    path.write_bytes(builder.build())
    return path


def dumped(path: Path, progress: Progress) -> None:
    with qcow2c.dump(path, progress=progress) as dump:
        assert list(dump.text())


WORK: dict[str, Callable[[Path, Progress], object]] = {
    "check": lambda path, progress: qcow2c.check(path, progress=progress),
    "repair": lambda path, progress: qcow2c.repair(path, "all", progress=progress),
    "plan of a repair": lambda path, progress: qcow2c.repair(path, "all", dry_run=True, progress=progress),
    "dump": dumped,
}


@pytest.mark.parametrize("image", ["leaking", "demo"])
@pytest.mark.parametrize("work", WORK)
def test_progress_grows_up_to_all(work: str, image: str, tmp_path: Path, examples: Path) -> None:
    path = tmp_path / "image"
    if image == "demo":
        shutil.copy(examples / "demo.qcow2", path)
    else:
        leaking(path)
    told: list[float] = []
    WORK[work](path, lambda done, size: told.append(done / size))
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) > 2 or image == "demo"


def test_the_whole_dump_is_told_again_where_it_is_walked_again(examples: Path) -> None:
    told: list[int] = []
    with qcow2c.dump(examples / "demo.qcow2", progress=lambda done, _size: told.append(done)) as dump:
        assert list(dump.text())
        once = list(told)
        assert list(dump.json())
    assert told[len(once)] == 0 and told[-1] == once[-1]
