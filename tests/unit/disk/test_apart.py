"""A new image is not its own backing file, nor anything below that, nor its data file: whatever names they have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import qcow2c
from qcow2c.disk.apart import require_apart
from qcow2c.errors import ChainError, ImageLocked, Qcow2Error, UsageError

KIB = 1024


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Make base <- middle, and other names of base; return what each file holds."""
    monkeypatch.chdir(tmp_path)
    qcow2c.create("base", 256 * KIB)
    with qcow2c.open("base", "r+") as image:
        image.pwrite(b"base" * 64 * KIB, 0)
    qcow2c.create("middle", backing_file="base", backing_fmt="qcow2")
    qcow2c.create("other", 256 * KIB)
    qcow2c.snapshots.create("other", "kept")
    os.link("base", "hard")
    os.symlink("base", "soft")
    return {name: Path(name).read_bytes() for name in ("base", "middle", "other")}


@pytest.mark.parametrize("name", ["base", "hard", "soft", "./base"])
@pytest.mark.parametrize("below", ["base", "middle"])
def test_no_file_of_a_chain_is_created_anew(name: str, below: str, chain: dict[str, bytes]) -> None:
    over = {"backing_file": below, "backing_fmt": "qcow2"}
    with pytest.raises(UsageError):
        qcow2c.create(name, **over)
    with pytest.raises(UsageError):
        qcow2c.create("new", data_file=name, **over)
    with pytest.raises(UsageError):
        qcow2c.convert("other", name, output_format="qcow2", **over)
    with pytest.raises(UsageError):
        qcow2c.convert("other", "new", output_format="qcow2", data_file=name, **over)
    with pytest.raises(UsageError):
        qcow2c.export("other", "kept", name, **over)
    assert {file: Path(file).read_bytes() for file in chain} == chain
    assert not os.path.exists("new")


@pytest.mark.parametrize("name", ["base", "hard", "soft"])
def test_an_image_is_not_its_data_file(name: str, chain: dict[str, bytes]) -> None:
    for make in (
        lambda: qcow2c.create("base", 64 * KIB, data_file=name),
        lambda: qcow2c.convert("other", "base", output_format="qcow2", data_file=name),
    ):
        with pytest.raises(UsageError, match="cannot be an image and its external data file"):
            make()
    assert Path("base").read_bytes() == chain["base"]
    with pytest.raises(UsageError, match="cannot be an image and its external data file"):
        require_apart("new", backing_file=None, data_file="./new")


def test_without_a_look_at_the_chain_the_backing_file_itself_is_known(chain: dict[str, bytes]) -> None:
    with pytest.raises(UsageError, match="same filename"):
        qcow2c.create("hard", 64 * KIB, backing_file="base", backing_fmt="qcow2", check_backing=False)
    assert Path("base").read_bytes() == chain["base"]


@pytest.mark.parametrize("name", ["middle", "./middle"])
def test_an_image_is_not_rebased_onto_itself(name: str, chain: dict[str, bytes]) -> None:
    for unsafe in (False, True):
        with pytest.raises((ChainError, ImageLocked)):
            qcow2c.rebase("middle", name, backing_format="qcow2", unsafe=unsafe)
    assert Path("middle").read_bytes() == chain["middle"]


@pytest.mark.parametrize("name", ["base", "hard", "soft"])
def test_nothing_is_written_over_what_a_copy_reads(name: str, chain: dict[str, bytes]) -> None:
    qcow2c.create("outside", 256 * KIB, data_file="data", data_file_raw=True)
    os.link("data", "data2")
    for source, target in (("middle", name), ("data2", "outside")):
        with pytest.raises(ImageLocked):
            qcow2c.convert(source, target, output_format="qcow2", existing=True)
    for copy in (qcow2c.convert, qcow2c.dd):
        with pytest.raises(Qcow2Error):
            copy("middle", name)
    assert Path("base").read_bytes() == chain["base"]


@pytest.mark.usefixtures("chain")
def test_what_is_apart_is_made() -> None:
    qcow2c.create("other", backing_file="middle", backing_fmt="qcow2")
    qcow2c.create("new", 64 * KIB, data_file="new.data")
    with qcow2c.open("other") as image:
        assert image.pread(4, 0) == b"base"
