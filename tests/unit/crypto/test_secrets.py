from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from qcow2c.crypto.secrets import Secret, decoded, read_secret_file
from qcow2c.errors import UsageError


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret(b"hush")
    assert "hush" not in repr(secret) and "hush" not in f"{secret}"
    for function in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            function(secret)


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
