"""The gate: which names in an image may be opened, and what the refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcow2c.errors import GateRefused, UsageError
from qcow2c.storage.gate import GateRequest, any_file, deny, gate_for, same_directory


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_bytes(b"")
    (tmp_path / "inside" / "base").write_bytes(b"")
    (tmp_path / "inside" / "sub").mkdir()
    (tmp_path / "inside" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "inside" / "around").symlink_to(tmp_path)
    return tmp_path / "inside" / "top.qcow2"


@pytest.mark.parametrize("name", ["base", "not-there-yet", "sub/base", "./base", "file:base", "with space"])
def test_names_inside_the_directory_pass(image: Path, name: str) -> None:
    path = Path(same_directory(GateRequest("backing file", name, image)))
    assert path == image.parent / name.removeprefix("file:")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "absolute"),
        ("file:/etc/passwd", "absolute"),
        ("../secret", "leaves"),
        ("sub/../../secret", "leaves"),
        ("out", "link out"),
        ("around/secret", "link out"),
        ("json:{}", "no local file"),
        ("nbd://host/export", "no local file"),
        ("ssh:x", "no local file"),
        ("", "no file name"),
        ("a\0b", "no file name"),
    ],
)
def test_names_that_lead_out_are_refused_with_the_reason(image: Path, name: str, reason: str) -> None:
    with pytest.raises(GateRefused, match=reason) as caught:
        same_directory(GateRequest("backing file", name, image))
    assert "backing=" in str(caught.value)


def test_a_refusal_names_the_option_that_allows_it(image: Path) -> None:
    with pytest.raises(GateRefused, match="--gate any"):
        same_directory(GateRequest("backing file", "../secret", image))
    with pytest.raises(GateRefused, match=r"--gate directory.*data_file="):
        deny(GateRequest("data file", "base", image))


def test_any_allows_every_local_file_but_nothing_else(image: Path) -> None:
    assert any_file(GateRequest("backing file", "/etc/passwd", image)) == "/etc/passwd"
    assert Path(any_file(GateRequest("backing file", "../secret", image))).resolve() == image.parent.parent / "secret"
    with pytest.raises(GateRefused):
        any_file(GateRequest("backing file", "nbd:x", image))


def test_names_in_an_image_that_is_no_file_are_refused() -> None:
    for gate in (same_directory, any_file):
        with pytest.raises(GateRefused, match="no local file"):
            gate(GateRequest("backing file", "base", None))


def test_a_policy_is_a_name_or_a_callable() -> None:
    assert gate_for("deny") is deny
    assert gate_for(any_file) is any_file
    with pytest.raises(UsageError, match="deny, directory, any"):
        gate_for("maybe")
