"""Which exports an image has, and which choices make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from qcow2c.disk.disk import SnapshotKey
from qcow2c.errors import UsageError
from qcow2c.serve.exports import Choices
from qcow2c.serve.opening import open_exports

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk"
    qcow2c.create(image, SIZE)
    with qcow2c.open(image, "r+") as disk:
        for name in ("one", "tw\xf6"):
            disk.snapshots.create(name)
            disk.pwrite(name.encode(), 0)
    return image


def test_each_snapshot_is_there_beside_the_disk(path: Path) -> None:
    with open_exports(path, name="n") as exports:
        assert list(exports) == [b"n", b"snapshots/one", "snapshots/tw\xf6".encode()]
        assert not any(export.writable for export in exports.values())
    with open_exports(path, choices=Choices(writable=True)) as exports:
        assert list(exports) == [b""] and exports[b""].writable


@pytest.mark.parametrize("chosen", ["tw\xf6", "2", SnapshotKey(id="2"), SnapshotKey(name="tw\xf6")])
def test_a_snapshot_may_be_all_that_is_served(path: Path, chosen: str | SnapshotKey) -> None:
    with open_exports(path, snapshot=chosen) as exports:
        buffer = bytearray(3)
        exports[b""].read_into(memoryview(buffer), 0)
        assert (list(exports), buffer) == ([b""], b"one")


def test_what_makes_no_sense_is_said(path: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(SIZE))
    for source, how, message in (
        (path, {"snapshot": "three"}, "Can't find snapshot"),
        (path, {"snapshot": "one", "choices": Choices(writable=True)}, "read-only"),
        (raw, {"snapshot": "one"}, "no snapshots"),
        (raw, {"choices": Choices(bitmap="b")}, "no bitmaps"),
    ):
        with pytest.raises(UsageError, match=message), open_exports(source, **how):  # type: ignore[arg-type]
            pass
