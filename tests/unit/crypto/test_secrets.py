from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from qcow2c.crypto.secrets import KeyRing, Secret, decoded, read_secret_file
from qcow2c.errors import UsageError


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret(b"hush")
    assert "hush" not in repr(secret) and "hush" not in repr(KeyRing("hush")) and "hush" not in f"{secret}"
    for function in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            function(secret)


@pytest.mark.parametrize("key", [b"\xc3\xa4", bytearray(b"\xc3\xa4"), "\u00e4", lambda _name: "\u00e4"])
def test_a_key_is_bytes_or_text_or_asked_for(key: object) -> None:
    secret = KeyRing(key).of("image")  # type: ignore[arg-type]
    assert secret is not None and secret.data == b"\xc3\xa4"


def test_a_function_is_told_the_name_of_the_image() -> None:
    asked: list[str] = []
    KeyRing(lambda name: asked.append(name) or b"k").of("disk.qcow2")
    assert asked == ["disk.qcow2"]


def test_each_layer_has_its_own_key_by_depth_or_by_file(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    (tmp_path / "link").symlink_to(tmp_path)
    ring = KeyRing({0: b"top", tmp_path / "link" / "base.qcow2": "base"})
    found = [ring.of("x", str(tmp_path / "top.qcow2"), 0), ring.of("x", str(base), 1), ring.of("x", None, 2)]
    assert [secret and secret.data for secret in found] == [b"top", b"base", None]
    assert KeyRing(ring).of("x", None, 0) is not None
    assert KeyRing(None).of("x") is None


def test_what_is_no_key_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="not int"):
        KeyRing(12345).of("image")  # type: ignore[arg-type]


def test_base64_is_decoded_and_bad_base64_not_shown() -> None:
    assert decoded(b"c2VjcmV0\n", "base64", "s") == b"secret"
    assert decoded(b"as it is\n", "raw", "s") == b"as it is\n"
    with pytest.raises(UsageError) as found:
        decoded(b"!!hush!!", "base64", "s")
    assert "hush" not in str(found.value) and found.value.__cause__ is None
    with pytest.raises(UsageError, match="'hex'"):
        decoded(b"", "hex", "s")


def test_a_file_of_a_secret_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k\n")
    assert read_secret_file(tmp_path / "key") == b"k\n"
    with pytest.raises(UsageError, match="No such file"):
        read_secret_file(tmp_path / "none")
    (tmp_path / "disk").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(UsageError, match="longer than a secret"):
        read_secret_file(tmp_path / "disk")
