"""Text as it leaves the program: harmless to a terminal, and JSON in QEMU's form."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.cli import text

words = st.text(max_size=10)
values = st.recursive(
    st.integers() | st.booleans() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(st.text())
def test_nothing_printable_is_changed_and_nothing_else_is_left(words: str) -> None:
    found = text.printable(words)
    assert not any(char in found for char in words if char in "\n\r\t\x1b\u2028\u202e\x7f")
    if words.isprintable():
        assert found == words


@pytest.mark.parametrize(
    ("words", "shown"),
    [("a\x1b[0m", "a\\x1b[0m"), ("\udcff", "\\xff"), ("\u202e", "\\u202e"), ("\U000e0001", "\\U000e0001")],
)
def test_escapes_say_which_character_or_byte_it_was(words: str, shown: str) -> None:
    assert text.printable(words) == shown


@given(values)
def test_json_is_what_json_reads(value: object) -> None:
    found = text.pretty_json(value)
    assert found.isascii()
    assert json.loads(found) == json.loads(json.dumps(value).encode("ascii", "replace").decode())


def test_json_has_the_form_of_qemu() -> None:
    found = text.pretty_json({"a": [1, True], "b": "\u00e9\x7f", "c": {}})
    assert found.splitlines() == [
        "{",
        '    "a": [',
        "        1,",
        "        true",
        "    ],",
        '    "b": "\\u00E9\\u007F",',
        '    "c": {',
        "    }",
        "}",
    ]


def test_complaints_are_one_line_on_standard_error(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text.write("out \udcff")
    text.complain("two\nlines", hint="qcow2c --help")
    out, err = capfdbinary.readouterr()
    assert out == b"out \xff"
    assert err == b"qcow2c: two\\x0alines\nTry 'qcow2c --help' for more information\n"
