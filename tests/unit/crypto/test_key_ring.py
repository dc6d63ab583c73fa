from __future__ import annotations

from pathlib import Path

import pytest

from qcow2c.crypto.key_ring import KeyRing
from qcow2c.errors import UsageError


def test_a_ring_shows_no_key() -> None:
    assert "hush" not in repr(KeyRing("hush"))


@pytest.mark.parametrize("key", [b"\xc3\xa4", bytearray(b"\xc3\xa4"), "\u00e4", lambda _name: "\u00e4"])
def test_a_key_is_bytes_or_text_or_asked_for(key: object) -> None:
    secret = KeyRing(key).secret("image")  # type: ignore[arg-type]
    assert secret is not None and secret.data == b"\xc3\xa4"


def test_a_function_is_told_the_name_of_the_image() -> None:
    asked: list[str] = []
    KeyRing(lambda name: asked.append(name) or b"k").secret("disk.qcow2")
    assert asked == ["disk.qcow2"]


def test_each_layer_has_its_own_key_by_depth_or_by_file(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    (tmp_path / "link").symlink_to(tmp_path)
    ring = KeyRing({0: b"top", tmp_path / "link" / "base.qcow2": "base"})
    found = [
        ring.secret("x", str(tmp_path / "top.qcow2"), 0),
        ring.secret("x", str(base), 1),
        ring.secret("x", None, 2),
    ]
    assert [secret and secret.data for secret in found] == [b"top", b"base", None]
    assert KeyRing(ring).secret("x", None, 0) is not None
    assert KeyRing(None).secret("x") is None


def test_what_is_no_key_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="not int"):
        KeyRing(12345).secret("image")  # type: ignore[arg-type]
