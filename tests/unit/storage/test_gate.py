"""The gate: which names in an image may be opened, and what the refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcow2c.errors import GateRefused, UsageError
from qcow2c.storage.gate import GateRequest, any_file, deny, directories, format_in, gate_for, same_directory


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
        ("json:{}", "requires a file name"),
        ("json:{", "JSON parse error"),
        ('json:{"driver":"nbd","host":"x"}', "Unknown driver 'nbd'"),
        ('json:{"driver":"qcow2","file":{"driver":"ssh","path":"x"}}', "Unknown driver 'ssh'"),
        ('json:{"driver":"qcow2","file":"node"}', "requires a file name"),
        ('json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"base"}}', "option 'offset'"),
        ('json:{"file.filename":"a\\u0000b"}', "no file name"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/etc/passwd"}}', "absolute"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"../secret"}}', "leaves"),
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
    outside = str(image.parent.parent)
    with pytest.raises(GateRefused) as caught:
        same_directory(GateRequest("backing file", "../secret", image))
    assert f"with --gate {outside} (gate=[{outside!r}]), or give" in str(caught.value)
    directories([outside])(GateRequest("backing file", "../secret", image))
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
    with pytest.raises(UsageError, match="without a name"):
        gate_for([""])


def test_an_absolute_name_into_the_directory_of_the_image_passes(image: Path) -> None:
    for name in (image.parent / "base", image.parent / "sub" / ".." / "base", image.parent.parent / "inside" / "base"):
        assert same_directory(GateRequest("backing file", str(name), image)) == str(name)
    assert Path(same_directory(GateRequest("backing file", "../inside/base", image))).samefile(image.parent / "base")
    with pytest.raises(GateRefused, match="link out"):
        same_directory(GateRequest("backing file", str(image.parent / "out"), image))
    with pytest.raises(GateRefused, match="absolute"):  # The beginning of a name is no directory.
        same_directory(GateRequest("backing file", f"{image.parent}-2/base", image))


def test_an_image_that_is_named_by_a_link_may_name_files_beside_itself(image: Path, tmp_path: Path) -> None:
    image.write_bytes(b"")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "vm.qcow2"
    link.symlink_to(image)
    assert same_directory(GateRequest("backing file", str(image.parent / "base"), link)) == str(image.parent / "base")


def test_directories_are_allowed_beside_the_images_own(image: Path, tmp_path: Path) -> None:
    (tmp_path / "pool" / "deep").mkdir(parents=True)
    (tmp_path / "pool" / "out").symlink_to(tmp_path / "secret")
    gate = gate_for([tmp_path / "pool", str(tmp_path / "other")])
    for name in ("base", "../pool/x", str(tmp_path / "pool" / "deep" / "x"), str(tmp_path / "other" / "x")):
        gate(GateRequest("backing file", name, image))
    for name in ("../secret", str(tmp_path / "pool" / "out"), str(tmp_path / "pool2" / "x"), "nbd:x"):
        with pytest.raises(GateRefused):
            gate(GateRequest("backing file", name, image))


def test_json_names_are_judged_by_the_file_in_them(image: Path) -> None:
    name = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base","locking":"auto"}}'
    assert same_directory(GateRequest("backing file", name, image)) == str(image.parent / "base")
    assert format_in(name) == "qcow2"
    assert format_in('json:{"driver":"file","filename":"base"}') is None
    dotted = f'json:{{"file.filename":"{image.parent}/base","driver":"raw"}}'
    assert same_directory(GateRequest("backing file", dotted, image)) == str(image.parent / "base")
    assert format_in(dotted) == "raw"
    assert format_in("json:{") is None


def test_an_image_in_memory_may_name_absolute_files_that_are_allowed(image: Path) -> None:
    name = str(image.parent / "base")
    for gate in (any_file, directories([image.parent])):
        assert gate(GateRequest("backing file", name, None)) == name
    with pytest.raises(GateRefused):
        same_directory(GateRequest("backing file", name, None))
