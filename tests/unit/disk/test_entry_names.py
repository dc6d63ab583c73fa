"""Names of snapshots and bitmaps as names of files."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.disk.entry_names import MAX_NAME_BYTES, entry_names


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        (b"monday", "monday"),
        ("m\xf6rz \u20ac".encode(), "m\xf6rz \u20ac"),
        (b"a/b", "a%2Fb"),
        (b"50%", "50%25"),
        (b"a\nb\x7f", "a%0Ab%7F"),
        (b"\xff\xc3", "%FF%C3"),
        ("\u202e\u2028".encode(), "%E2%80%AE%E2%80%A8"),
        (b".", "%2E"),
        (b"..", "%2E%2E"),
        (b"...", "..."),
        (b"", "%@1"),
        (b"x" * 255, "x" * 255),
        (b"x" * 256, "x" * 252 + "%@1"),
        (b"x" * 251 + b"/" + b"y" * 9, "x" * 251 + "%@1"),
        (b"x" * 251 + "\xf6".encode() * 9, "x" * 251 + "%@1"),
    ],
)
def test_a_name_has_one_form(name: bytes, entry: str) -> None:
    assert entry_names([os.fsdecode(name)]) == [entry]


def test_a_name_that_is_there_already_gets_its_number() -> None:
    assert entry_names(["a", "b", "a", "", "a"]) == ["a", "b", "a%@3", "%@4", "a%@5"]


@given(st.lists(st.binary(max_size=300) | st.sampled_from([b"a", b"%", b"%@2", b"a%@2", b"/"]), max_size=20))
def test_each_name_has_a_form_of_its_own_that_a_file_can_have(names: list[bytes]) -> None:
    found = entry_names([name.decode("utf-8", "surrogateescape") for name in names])
    assert len(set(found)) == len(found) == len(names)
    for entry in found:
        assert entry not in ("", ".", "..") and "/" not in entry and all(char >= " " for char in entry)
        assert len(entry.encode()) <= MAX_NAME_BYTES
