"""Names in QEMU's forms on the command line: `file:` everywhere, and no local files with the names of protocols."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    monkeypatch.chdir(tmp_path)
    qcow2c.create("disk.qcow2", 1 << 20)
    with qcow2c.open("disk.qcow2", "r+") as image:
        image.snapshots.create("then")

    def call(*words: str) -> tuple[int, str]:
        status = main(list(words))
        return status, capfdbinary.readouterr().err.decode()

    return call


COMMANDS = (
    "create -f raw {} 1M",
    "create -f qcow2 {} 1M",
    "create -f qcow2 -o data_file={} new.qcow2 1M",
    "create -f qcow2 -b {} -F raw new.qcow2",
    "convert disk.qcow2 {}",
    "convert -O qcow2 disk.qcow2 {}",
    "convert -O qcow2 -o preallocation=metadata disk.qcow2 {}",
    "convert -O qcow2 -o data_file={} disk.qcow2 new.qcow2",
    "convert -n disk.qcow2 {}",
    "convert {} new.raw",
    "dd if=disk.qcow2 of={}",
    "dd if=disk.qcow2 of={} -O qcow2",
    "dd if={} of=new.raw",
    "export disk.qcow2 then {}",
    "compact disk.qcow2 {}",
    "diff --overlay {} disk.qcow2 disk.qcow2",
    "rebase -b {} -F raw disk.qcow2",
    "resize {} 2M",
    "snapshot -c new {}",
    "amend -o compat=1.1 {}",
    "bitmap --add {} name",
    "info {}",
    "check {}",
    "map {}",
    "dump {}",
    "measure {}",
    "compare disk.qcow2 {}",
)


@pytest.mark.parametrize("line", COMMANDS)
def test_no_command_takes_a_protocol_for_a_file(line: str, run: Run, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    status, err = run(*line.format("nbd:localhost:10809").split())
    assert status != 0
    assert "no local file" in err, err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_file_is_understood_in_front_of_every_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for line in (
        "create -q -f qcow2 -o data_file=file:guest.raw file:new.qcow2 1M",
        "create -q -f qcow2 -b file:../disk.qcow2 -F qcow2 file:sub/over.qcow2",
        "resize -q file:new.qcow2 2M",
        "convert -O qcow2 file:disk.qcow2 file:copy.qcow2",
        "dd if=file:disk.qcow2 of=file:part.raw",
        "export file:disk.qcow2 then file:then.qcow2",
        "compact file:disk.qcow2 file:small.qcow2",
        "compare file:copy.qcow2 file:small.qcow2",
        "check file:copy.qcow2",
    ):
        assert run(*line.split()) == (0, ""), line
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    made = {"new.qcow2", "guest.raw", "sub/over.qcow2", "copy.qcow2", "part.raw", "then.qcow2", "small.qcow2"}
    assert names == made | {"disk.qcow2", "sub"}
