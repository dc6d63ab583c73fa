"""`mount` as a command: what it refuses, and the way to the background; tests/interop/test_mount.py mounts."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from qcow2c.cli.commands.mount import _log
from qcow2c.errors import StoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk"
    qcow2c.create(image, 1 << 20)
    return image


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "give the directory"),
        (["nowhere"], "'nowhere' is no directory"),
        ([".", "--rw", "--read-only"], "exclude each other"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], reason: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", str(path), *words]) == 1
    assert reason in capsys.readouterr().err


def test_an_image_is_not_hidden_by_its_own_files(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", str(path), str(path.parent)]) == 1
    assert "would be hidden" in capsys.readouterr().err


def test_a_directory_where_nothing_is_mounted_is_not_unmounted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", "--unmount", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"qcow2c: {tmp_path}: nothing of qcow2c is mounted there\n"


def test_a_missing_library_is_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSE_LIBRARY_PATH", "libnothing.so")
    monkeypatch.setitem(__import__("sys").modules, "mfusepy", None)
    (tmp_path / "mnt").mkdir()
    assert main(["mount", str(path), str(tmp_path / "mnt")]) == 1
    assert "pip install 'qcow2c[fuse]'" in capsys.readouterr().err


def test_errors_of_the_background_go_into_a_file(tmp_path: Path) -> None:
    with ExitStack() as stack:
        complain = _log(Namespace(image="a\nb", log=str(tmp_path / "log")), stack)
        complain("bad\x07news")
        assert (tmp_path / "log").read_text() == "a\\x0ab: bad\\x07news\n"
        with pytest.raises(StoreError, match="cannot write"):
            _log(Namespace(image="a", log=os.fspath(tmp_path)), stack)
        _log(Namespace(image="a", log=None), stack)
